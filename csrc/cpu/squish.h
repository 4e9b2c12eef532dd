#pragma once

#include "cpu/simd.h"

// What vectors that an environment shows go through before a net sees them.
namespace fastdream::cpu::FD_ISA {

// sign(x) * log(1 + |x|)
template <typename T>
inline Vec<T> squish(Vec<T> x) {
  const Vec<T> y = log1p(abs(x));
  return x < T(0) ? -y : y;
}

// y[n] = squish(x); zeros if x holds -infinity anywhere, which says that it is missing.
template <typename T>
void squish_vector(int64_t n, const T* x, T* y) {
  IntVec<T> seen = {};
  over<T>(n, [&](auto at) {
    const Vec<T> from = at.load(x);
    seen |= from == T(-__builtin_inf());
    at.store(y, squish<T>(from));
  });
  for (int i = 0; i < kLanes<T>; ++i) {
    if (seen[i]) return void(__builtin_memset(y, 0, size_t(n) * sizeof(T)));
  }
}

}  // namespace fastdream::cpu::FD_ISA
