#pragma once

#include "cpu/params.h"

// Gradients of parameters: sums over many rows, made in pieces of a few hundred rows that a scan leaves behind. Pieces are
// added in the order of the scan, threads share columns, so that results depend on nothing else.
namespace fastdream::cpu::FD_ISA {

// Where a layer's gradients go, null where not wanted.
template <typename T>
struct LayerGradient {
  T *weight = nullptr, *bias = nullptr, *scale = nullptr, *shift = nullptr;
  int64_t sums = 0;  // where a thread's sums of scale and shift [2, out] begin in its buffer
};

// pointers: weight, bias, scale, shift
template <typename T>
LayerGradient<T> read_gradient(Call& call, const Layer<T>& layer, int64_t& sums) {
  LayerGradient<T> gradient;
  gradient.weight = call.pointer<T>();
  gradient.bias = call.pointer<T>();
  gradient.scale = call.pointer<T>();
  gradient.shift = call.pointer<T>();
  gradient.sums = sums;
  if (gradient.scale || gradient.shift) sums += 2 * layer.out;
  return gradient;
}

// From the gradient of act(norm(x)), in d_x, to that of x, in place; sums: this thread's buffer.
template <typename T>
void activate_rows_backward(const Layer<T>& layer, const LayerGradient<T>& gradient, T* sums, Share rows, int64_t n,
                            Rows<const T> x, Rows<T> d_x) {
  T* const to = sums + gradient.sums;
  norm_act_rows_backward(layer.f, rows.last - rows.first, n, x.at(rows.first), x.row, d_x.at(rows.first), d_x.row,
                         d_x.at(rows.first), d_x.row, gradient.scale ? to : nullptr, gradient.shift ? to + n : nullptr);
}

// The sums of all threads, one after the other.
template <typename T>
void collect(const Team& team, const T* sums, int64_t size, int64_t offset, int64_t n, T* out) {
  if (!out) return;
  const Share mine = share(team, n, kLanes<T>);
  for (int64_t i = mine.first; i < mine.last; ++i) {
    T total = T(0);
    for (int rank = 0; rank < team.size; ++rank) total += sums[rank * size + offset + i];
    out[i] = total;
  }
}

template <typename T>
void collect(const Team& team, const T* sums, int64_t size, const Layer<T>& layer, const LayerGradient<T>& gradient) {
  collect(team, sums, size, gradient.sums, layer.out, gradient.scale);
  collect(team, sums, size, gradient.sums + layer.out, layer.out, gradient.shift);
}

// What one piece of a sum over rows is made of: rows (t, b) of steps 0 ... steps - 1 and of every b.
struct Piece {
  const Team& team;
  int64_t batch, steps;
  bool first;         // of all pieces: sums start from zero
  const bool* reset;  // [batch, length] at the first step, or null
  int64_t length;
  int64_t rows() const { return batch * steps; }
  Start start() const { return first ? Start::zero : Start::sum; }
};

// Rows (t, b) at data + t * step + b * row.
template <typename T>
struct Operand {
  const T* data;
  int64_t row, step;
  Operand from(int64_t column) const { return {data + column, row, step}; }
};
template <typename T>
Operand<T> operand(const Piece& piece, Rows<T> x, int64_t column = 0) {
  return {x.data + column, x.row, x.row * piece.batch};
}

// Columns n ... n + kPanel - 1 of x, packed.
template <typename T>
Packed<T> pack_operand(const Piece& piece, Operand<T> x, int64_t n, int64_t columns, T* scratch) {
  const int64_t width = columns - n < kPanel<T> ? columns - n : kPanel<T>;
  for (int64_t t = 0; t < piece.steps; ++t) {
    pack_panels(scratch + t * piece.batch * kPanel<T>, x.data + t * x.step + n, x.row, 1, piece.batch, width, 0, 1);
  }
  return {scratch, piece.rows(), width};
}

// Zeroes the packed lines of rows that begin with a reset.
template <typename T>
void drop_resets(const Piece& piece, T* scratch) {
  if (!piece.reset) return;
  for (int64_t t = 0; t < piece.steps; ++t) {
    for (int64_t b = 0; b < piece.batch; ++b) {
      if (!piece.reset[b * piece.length + t]) continue;
      std::memset(scratch + (t * piece.batch + b) * kPanel<T>, 0, size_t(kPanel<T>) * sizeof(T));
    }
  }
}

// c[m, n] (+)= sum over rows of a[m] * packed[n], a in the order of time.
template <typename T>
void add_product(const Piece& piece, Rows<const T> a, int64_t m, Packed<T> packed, T* c, int64_t c_row) {
  gemm_panels(m, a.data, 1, a.row, packed, c, c_row, piece.start(), static_cast<const T*>(nullptr), 0, 1);
}

// c[m, n] (+)= sum over rows of a[m] * b[n]; `resets`: rows of b count as zero where there is a reset.
template <typename T>
void weight_gradient(const Piece& piece, Rows<const T> a, int64_t m, Operand<T> b, int64_t n, T* c, int64_t c_row,
                     T* scratch, bool resets = false) {
  if (!c) return;
  const Share panels = share(piece.team, div_up(n, kPanel<T>));
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const Packed<T> packed = pack_operand(piece, b, panel * kPanel<T>, n, scratch);
    if (resets) drop_resets(piece, scratch);
    add_product(piece, a, m, packed, c + panel * kPanel<T>, c_row);
  }
}

// The same for every block of a block layer: c[in, out] of block i from its columns of x and of d_y.
template <typename T>
void block_gradient(const Piece& piece, const Layer<T>& layer, Rows<const T> x, Rows<T> d_y, T* c, T* scratch) {
  if (!c) return;
  const int64_t in = layer.in / layer.blocks, out = layer.out / layer.blocks, per = div_up(out, kPanel<T>);
  const Share panels = share(piece.team, layer.blocks * per);
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t block = panel / per, n = panel % per * kPanel<T>;
    const Packed<T> packed = pack_operand(piece, operand(piece, d_y, block * out), n, out, scratch);
    add_product(piece, x.from(0, block * in), in, packed, c + block * in * out + n, out);
  }
}

// out[n] (+)= sum over rows of x
template <typename T>
void column_sums(const Piece& piece, int64_t n, Rows<const T> x, T* out) {
  if (!out) return;
  const Share mine = share(piece.team, n, kLanes<T>);
  over<T>(mine.last - mine.first, [&](auto at) {
    Vec<T> sums[4] = {};
    for (int64_t m = 0; m < piece.rows(); ++m) sums[m % 4] += at.load(x.at(m) + mine.first);
    const Vec<T> total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    at.store(out + mine.first, piece.first ? total : at.load(out + mine.first) + total);
  });
}

}  // namespace fastdream::cpu::FD_ISA
