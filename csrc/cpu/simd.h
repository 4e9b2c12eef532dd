#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Vectors of T as wide as the instruction set that this file is compiled for, and the elementary functions on them.
// Every kernel is compiled once for each instruction set, in a namespace of its own (FD_ISA), so that no function of
// one can be linked into another. For the same reason kernels use no templates of the standard library.
#ifndef FD_ISA
#define FD_ISA portable
#endif

namespace fastdream::cpu::FD_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kMaxRows = 8;  // of a micro-kernel: 2 * 8 sums hide the latency of the adders; 12 rows at a power of two
                            // from one another would not fit the eight ways of the first-level cache
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kMaxRows = 6;  // of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kMaxRows = 6;  // of 16 registers; aarch64 has 32, but more rows have not been measured there
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::Type;
template <typename T>
using IntVec = typename VectorOf<T>::Int;  // what comparisons of Vec<T> give: -1 where true
template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(p);
}

template <typename T>
inline void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VectorOf<T>::Unaligned*>(p) = x;
}

// The first n lanes; the rest is zero.
template <typename T>
inline Vec<T> load_part(const T* p, int64_t n) {
  Vec<T> x = {};
  __builtin_memcpy(&x, p, size_t(n) * sizeof(T));
  return x;
}

template <typename T>
inline void store_part(T* p, Vec<T> x, int64_t n) {
  __builtin_memcpy(p, &x, size_t(n) * sizeof(T));
}

// A copy whose length is known at run time alone costs as much as twenty vectors; a masked load as much as one.
#if defined(__AVX512F__)
template <>
inline Vec<float> load_part(const float* p, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
template <>
inline void store_part(float* p, Vec<float> x, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x);
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load_part(const float* p, int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Vec<float>)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane));
}
#endif

template <typename T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0 is x for every x and costs nothing; 0 + x is an addition, for the sake of -0
}

// Calls body(at) over n elements, `at` one vector or the part of one that is left, known at compile time, so that whole
// vectors have no branch:  over<T>(n, [&](auto at) { at.store(y, f(at.load(x))); })
template <typename T>
struct Whole {
  int64_t i;
  Vec<T> load(const T* p) const { return FD_ISA::load(p + i); }
  void store(T* p, Vec<T> x) const { FD_ISA::store(p + i, x); }
  Vec<T> only(Vec<T> x) const { return x; }  // zero outside of the n elements
};
template <typename T>
struct Part {
  int64_t i, n;
  Vec<T> load(const T* p) const { return load_part(p + i, n); }
  void store(T* p, Vec<T> x) const { store_part(p + i, x, n); }
  Vec<T> only(Vec<T> x) const { return load_part(reinterpret_cast<const T*>(&x), n); }
};
template <typename T, typename Body>
inline void over(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(Whole<T>{i});
  if (i < n) body(Part<T>{i, n - i});
}

// Halves are added to halves, so that the sum of n equal lanes is exact and every width sums alike.
template <typename T>
inline T sum(Vec<T> x) {
  T lanes[kLanes<T>];
  __builtin_memcpy(lanes, &x, sizeof x);
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <typename T>
inline T max(Vec<T> x) {
  T lanes[kLanes<T>];
  __builtin_memcpy(lanes, &x, sizeof x);
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

template <typename V>
inline V min(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
inline V max_of(V a, V b) {
  return a > b ? a : b;
}

// double is for checks: lane by lane through libm.
template <typename F>
inline Vec<double> each(Vec<double> x, F f) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = f(x[i]);
  return x;
}

inline Vec<double> abs(Vec<double> x) { return each(x, [](double v) { return __builtin_fabs(v); }); }
inline Vec<double> sqrt(Vec<double> x) { return each(x, [](double v) { return __builtin_sqrt(v); }); }
inline Vec<double> exp(Vec<double> x) { return each(x, [](double v) { return __builtin_exp(v); }); }
inline Vec<double> log(Vec<double> x) { return each(x, [](double v) { return __builtin_log(v); }); }
inline Vec<double> tanh(Vec<double> x) { return each(x, [](double v) { return __builtin_tanh(v); }); }
inline Vec<double> log1p(Vec<double> x) { return each(x, [](double v) { return __builtin_log1p(v); }); }
inline Vec<double> expm1(Vec<double> x) { return each(x, [](double v) { return __builtin_expm1(v); }); }

inline Vec<float> abs(Vec<float> x) { return (Vec<float>)((IntVec<float>)x & 0x7fffffff); }

inline Vec<float> sqrt(Vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);  // the compiler makes it one instruction
  return x;
}

// 2^n of whole numbers -252 ... 254, in two factors so that results near both ends of the range come out.
inline Vec<float> scale_by_power(Vec<float> x, IntVec<float> n) {
  const IntVec<float> half = n >> 1;
  x *= (Vec<float>)((half + 127) << 23);
  return x * (Vec<float>)((n - half + 127) << 23);
}

// x = n ln2 + r, |r| <= ln2 / 2; returns r. ln2 in two parts, of which n times the first is exact.
inline Vec<float> reduce(Vec<float> x, IntVec<float>& n) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec<float> whole = (x * 1.44269504088896341f + kRound) - kRound;
  n = __builtin_convertvector(whole, IntVec<float>);
  return (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
}

// e^r - 1 of |r| <= ln2 / 2 (Cephes' polynomial), with an error of about an ulp of the result.
inline Vec<float> expm1_reduced(Vec<float> r) {
  Vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r;
}

// NaN stays NaN, overflow gives infinity, what would be less than the smallest normal number gives 0.
#if defined(__AVX512F__)
inline Vec<float> exp(Vec<float> x) {
  // Of two operands these return the second if one is NaN. (Masks of all lanes: without, gcc 12 warns of its own header.)
  const __m512 low = _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(89.0f), (__m512)x);
  const __m512 clipped = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-104.0f), low);
  constexpr float kRound = 12582912.0f;  // as in `reduce`
  const Vec<float> whole = ((Vec<float>)clipped * 1.44269504088896341f + kRound) - kRound;
  const Vec<float> r = ((Vec<float>)clipped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  const Vec<float> y = (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)(expm1_reduced(r) + 1.0f), (__m512)whole);
  return x < -87.33654f ? splat(0.0f) : y;
}
#else
inline Vec<float> exp(Vec<float> x) {
  const Vec<float> clipped = x > 89.0f ? splat(89.0f) : x < -88.0f ? splat(-88.0f) : x;
  IntVec<float> n;
  const Vec<float> r = reduce(clipped == clipped ? clipped : splat(0.0f), n);
  Vec<float> y = scale_by_power(expm1_reduced(r) + 1.0f, n);
  y = x < -87.33654f ? splat(0.0f) : y;
  return x == x ? y : x;
}
#endif

