#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/raw.h"
#include "cpu/team.h"

// Products with weights as they lie in a model, packed once a call, and how a team of threads shares the steps of a scan.
namespace fastdream::cpu::FD_ISA {

// Rows of a matrix, `row` elements from one to the next.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t row = 0;
  T* at(int64_t m) const { return data + m * row; }
  Rows from(int64_t m, int64_t column = 0) const { return {data + m * row + column, row}; }
  Rows every(int64_t n) const { return {data, row * n}; }  // each n-th
  operator Rows<const T>() const { return {data, row}; }
};

// Row strides of our own matrices avoid large powers of two, of which few fit into one set of a cache.
inline int64_t padded(int64_t width) { return width >= 512 && width % 256 == 0 ? width + 16 : width; }

template <typename T>
Rows<T> take_rows(Arena& arena, int64_t rows, int64_t width) {
  return {arena.take<T>(rows * padded(width)), padded(width)};
}

// Each thread computes rows of its own from the first to the last time step, without waiting for anyone; or, where there
// are few rows, all rows of some columns of every product, and then `sync` waits between one stage and the next.
struct Split {
  Team* team;
  bool columns;
  Share products;  // rows of a product that are this thread's
  Share rows;      // rows of everything else
  Share panels(int64_t n) const { return columns ? share(*team, n) : Share{0, n}; }
  void sync() const {
    if (columns) team->barrier();
  }
};

inline Split split_rows(Team& team, Share rows) { return {&team, false, rows, rows}; }

inline Split split(Team& team, int64_t rows) {
  const Share mine = share(team, rows);
  return rows >= kMaxRows * team.size || team.size == 1 ? split_rows(team, mine) : Split{&team, true, {0, rows}, mine};
}

// Element (k, n) of b[depth, columns] is data[k / group * jump + k % group * row + n * column].
template <typename T>
struct Matrix {
  const T* data;
  int64_t depth, columns;
  int64_t row, column;
  int64_t group = depth, jump = 0;
};

// y (+)= x b; where b was not packed, with the weights as they lie. With several blocks, block i multiplies columns
// i * x_step ... of x and gives columns i * y_step ... of y, and its weights lie `jump` elements after those of block i - 1.
template <typename T>
struct Product {
  Matrix<T> b = {nullptr, 0, 0, 0, 0};
  int64_t blocks = 1;
  int64_t jump = 0, x_step = 0, y_step = 0;
  T* packed = nullptr;

  int64_t panels_of_block() const { return div_up(b.columns, kPanel<T>); }
  int64_t panels() const { return blocks * panels_of_block(); }

  void lay_out(Arena& arena) { packed = arena.take<T>(blocks * packed_size<T>(b.depth, b.columns)); }

  void pack(const Team& team) {
    const Share mine = share(team, panels());
    for (int64_t panel = mine.first; panel < mine.last; ++panel) {
      const int64_t block = panel / panels_of_block(), n = panel % panels_of_block() * kPanel<T>;
      const T* from = b.data + block * jump + n * b.column;
      const int64_t width = b.columns - n < kPanel<T> ? b.columns - n : kPanel<T>;
      for (int64_t k = 0; k < b.depth; k += b.group) {
        pack_panels(packed + (panel * b.depth + k) * kPanel<T>, from + k / b.group * b.jump, b.row, b.column, b.group,
                    width, 0, 1);
      }
    }
  }

  // Rows and panels as `split` says; bias[n] for every column of y, where sums start from it.
  void multiply(const Split& split, Rows<const T> x, Rows<T> y, Start start = Start::zero,
                const T* bias = nullptr) const {
    const Share mine = split.panels(panels());
    if (mine.first == mine.last) return;  // a block may have no columns at all
    const int64_t height = split.products.last - split.products.first, per = panels_of_block();
    x = x.from(split.products.first);
    y = y.from(split.products.first);
    for (int64_t block = mine.first / per; block * per < mine.last; ++block) {
      const int64_t first = mine.first > block * per ? mine.first - block * per : 0;
      const int64_t last = mine.last < (block + 1) * per ? mine.last - block * per : per;
      T* const to = y.data + block * y_step;
      const T* const bias_of = bias ? bias + block * y_step : nullptr;
      if (!packed) {
        const int64_t n = first * kPanel<T>, stop = last * kPanel<T> < b.columns ? last * kPanel<T> : b.columns;
        const Raw<T> lines = {b.data + block * jump + n * b.column, b.depth, stop - n, b.row, b.column};
        FD_ISA::multiply(height, x.data + block * x_step, x.row, lines, to + n, y.row, start,
                         bias ? bias_of + n : nullptr);
        continue;
      }
      const Packed<T> lines = {packed + block * packed_size<T>(b.depth, b.columns), b.depth, b.columns};
      gemm_panels(height, x.data + block * x_step, x.row, 1, lines, to, y.row, start, bias_of, first, last);
    }
  }

  // All columns, in the calling thread.
  void multiply(int64_t rows, Rows<const T> x, Rows<T> y, Start start = Start::zero, const T* bias = nullptr) const {
    multiply({nullptr, false, {0, rows}, {0, rows}}, x, y, start, bias);
  }
};

inline Start start_of(const void* bias) { return bias ? Start::bias : Start::zero; }

}  // namespace fastdream::cpu::FD_ISA
