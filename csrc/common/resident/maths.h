#pragma once

#include <cmath>

#include "common/macros.h"

// The step's elementwise mathematics and its draws, in float, for one element or one categorical variable.
namespace fastdream::resident {

FD_HD float exponential(float x) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.4426950408889634f));
  return power;
#else
  return std::exp(x);
#endif
}

FD_HD float inverse_root(float x) {
#ifdef __CUDA_ARCH__
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return 1.0f / std::sqrt(x);
#endif
}

FD_HD float divided(float x, float y) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
  return x * inverse;
#else
  return x / y;
#endif
}

FD_HD float sigmoid(float x) { return divided(1.0f, 1.0f + exponential(-x)); }
FD_HD float silu(float x) { return x * sigmoid(x); }
FD_HD float silu_slope(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

// The hyperbolic tangent, to about 1e-7.
FD_HD float tangent(float x) {
#ifdef __CUDA_ARCH__
  return 2.0f * sigmoid(2.0f * x) - 1.0f;
#else
  return std::tanh(x);
#endif
}

// deter' = u * c + (1 - u) * deter, c = tanh(sigmoid(reset) * cand), u = sigmoid(update - 1)
FD_HD float gated(float reset, float cand, float update, float deter) {
  const float c = tangent(sigmoid(reset) * cand), u = sigmoid(update - 1.0f);
  return deter + u * (c - deter);
}

struct GateSlopes {
  float reset, cand, update, deter;
};

// The gradients of `gated`, of which the result has the gradient `slope`.
FD_HD GateSlopes gated_slopes(float reset, float cand, float update, float deter, float slope) {
  const float r = sigmoid(reset), c = tangent(r * cand), u = sigmoid(update - 1.0f);
  const float inner = slope * u * (1.0f - c * c);
  return {inner * cand * r * (1.0f - r), inner * r, slope * (c - deter) * u * (1.0f - u), slope * (1.0f - u)};
}

// One categorical variable, of which each lane of a group has four classes; `value` is what they exchange.
struct Classes {
  float x[4], value;
};
struct Slopes {
  float x[4], value, slope[4];
};

// The logits, of which `value` is a lane's largest, become exponentials; returns 1 / their sum. Of lanes, `used` have any.
template <class State, class Group>
FD_HD float exponentials(Group& g, int used) {
  const float top = g.top(&State::value);
  g.each([&](int lane, State& v) {
    v.value = 0.0f;
    if (lane >= used) return;
    FD_UNROLL
    for (int e = 0; e < 4; ++e) v.value += v.x[e] = exponential(v.x[e] - top);
  });
  return divided(1.0f, g.sum(&State::value));
}

// From logits as above: the number of classes whose running sum of (1 - unimix) * softmax + unimix / classes is at most
// `noise` and below the whole sum. The sum runs from the first class to the last, as that of one thread would.
template <int Count, class Group>
FD_HD int drawn(Group& g, float noise, float unimix) {
  const float share = (1.0f - unimix) * exponentials<Classes>(g, Count / 4), floor = unimix * (1.0f / Count);
  const float whole = g.chain(Count / 4, 0.0f, [&](int, Classes& v, float reached) {
    FD_UNROLL
    for (int e = 0; e < 4; ++e) v.x[e] = reached += v.x[e] * share + floor;
    return reached;
  });
  g.each([&](int lane, Classes& v) {
    v.value = 0.0f;
    if (lane >= Count / 4) return;
    FD_UNROLL
    for (int e = 0; e < 4; ++e) v.value += v.x[e] <= noise && v.x[e] < whole ? 1.0f : 0.0f;
  });
  return int(g.sum(&Classes::value));
}

// From logits as above to the gradient that reaches them from `slope`, that of the sample, as if this had been the unimixed
// probabilities.
template <class Group>
FD_HD void straight_through(Group& g, int used, float unimix) {
  const float share = exponentials<Slopes>(g, used);
  g.each([&](int lane, Slopes& v) {
    v.value = 0.0f;
    if (lane >= used) return;
    FD_UNROLL
    for (int e = 0; e < 4; ++e) v.value += (v.x[e] *= share) * v.slope[e];
  });
  const float mean = g.sum(&Slopes::value);
  g.each([&](int lane, Slopes& v) {
    if (lane >= used) return;
    FD_UNROLL
    for (int e = 0; e < 4; ++e) v.x[e] *= (1.0f - unimix) * (v.slope[e] - mean);
  });
}

}  // namespace fastdream::resident