inline Vec<float> expm1(Vec<float> x) {
  const Vec<float> clipped = x > 89.0f ? splat(89.0f) : x < -87.0f ? splat(-87.0f) : x;
  IntVec<float> n;
  const Vec<float> r = reduce(clipped == clipped ? clipped : splat(0.0f), n);
  const Vec<float> half = (Vec<float>)((n + 126) << 23);  // of 2^n, which is infinite before the result is
  const Vec<float> y = n == 0 ? expm1_reduced(r) : (half * expm1_reduced(r) + (half - 0.5f)) * 2.0f;
  return x == x ? y : x;
}

// log of mantissa * 2^n with mantissa in [sqrt(1/2), sqrt(2)) (Cephes). 0 gives -infinity, negative numbers NaN.
inline Vec<float> log(Vec<float> x) {
  const IntVec<float> tiny = x < 1.17549435e-38f;  // subnormal numbers count as 0
  const IntVec<float> bits = (IntVec<float>)x;
  IntVec<float> n = ((bits >> 23) & 0xff) - 126;
  Vec<float> m = (Vec<float>)((bits & 0x007fffff) | 0x3f000000);  // [1/2, 1)
  const IntVec<float> low = m < 0.707106781186547524f;
  n += low;  // -1 where low
  m = (low ? m + m : m) - 1.0f;
  Vec<float> p = splat(7.0376836292e-2f);
  p = p * m + -1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m + -1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m + -1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m + -2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Vec<float> square = m * m, count = __builtin_convertvector(n, Vec<float>);
  Vec<float> y = p * m * square + count * -2.12194440e-4f - 0.5f * square;
  y = m + y + count * 0.693359375f;
  y = tiny ? splat(-__builtin_inff()) : y;
  y = x < 0.0f ? splat(__builtin_nanf("")) : y;
  return x < __builtin_inff() ? y : x;  // infinity and NaN stay
}

// log(u) with the error of u = 1 + x made good (Kahan).
inline Vec<float> log1p(Vec<float> x) {
  const Vec<float> u = 1.0f + x;
  const Vec<float> y = log(u) + (x - (u - 1.0f)) / u;
  return u == 1.0f ? x : u < __builtin_inff() ? y : log(u);
}

// x / (1 + e), e >= 0: an estimate of the reciprocal and two corrections, in place of a division. Beyond 1e38
// the estimate has no normal number left to be, and the result is none either.
#if defined(__AVX512F__)
inline Vec<float> over_one_plus(Vec<float> x, Vec<float> e) {
  const Vec<float> divisor = 1.0f + e;
  Vec<float> inverse = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)divisor);
  inverse = inverse * (2.0f - divisor * inverse);
  const Vec<float> quotient = x * inverse;
  return divisor > 1e38f ? splat(0.0f) : quotient + inverse * (x - divisor * quotient);
}
#else
inline Vec<float> over_one_plus(Vec<float> x, Vec<float> e) { return x / (1.0f + e); }
#endif
inline Vec<double> over_one_plus(Vec<double> x, Vec<double> e) { return x / (1.0 + e); }

// A polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel (Cephes).
inline Vec<float> tanh(Vec<float> x) {
  const Vec<float> size = abs(x), square = x * x;
  Vec<float> p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square + -5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square + -3.33332819422e-1f;
  const Vec<float> near = p * square * x + x;
  const Vec<float> far = 1.0f - over_one_plus(splat(2.0f), exp(size + size));
  return size < 0.625f ? near : x < 0.0f ? -far : x != x ? x : far;
}

template <typename V>
inline V sigmoid(V x) {
  return over_one_plus(V{} + 1, exp(-x));
}

}  // namespace fastdream::cpu::FD_ISA
