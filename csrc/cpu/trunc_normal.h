#pragma once

#include "cpu/simd.h"

// Normals that are cut off: fastdream/ops/reference/gaussian.py. An action has few numbers, so they are drawn one by one,
// and in double, which has the tails that float ends before.
namespace fastdream::cpu::FD_ISA {

constexpr double kRootHalf = 0.70710678118654752, kDensity = 0.39894228040143268;  // sqrt(1 / 2), sqrt(1 / 2 pi)

// The probability that a standard normal is below x.
inline double normal_cdf(double x) { return 0.5 * __builtin_erfc(-kRootHalf * x); }

// The x that a standard normal is below with probability p, 0 < p < 1.
inline double normal_quantile(double p) {
  const double tail = p > 0.5 ? 1 - p : p;
  // Right to 4.5e-4 (Abramowitz and Stegun, 26.2.23); then two steps of Halley's method, each of which cubes the error.
  const double t = __builtin_sqrt(-2 * __builtin_log(tail));
  double x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  for (int step = 0; step < 2; ++step) {
    const double newton = (normal_cdf(-x) - tail) / (kDensity * __builtin_exp(-0.5 * x * x));
    x += newton / (1 - 0.5 * x * newton);
  }
  return p > 0.5 ? x : -x;
}

// A normal cut off outside [-1, 1], by its inverse CDF of noise uniform in [0, 1); it stays 1e-6 inside.
template <typename T>
T sample_trunc_normal(T mean, T std, T noise) {
  const double low = normal_cdf((-1 - double(mean)) / std), high = normal_cdf((1 - double(mean)) / std);
  const double p = low + noise * (high - low), least = __DBL_MIN__, most = 1 - 0.5 * __DBL_EPSILON__, end = 1 - 1e-6;
  const double x = mean + std * normal_quantile(p < least ? least : p > most ? most : p);
  return T(x < -end ? -end : x > end ? end : x);
}

}  // namespace fastdream::cpu::FD_ISA
