#pragma once

#include "cpu/simd.h"
#include "cpu/transpose.h"

// Matrix products for every size from one row up, in one thread; callers share rows or panels among threads.
//
//   c[m, n] (+)= sum over k of a[m, k] * b[k, n]
//
// b is packed first: panels of kPanel columns, each contiguous over k, the last one filled up with zeros. The
// micro-kernel keeps up to kMaxRows x kPanel sums in registers, reads a panel line and multiplies it by one broadcast
// element of a for each row: two loads and eight broadcasts to 16 multiply-adds, which the adders can just not wait for.
// From four rows up that reaches 0.95 of a Zen 4 core's 118 GFLOP/s while operands come from the cache, and 0.7 to 0.9
// from memory. The sgemm that torch exports (MKL) reaches 0.25 (4 rows) to 0.8 (1024^3) there, so a BLAS was no gain.
namespace fastdream::cpu::FD_ISA {

template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;

constexpr int64_t kDepth = 512;  // of k at a time: a panel of it stays in the first-level cache's reach

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

template <typename T>
int64_t packed_size(int64_t depth, int64_t columns) {
  return depth * round_up(columns, kPanel<T>);
}

// A matrix b[depth, columns] in panels.
template <typename T>
struct Packed {
  const T* data = nullptr;
  int64_t depth = 0;
  int64_t columns = 0;
  int64_t panels() const { return div_up(columns, kPanel<T>); }
};

// out[packed_size] from b[k, n] at b[k * row + n * column]; only panels first ... last - 1 (for threads).
template <typename T>
void pack_panels(T* out, const T* b, int64_t row, int64_t column, int64_t depth, int64_t columns, int64_t first,
                 int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    T* to = out + panel * depth * kPanel<T>;
    const T* from = b + panel * kPanel<T> * column;
    const int64_t width = columns - panel * kPanel<T> < kPanel<T> ? columns - panel * kPanel<T> : kPanel<T>;
    if (column == 1 && width == kPanel<T>) {
      for (int64_t k = 0; k < depth; ++k) {
        store(to + k * kPanel<T>, load(from + k * row));
        store(to + k * kPanel<T> + kLanes<T>, load(from + k * row + kLanes<T>));
      }
      continue;
    }
    if (width < kPanel<T>) std::memset(to, 0, size_t(depth * kPanel<T>) * sizeof(T));
    int64_t k = 0;
    if (row == 1 && width == kPanel<T>) {
      for (; k + kLanes<T> <= depth; k += kLanes<T>) {
        for (int64_t half = 0; half < kPanel<T>; half += kLanes<T>) {
          transpose(from + k + half * column, column, to + k * kPanel<T> + half, kPanel<T>);
        }
      }
    }
    for (; k < depth; ++k) {
      for (int64_t n = 0; n < width; ++n) to[k * kPanel<T> + n] = from[k * row + n * column];
    }
  }
}

template <typename T>
Packed<T> pack(T* out, const T* b, int64_t row, int64_t column, int64_t depth, int64_t columns) {
  pack_panels(out, b, row, column, depth, columns, 0, div_up(columns, kPanel<T>));
  return {out, depth, columns};
}

// What the sums start from: 0; bias[n]; what is in c. The last is added at the end, so that a sum in parts has the small
// rounding error of its parts and not that of one long sum.
enum class Start { zero, bias, sum };

template <typename T, int Rows, int Vectors>
inline void micro_kernel(int64_t depth, const T* __restrict a, int64_t a_row, int64_t a_depth, const T* __restrict b,
                         Vec<T> (&acc)[Rows][Vectors]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> line[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) line[v] = load(b + k * kPanel<T> + v * kLanes<T>);
#pragma GCC unroll 12
    for (int m = 0; m < Rows; ++m) {
      const Vec<T> x = splat(a[m * a_row + k * a_depth]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[m][v] += x * line[v];
    }
  }
}

// Rows x (Vectors * lanes) results; the last vector has `tail` columns.
template <typename T, int Rows, int Vectors, bool Contiguous>
__attribute__((noinline)) void tile(int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, T* c,
                                    int64_t c_row, int64_t tail, Start start, const T* bias) {
  Vec<T> acc[Rows][Vectors];
#pragma GCC unroll 12
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      const int64_t n = v * kLanes<T>, lanes = v + 1 < Vectors ? kLanes<T> : tail;
      if (start == Start::bias) {
        acc[m][v] = lanes == kLanes<T> ? load(bias + n) : load_part(bias + n, lanes);
      } else {
        acc[m][v] = Vec<T>{};
      }
    }
  }
  micro_kernel<T, Rows, Vectors>(depth, a, a_row, Contiguous ? 1 : a_depth, b, acc);
