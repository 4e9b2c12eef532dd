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

// Rows of which first all statistics are taken and then all results: those of one row wait for its sums and its root, and a
// processor sees no more than one row ahead.
constexpr int64_t kGroup = 16;

// Calls body(first row, number of rows) for groups of rows.
template <typename Body>
inline void over_groups(int64_t rows, Body body) {
  for (int64_t m = 0; m < rows; m += kGroup) body(m, rows - m < kGroup ? rows - m : kGroup);
}

// y[m, n] at y[m * y_row + n] from x[m, n]; y may be x. Keeps each row's statistics where `stats` is not null.
template <typename T>
void norm_act_rows(const NormAct<T>& f, int64_t rows, int64_t n, const T* x, int64_t x_row, T* y, int64_t y_row,
                   Stats<T>* stats = nullptr) {
  with_act(f.act, [&](auto tag) {
    over_groups(rows, [&](int64_t first, int64_t height) {
      Stats<T> of_group[kGroup];
      Stats<T>* const found = stats ? stats + first : of_group;
      for (int64_t m = 0; m < height; ++m) found[m] = row_stats(f.norm, f.eps, n, x + (first + m) * x_row);
      for (int64_t m = 0; m < height; ++m) {
        const T* from = x + (first + m) * x_row;
        T* to = y + (first + m) * y_row;
        const T mean = found[m].mean, rstd = found[m].rstd;
        over<T>(n, [&](auto at) {
          at.store(to, activate<T, decltype(tag)::act>(affine(f, (at.load(from) - mean) * rstd, at)));
        });
      }
    });
  });
}

// What the gradient of a row's statistics takes from every place of it.
template <typename T>
struct Means {
  T h = 0;
  T hx = 0;
};

// h, the gradient of the normalized row, into d_x, which may be grad, not x; d_scale and d_shift [n] are added to. Without a
// norm h is d_x.
template <typename T, Act A>
inline Means<T> norm_act_row_gradient(const NormAct<T>& f, Stats<T> stats, int64_t n, const T* x, const T* grad, T* d_x,
                                      T* d_scale, T* d_shift) {
  if (f.norm == Norm::none) {
    over<T>(n, [&](auto at) { at.store(d_x, at.load(grad) * slope<T, A>(at.load(x))); });
    return {};
  }
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
  return {f.norm == Norm::layer ? sum<T>(sum_h) / T(n) : T(0), sum<T>(sum_hx) / T(n)};
}

// The gradients of every row; d_x may be grad, not x. d_scale and d_shift [n] are added to; null where they are not wanted.
// Statistics are computed again where `stats` is null.
template <typename T>
void norm_act_rows_backward(const NormAct<T>& f, int64_t rows, int64_t n, const T* x, int64_t x_row, const T* grad,
                            int64_t grad_row, T* d_x, int64_t d_x_row, T* d_scale, T* d_shift,
                            const Stats<T>* stats = nullptr) {
  with_act(f.act, [&](auto tag) {
    over_groups(rows, [&](int64_t first, int64_t height) {
      Stats<T> of_group[kGroup];
      Means<T> means[kGroup];
      for (int64_t m = 0; m < height; ++m) {
        of_group[m] = stats ? stats[first + m] : row_stats(f.norm, f.eps, n, x + (first + m) * x_row);
      }
      for (int64_t m = 0; m < height; ++m) {
        const int64_t row = first + m;
        means[m] = norm_act_row_gradient<T, decltype(tag)::act>(f, of_group[m], n, x + row * x_row, grad + row * grad_row,
                                                                d_x + row * d_x_row, d_scale, d_shift);
      }
      for (int64_t m = 0; f.norm != Norm::none && m < height; ++m) {
        const T* from = x + (first + m) * x_row;
        T* to = d_x + (first + m) * d_x_row;
        const T mean = of_group[m].mean, rstd = of_group[m].rstd, h = means[m].h, hx = means[m].hx;
        over<T>(n, [&](auto at) {
          const Vec<T> normalized = (at.load(from) - mean) * rstd;
          at.store(to, rstd * (at.load(to) - h - normalized * hx));
        });
      }
    });
  });
}

}  // namespace fastdream::cpu::FD_ISA
