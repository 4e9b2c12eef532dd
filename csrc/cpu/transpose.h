#pragma once

#include "cpu/simd.h"

// Transposition in registers. Count the elements of `Vectors` vectors through; a round of `interleave` puts element i of the
// first half and element i of the second half next to each other, which turns the bits of every element's number by one to
// the left: as many rounds as Vectors has bits bring a matrix [Vectors, lanes] to [lanes, Vectors]. `separate` goes back.
namespace fastdream::cpu::FD_ISA {

// Elements index[i] of a and b, counted through. clang has it for indices that are literals alone, and makes the same
// instructions of a loop whose indices it can compute.
template <typename T>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b, IntVec<T> index) {
#if defined(__clang__)
  Vec<T> out = {};
  for (int i = 0; i < kLanes<T>; ++i) out[i] = index[i] < kLanes<T> ? a[index[i]] : b[index[i] - kLanes<T>];
  return out;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

template <typename T, int Vectors, bool Separate>
inline void rotate(const T* in, int64_t in_row, T* out, int64_t out_row) {
  constexpr int n = kLanes<T>;
  IntVec<T> one = {}, other = {};
  for (int i = 0; i < n; ++i) {
    one[i] = Separate ? 2 * i : i / 2 + (i % 2) * n;
    other[i] = one[i] + (Separate ? 1 : n / 2);
  }
  Vec<T> rows[Vectors], next[Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Vectors; ++i) rows[i] = load(in + i * in_row);
#pragma GCC unroll 4
  for (int round = 1; round < Vectors; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < Vectors / 2; ++i) {
      const Vec<T> a = Separate ? rows[2 * i] : rows[i], b = Separate ? rows[2 * i + 1] : rows[i + Vectors / 2];
      next[Separate ? i : 2 * i] = shuffle<T>(a, b, one);
      next[Separate ? i + Vectors / 2 : 2 * i + 1] = shuffle<T>(a, b, other);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < Vectors; ++i) store(out + i * out_row, rows[i]);
}

// out as [lanes, Vectors] row by row, from in[Vectors, lanes] with a vector every in_row.
template <typename T, int Vectors>
inline void interleave(const T* in, int64_t in_row, T* out, int64_t out_row) {
  rotate<T, Vectors, false>(in, in_row, out, out_row);
}

// out[Vectors, lanes] with a vector every out_row, from in as [lanes, Vectors] row by row.
template <typename T, int Vectors>
inline void separate(const T* in, int64_t in_row, T* out, int64_t out_row) {
  rotate<T, Vectors, true>(in, in_row, out, out_row);
}

// out[j, i] = in[i, j] of a square as wide as a vector.
template <typename T>
inline void transpose(const T* in, int64_t in_row, T* out, int64_t out_row) {
  interleave<T, kLanes<T>>(in, in_row, out, out_row);
}

}  // namespace fastdream::cpu::FD_ISA
