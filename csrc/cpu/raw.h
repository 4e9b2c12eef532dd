#pragma once

#include "cpu/gemm.h"

// Products with weights as torch keeps them. Packing reads and writes all of a weight, which for few rows costs more
// than the product itself: one row is done when every weight has been read once.
namespace fastdream::cpu::FD_ISA {

// b[depth, columns]: b[k, n] at data[k * row + n * column], one of the strides being 1. A dense weight [out, in] is
// {weight, in, out, 1, in}; a block [in, out] is {weight, in, out, out, 1}.
template <typename T>
struct Raw {
  const T* data = nullptr;
  int64_t depth = 0;
  int64_t columns = 0;
  int64_t row = 0;
  int64_t column = 0;
};

// The sums of kLanes vectors, in their order. Each round adds the halves of half of them to those of the other half.
template <typename T>
inline Vec<T> sums_of(Vec<T> (&x)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  IntVec<T> low = {}, high = {};
  for (int i = 0; i < n; ++i) {
    low[i] = i / 2 + (i % 2) * n;
    high[i] = low[i] + n / 2;
  }
#pragma GCC unroll 4
  for (int half = n / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      x[i] = shuffle<T>(x[i], x[i + half], low) + shuffle<T>(x[i], x[i + half], high);
    }
  }
  return x[0];
}

// c[Rows, columns of a tile] for a matrix that is contiguous over k: kLanes sums at a time, Rows x (kLanes / Rows).
// `columns` of them exist.
template <typename T, int Rows>
__attribute__((noinline)) void dot_tile(const T* a, int64_t a_row, Raw<T> b, int64_t columns, T* c, int64_t c_row,
                                        Start start, const T* bias) {
  constexpr int Columns = kLanes<T> / Rows;
  const T* lines[Columns];
  for (int n = 0; n < Columns; ++n) lines[n] = b.data + (n < columns ? n : 0) * b.column;
  Vec<T> acc[kLanes<T>] = {};
  const auto step = [&](auto at) {
    Vec<T> x[Rows];
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) x[m] = at.load(a + m * a_row);
#pragma GCC unroll 16
    for (int n = 0; n < Columns; ++n) {
      const Vec<T> y = at.load(lines[n]);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) acc[m * Columns + n] += x[m] * y;
    }
  };
  over<T>(b.depth, step);
  const Vec<T> sums = sums_of<T>(acc);
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < Columns && n < columns; ++n) {
      const T from = start == Start::zero ? T(0) : start == Start::bias ? bias[n] : c[m * c_row + n];
      c[m * c_row + n] = from + sums[m * Columns + n];
    }
  }
}

// c[Rows, Vectors * kLanes] for a matrix that is contiguous over n; of a single vector, `columns` alone exist.
template <typename T, int Rows, int Vectors>
__attribute__((noinline)) void line_tile(const T* a, int64_t a_row, Raw<T> b, int64_t columns, T* c, int64_t c_row,
                                         Start start, const T* bias) {
  const auto read = [=](const T* p, int v) {
    return Vectors > 1 || columns == kLanes<T> ? load(p + v * kLanes<T>) : load_part(p, columns);
  };
  Vec<T> acc[Rows][Vectors];
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      acc[m][v] = start == Start::zero ? Vec<T>{} : read(start == Start::bias ? bias : c + m * c_row, v);
    }
  }
  for (int64_t k = 0; k < b.depth; ++k) {
    Vec<T> x[Rows];
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) x[m] = splat(a[m * a_row + k]);
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      const Vec<T> y = read(b.data + k * b.row, v);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) acc[m][v] += x[m] * y;
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      T* to = c + m * c_row + v * kLanes<T>;
      Vectors > 1 || columns == kLanes<T> ? store(to, acc[m][v]) : store_part(to, acc[m][v], columns);
    }
  }
}

// Columns first ... of Rows rows; returns where the tiles of this width end.
template <typename T, int Rows, int Vectors>
int64_t line_tiles(int64_t rows, const T* a, int64_t a_row, Raw<T> b, T* c, int64_t c_row, Start start,
                   const T* bias, int64_t first) {
  constexpr int64_t kWidth = Vectors * kLanes<T>;
  for (; first + (Vectors > 1 ? kWidth : 1) <= b.columns; first += kWidth) {
    const int64_t columns = b.columns - first < kLanes<T> ? b.columns - first : kLanes<T>;
    Raw<T> part = b;
    part.data += first;
    for (int64_t m = 0; m + Rows <= rows; m += Rows) {
      line_tile<T, Rows, Vectors>(a + m * a_row, a_row, part, columns, c + m * c_row + first, c_row, start,
                                  bias ? bias + first : nullptr);
    }
  }
  return first;
}

// All whole groups of Rows rows; returns how many rows are left.
template <typename T, int Rows>
int64_t multiply_groups(int64_t rows, const T* a, int64_t a_row, Raw<T> b, T* c, int64_t c_row, Start start,
                        const T* bias) {
  if (rows < Rows) return rows;
  if (b.column == 1) {
    int64_t done = line_tiles<T, Rows, 16 / Rows>(rows, a, a_row, b, c, c_row, start, bias, 0);
    if constexpr (Rows < 4) done = line_tiles<T, Rows, 4>(rows, a, a_row, b, c, c_row, start, bias, done);
    line_tiles<T, Rows, 1>(rows, a, a_row, b, c, c_row, start, bias, done);
    return rows % Rows;
  }
  constexpr int64_t kColumns = kLanes<T> / Rows;
  for (int64_t n = 0; n < b.columns; n += kColumns) {
    Raw<T> part = b;
    part.data += n * b.column;
    for (int64_t m = 0; m + Rows <= rows; m += Rows) {
      dot_tile<T, Rows>(a + m * a_row, a_row, part, b.columns - n, c + m * c_row + n, c_row, start,
                        bias ? bias + n : nullptr);
    }
  }
  return rows % Rows;
}

// c[m, n] (+)= sum over k of a[m, k] * b[k, n], as `gemm` of a packed matrix.
template <typename T>
void multiply(int64_t rows, const T* a, int64_t a_row, Raw<T> b, T* c, int64_t c_row, Start start = Start::zero,
              const T* bias = nullptr) {
  const auto skip = [&](int64_t left) {
    a += (rows - left) * a_row;
    c += (rows - left) * c_row;
    rows = left;
  };
  if constexpr (kLanes<T> >= 4) skip(multiply_groups<T, 4>(rows, a, a_row, b, c, c_row, start, bias));
  skip(multiply_groups<T, 2>(rows, a, a_row, b, c, c_row, start, bias));
  multiply_groups<T, 1>(rows, a, a_row, b, c, c_row, start, bias);
}

}  // namespace fastdream::cpu::FD_ISA