#pragma GCC unroll 12
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* to = c + m * c_row + v * kLanes<T>;
      if (v + 1 < Vectors || tail == kLanes<T>) {
        store(to, start == Start::sum ? acc[m][v] + load(to) : acc[m][v]);
      } else {
        store_part(to, start == Start::sum ? acc[m][v] + load_part(to, tail) : acc[m][v], tail);
      }
    }
  }
}

template <typename T, int Rows>
void tile_of(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, T* c,
             int64_t c_row, Start start, const T* bias) {
  if (rows < Rows) {
    if constexpr (Rows > 1) {
      return tile_of<T, Rows - 1>(rows, width, depth, a, a_row, a_depth, b, c, c_row, start, bias);
    }
    return;
  }
  const int64_t tail = width > kLanes<T> ? width - kLanes<T> : width;
  if (width > kLanes<T>) {
    a_depth == 1 ? tile<T, Rows, 2, true>(depth, a, a_row, 1, b, c, c_row, tail, start, bias)
                 : tile<T, Rows, 2, false>(depth, a, a_row, a_depth, b, c, c_row, tail, start, bias);
  } else {
    a_depth == 1 ? tile<T, Rows, 1, true>(depth, a, a_row, 1, b, c, c_row, tail, start, bias)
                 : tile<T, Rows, 1, false>(depth, a, a_row, a_depth, b, c, c_row, tail, start, bias);
  }
}

// a[m, k] at a[m * a_row + k * a_depth]; c[m, n] at c[m * c_row + n]. Panels first ... last - 1 of b alone.
template <typename T>
void gemm_panels(int64_t rows, const T* a, int64_t a_row, int64_t a_depth, Packed<T> b, T* c, int64_t c_row,
                 Start start, const T* bias, int64_t first, int64_t last) {
  if (rows <= 0) return;
  const int64_t groups = div_up(rows, kMaxRows);  // of nearly equal height: 16 rows are 8 + 8, not 12 + 4
  // Rows at a time whose part of a stays in the second-level cache while all panels pass by.
  const int64_t block = groups < 16 ? groups : 16;
  if (b.depth == 0 && start != Start::sum) {
    const T* const from = start == Start::bias ? bias : nullptr;
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = first * kPanel<T>; n < b.columns && n < last * kPanel<T>; ++n) {
        c[m * c_row + n] = from ? from[n] : T(0);
      }
    }
  }
  for (int64_t k = 0; k < b.depth; k += kDepth) {
    const int64_t depth = b.depth - k < kDepth ? b.depth - k : kDepth;
    const Start begin = k ? Start::sum : start;
    for (int64_t group = 0; group < groups; group += block) {
      const int64_t stop = group + block < groups ? group + block : groups;
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t n = panel * kPanel<T>;
        const int64_t width = b.columns - n < kPanel<T> ? b.columns - n : kPanel<T>;
        const T* lines = b.data + panel * b.depth * kPanel<T> + k * kPanel<T>;
        for (int64_t g = group; g < stop; ++g) {
          const int64_t m = g * rows / groups, height = (g + 1) * rows / groups - m;
          tile_of<T, kMaxRows>(height, width, depth, a + m * a_row + k * a_depth, a_row, a_depth, lines,
                               c + m * c_row + n, c_row, begin, begin == Start::bias ? bias + n : nullptr);
        }
      }
    }
  }
}

template <typename T>
void gemm(int64_t rows, const T* a, int64_t a_row, Packed<T> b, T* c, int64_t c_row, Start start = Start::zero,
          const T* bias = nullptr) {
  gemm_panels(rows, a, a_row, 1, b, c, c_row, start, bias, 0, b.panels());
}

// c[m, n] (+)= sum over k of a[k, m] * b[k, n]: gradients of weights, from rows of gradients and rows of inputs. Each
// panel of b is packed on the way into scratch[kDepth * kPanel]. Panels first ... last - 1 of c alone.
template <typename T>
void gemm_over_rows(int64_t depth, const T* a, int64_t a_row, int64_t rows, const T* b, int64_t b_row, int64_t columns,
                    T* c, int64_t c_row, Start start, T* scratch, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t n = panel * kPanel<T>, width = columns - n < kPanel<T> ? columns - n : kPanel<T>;
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t part = depth - k < kDepth ? depth - k : kDepth;
      const Packed<T> lines = pack(scratch, b + k * b_row + n, b_row, 1, part, width);
      gemm_panels(rows, a + k * a_row, 1, a_row, lines, c + n, c_row, k ? Start::sum : start,
                  static_cast<const T*>(nullptr), 0, 1);
    }
  }
}

}  // namespace fastdream::cpu::FD_ISA
