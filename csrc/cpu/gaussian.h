#pragma once

#include "cpu/simd.h"

// Independent normals of raw statistics mean | raw std: fastdream/ops/reference/gaussian.py.
namespace fastdream::cpu::FD_ISA {

enum class StdForm : int64_t { softplus, sigmoid2 };  // STD_FORMS of fastdream/ops/native/params.py

// As torch's: x itself above 20.
template <typename T>
inline Vec<T> softplus(Vec<T> x) {
  const Vec<T> positive = x > T(0) ? x : Vec<T>{};
  return x > T(20) ? x : positive + log1p(exp(-abs(x)));
}

template <typename T>
inline Vec<T> gaussian_std(StdForm form, T min_std, Vec<T> raw) {
  return (form == StdForm::softplus ? softplus<T>(raw) : T(2) * sigmoid(raw * T(0.5))) + min_std;
}

template <typename T>
inline Vec<T> gaussian_std_slope(StdForm form, Vec<T> raw) {
  if (form == StdForm::softplus) return raw > T(20) ? splat(T(1)) : sigmoid(raw);
  const Vec<T> s = sigmoid(raw * T(0.5));
  return s * (T(1) - s);
}

// x[n] = mean + std * noise of stats[2n]
template <typename T>
void sample_gaussian(int64_t n, const T* stats, const T* noise, StdForm form, T min_std, T* x) {
  over<T>(n, [=](auto at) {
    const Vec<T> std = gaussian_std<T>(form, min_std, at.load(stats + n));
    at.store(x, at.load(stats) + std * at.load(noise));
  });
}

// What reaches the statistics of a gradient of the sample. `also`, if not null, is a gradient of them from elsewhere, which
// is added.
template <typename T>
void sample_gaussian_backward(int64_t n, const T* stats, const T* noise, const T* d_x, const T* also, StdForm form,
                              T* d_stats) {
  over<T>(n, [=](auto at) {
    const Vec<T> grad = at.load(d_x);
    const Vec<T> d_raw = grad * at.load(noise) * gaussian_std_slope<T>(form, at.load(stats + n));
    at.store(d_stats, also ? grad + at.load(also) : grad);
    at.store(d_stats + n, also ? d_raw + at.load(also + n) : d_raw);
  });
}

}  // namespace fastdream::cpu::FD_ISA
