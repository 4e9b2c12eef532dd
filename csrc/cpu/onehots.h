#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/team.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Products with matrices of which nearly all entries are zero: those of one-hots are sums of a few lines of the weights.
namespace fastdream::cpu::FD_ISA {

// Bit i is set where lane i is not zero.
template <typename T>
inline uint32_t nonzero_lanes(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }
#endif
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= uint32_t(x[i] != T(0)) << i;
  return bits;
}

// The entries of rows [rows, width] that are not zero, row by row. Workspace for `rows` rows.
template <typename T>
struct Entries {
  int64_t width = 0;
  int32_t* counts = nullptr;   // [rows]
  int32_t* columns = nullptr;  // [rows, width], the first counts[m] of row m
  T* values = nullptr;         // likewise

  void lay_out(Arena& arena, int64_t rows) {
    counts = arena.take<int32_t>(rows);
    columns = arena.take<int32_t>(rows * width);
    values = arena.take<T>(rows * width);
  }

  Entries from(int64_t row) const { return {width, counts + row, columns + row * width, values + row * width}; }

  // Of x [rows, width].
  void find(int64_t rows, const T* x) const {
    for (int64_t m = 0; m < rows; ++m, x += width) {
      int32_t* to = columns + m * width;
      int32_t count = 0;
      over<T>(width, [&](auto at) {
        for (uint32_t bits = nonzero_lanes<T>(at.load(x)); bits; bits &= bits - 1) {
          to[count] = int32_t(at.i) + __builtin_ctz(bits);
          values[m * width + count] = x[to[count]];
          ++count;
        }
      });
      counts[m] = count;
    }
  }

  // c[m, n] += sum over the entries of row m of value * b[column, n]
  void multiply(int64_t rows, Packed<T> b, T* c, int64_t c_row) const {
    for (int64_t panel = 0; panel < b.panels(); ++panel) {
      const T* lines = b.data + panel * b.depth * kPanel<T>;
      const int64_t n = panel * kPanel<T>, left = b.columns - n < kPanel<T> ? b.columns - n : kPanel<T>;
      for (int64_t m = 0; m < rows; ++m) {
        const int32_t* column = columns + m * width;
        const T* value = values + m * width;
        Vec<T> sums[2][2] = {};  // of even and odd entries, so that additions wait less for each other
        for (int32_t i = 0; i < counts[m]; ++i) {
          const T* line = lines + column[i] * kPanel<T>;
          sums[0][0] += value[i] * load(line);
          sums[0][1] += value[i] * load(line + kLanes<T>);
          if (++i == counts[m]) break;
          line = lines + column[i] * kPanel<T>;
          sums[1][0] += value[i] * load(line);
          sums[1][1] += value[i] * load(line + kLanes<T>);
        }
        T* to = c + m * c_row + n;
        int half = 0;
        over<T>(left, [&](auto at) {
          at.store(to, at.load(to) + (sums[0][half] + sums[1][half]));
          ++half;
        });
      }
    }
  }

  // sums[column, n] += value * a[m, n] for every entry of every row, and n of `some`
  void multiply_transposed(int64_t rows, const T* a, int64_t a_row, Share some, T* sums, int64_t sums_row) const {
    constexpr int64_t kVectors = 4;
    for (int64_t n = some.first; n < some.last; n += kVectors * kLanes<T>) {
      const bool whole = n + kVectors * kLanes<T> <= some.last;
      for (int64_t m = 0; m < rows; ++m) {
        const int32_t* column = columns + m * width;
        const T *value = values + m * width, *from = a + m * a_row + n;
        if (whole) {
          Vec<T> line[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) line[v] = load(from + v * kLanes<T>);
          for (int32_t i = 0; i < counts[m]; ++i) {
            T* to = sums + column[i] * sums_row + n;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              store(to + v * kLanes<T>, load(to + v * kLanes<T>) + value[i] * line[v]);
            }
          }
        } else {
          for (int32_t i = 0; i < counts[m]; ++i) {
            T* to = sums + column[i] * sums_row + n;
            over<T>(some.last - n, [&](auto at) { at.store(to, at.load(to) + value[i] * at.load(from)); });
          }
        }
      }
    }
  }
};

}  // namespace fastdream::cpu::FD_ISA
