#pragma once

#include "cpu/call.h"
#include "cpu/simd.h"

// Norm over a row, then activation, and its gradient: fastdream/ops/reference/layers.py (norm_act), row by row.
//
//   y = act(u),  u = (x - mean) * rstd * scale + shift;  u = x without a norm
//
// rms has mean 0 and rstd = 1 / sqrt(mean(x^2) + eps), layer the biased variance about its mean.
namespace fastdream::cpu::FD_ISA {

// In the order of NORMS and ACTS of fastdream/ops/native/params.py.
enum class Norm : int64_t { none, rms, layer };
enum class Act : int64_t { none, silu, gelu, elu, relu, tanh };  // gelu is the tanh form

template <typename T>
struct NormAct {
  const T* scale = nullptr;  // [n]; null: ones
  const T* shift = nullptr;  // [n]; null: zeros
  Norm norm = Norm::none;
  Act act = Act::none;
  T eps = 0;
};

// Reads pointers scale, shift; sizes norm, act; scalar eps.
template <typename T>
NormAct<T> read_norm_act(Call& call) {
  NormAct<T> f;
  f.scale = call.pointer<const T>();
  f.shift = call.pointer<const T>();
  f.norm = Norm(call.size());
  f.act = Act(call.size());
  f.eps = T(call.scalar());
  return f;
}

constexpr double kGelu = 1.5957691216057308, kGeluCube = kGelu * 0.044715;  // 2 sqrt(2 / pi)

template <typename T, Act A>
inline Vec<T> activate(Vec<T> x) {
  if constexpr (A == Act::silu) return over_one_plus(x, exp(-x));
  // (1 + tanh(w)) / 2 is the sigmoid of 2 w, which does not cancel.
  if constexpr (A == Act::gelu) return x * sigmoid(x * (T(kGelu) + T(kGeluCube) * x * x));
  if constexpr (A == Act::elu) return x > T(0) ? x : expm1(x > T(0) ? Vec<T>{} : x);
  if constexpr (A == Act::relu) return x < T(0) ? Vec<T>{} : x;
  if constexpr (A == Act::tanh) return tanh(x);
  return x;
}

template <typename T, Act A>
inline Vec<T> slope(Vec<T> x) {
  if constexpr (A == Act::silu) {
    const Vec<T> s = sigmoid(x);
    return s * (T(1) + x * (T(1) - s));
  }
  if constexpr (A == Act::gelu) {
    const Vec<T> square = x * x, s = sigmoid(x * (T(kGelu) + T(kGeluCube) * square));
    return s + x * s * (T(1) - s) * (T(kGelu) + T(3 * kGeluCube) * square);
  }
  if constexpr (A == Act::elu) return x > T(0) ? splat(T(1)) : exp(x);
  if constexpr (A == Act::relu) return x <= T(0) ? Vec<T>{} : splat(T(1));
  if constexpr (A == Act::tanh) {
    const Vec<T> y = tanh(x);
    return T(1) - y * y;
  }
  return splat(T(1));
}

// Calls body(tag) with the activation as a constant, tag.act, so that no inner loop asks for it.
template <Act A>
struct ActTag {
  static constexpr Act act = A;
};
template <typename Body>
inline void with_act(Act act, Body body) {
  switch (act) {
    case Act::none: return body(ActTag<Act::none>{});
    case Act::silu: return body(ActTag<Act::silu>{});
    case Act::gelu: return body(ActTag<Act::gelu>{});
    case Act::elu: return body(ActTag<Act::elu>{});
    case Act::relu: return body(ActTag<Act::relu>{});
    case Act::tanh: return body(ActTag<Act::tanh>{});
  }
}

// Sum of term(x) over a row, in four chains of vectors so that no addition waits for the one before.
template <typename T, typename Term>
inline T sum_row(int64_t n, const T* x, Term term) {
  Vec<T> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= n; i += 4 * kLanes<T>) {
#pragma GCC unroll 4
    for (int chain = 0; chain < 4; ++chain) sums[chain] += term(load(x + i + chain * kLanes<T>));
  }
  for (; i + kLanes<T> <= n; i += kLanes<T>) sums[0] += term(load(x + i));
  if (i < n) sums[1] += Part<T>{i, n - i}.only(term(load_part(x + i, n - i)));
  return sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename T>
struct Stats {
  T mean = 0;
  T rstd = 1;
};

template <typename T>
inline Stats<T> row_stats(Norm norm, T eps, int64_t n, const T* x) {
  Stats<T> stats;
  if (norm == Norm::none) return stats;
  if (norm == Norm::layer) stats.mean = sum_row(n, x, [](Vec<T> v) { return v; }) / T(n);
  const T mean = stats.mean;
  const T square = sum_row(n, x, [=](Vec<T> v) { return (v - mean) * (v - mean); });
  stats.rstd = T(1) / T(__builtin_sqrt(square / T(n) + eps));
  return stats;
}

// What is activated, at one place `at` of a row.
template <typename T, typename At>
inline Vec<T> affine(const NormAct<T>& f, Vec<T> normalized, At at) {
  if (f.norm == Norm::none) return normalized;
  Vec<T> u = normalized;
  if (f.scale) u *= at.load(f.scale);
  if (f.shift) u += at.load(f.shift);
  return u;
}

template <typename T, Act A>
inline Stats<T> norm_act_row(const NormAct<T>& f, int64_t n, const T* x, T* y) {
  const Stats<T> stats = row_stats(f.norm, f.eps, n, x);
  over<T>(n, [&](auto at) { at.store(y, activate<T, A>(affine(f, (at.load(x) - stats.mean) * stats.rstd, at))); });
  return stats;
}

// y[m, n] at y[m * y_row + n] from x[m, n]; y may be x. Keeps each row's statistics where `stats` is not null.
template <typename T>
void norm_act_rows(const NormAct<T>& f, int64_t rows, int64_t n, const T* x, int64_t x_row, T* y, int64_t y_row,
                   Stats<T>* stats = nullptr) {
  with_act(f.act, [&](auto tag) {
    for (int64_t m = 0; m < rows; ++m) {
      const Stats<T> found = norm_act_row<T, decltype(tag)::act>(f, n, x + m * x_row, y + m * y_row);
      if (stats) stats[m] = found;
    }
  });
}

// d_x may be grad, not x. d_scale and d_shift [n] are added to; null where they are not wanted.
template <typename T, Act A>
inline void norm_act_row_backward(const NormAct<T>& f, Stats<T> stats, int64_t n, const T* x, const T* grad, T* d_x,
                                  T* d_scale, T* d_shift) {
  if (f.norm == Norm::none) {
    over<T>(n, [&](auto at) { at.store(d_x, at.load(grad) * slope<T, A>(at.load(x))); });
    return;
  }
  // First h, the gradient of the normalized row, and what the row's statistics pass on of it.
  Vec<T> sum_h = {}, sum_hx = {};
  over<T>(n, [&](auto at) {
    const Vec<T> normalized = at.only((at.load(x) - stats.mean) * stats.rstd);
    const Vec<T> g = at.load(grad) * slope<T, A>(affine(f, normalized, at));
    if (d_scale) at.store(d_scale, at.load(d_scale) + g * normalized);
    if (d_shift) at.store(d_shift, at.load(d_shift) + g);
    const Vec<T> h = f.scale ? g * at.load(f.scale) : g;
    at.store(d_x, h);
    sum_h += h;
    sum_hx += h * normalized;
  });
  const T mean_hx = sum<T>(sum_hx) / T(n), mean_h = f.norm == Norm::layer ? sum<T>(sum_h) / T(n) : T(0);
  over<T>(n, [&](auto at) {
    const Vec<T> normalized = (at.load(x) - stats.mean) * stats.rstd;
    at.store(d_x, stats.rstd * (at.load(d_x) - mean_h - normalized * mean_hx));
  });
}

// As norm_act_row_backward for every row; statistics are computed again where `stats` is null.
template <typename T>
void norm_act_rows_backward(const NormAct<T>& f, int64_t rows, int64_t n, const T* x, int64_t x_row, const T* grad,
                            int64_t grad_row, T* d_x, int64_t d_x_row, T* d_scale, T* d_shift,
                            const Stats<T>* stats = nullptr) {
  with_act(f.act, [&](auto tag) {
    for (int64_t m = 0; m < rows; ++m) {
      const Stats<T> of_row = stats ? stats[m] : row_stats(f.norm, f.eps, n, x + m * x_row);
      norm_act_row_backward<T, decltype(tag)::act>(f, of_row, n, x + m * x_row, grad + m * grad_row, d_x + m * d_x_row,
                                                   d_scale, d_shift);
    }
  });
}

}  // namespace fastdream::cpu::FD_ISA
