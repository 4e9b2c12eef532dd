#pragma once

#include <cmath>

#include "common/macros.h"

// The step's elementwise mathematics and its draws, in float, for one element or one categorical variable.
namespace fastdream::resident {

FD_HD float exponential(float x) {
#ifdef __CUDA_ARCH__
  return __expf(x);
#else
  return std::exp(x);
#endif
}

FD_HD float inverse_root(float x) {
#ifdef __CUDA_ARCH__
  return rsqrtf(x);
#else
  return 1.0f / std::sqrt(x);
#endif
}

FD_HD float divided(float x, float y) {
#ifdef __CUDA_ARCH__
  return __fdividef(x, y);
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

// deter' = u * c + (1 - u) * deter, c = tanh(sigmoid(reset) * cand), u = sigmoid(update - 1)
FD_HD float gated(float reset, float cand, float update, float deter) {
  const float c = tanhf(sigmoid(reset) * cand), u = sigmoid(update - 1.0f);
  return deter + u * (c - deter);
}

struct GateSlopes {
  float reset, cand, update, deter;
};

// The gradients of `gated`, of which the result has the gradient `slope`.
FD_HD GateSlopes gated_slopes(float reset, float cand, float update, float deter, float slope) {
  const float r = sigmoid(reset), c = tanhf(r * cand), u = sigmoid(update - 1.0f);
  const float inner = slope * u * (1.0f - c * c);
  return {inner * cand * r * (1.0f - r), inner * r, slope * (c - deter) * u * (1.0f - u), slope * (1.0f - u)};
}

// x, a row's logits of one variable, becomes (1 - unimix) * softmax(x) + unimix / classes, as a running sum; returns the
// number of classes whose sum is at most `noise` and below the whole sum.
template <int Classes>
FD_HD int draw(float* x, float noise, float unimix) {
  float top = x[0], total = 0.0f;
  for (int c = 1; c < Classes; ++c) top = fmaxf(top, x[c]);
  for (int c = 0; c < Classes; ++c) total += x[c] = exponential(x[c] - top);
  const float share = divided(1.0f - unimix, total), floor = unimix * (1.0f / Classes);
  float reached = 0.0f;
  for (int c = 0; c < Classes; ++c) x[c] = reached += x[c] * share + floor;
  int index = 0;
  for (int c = 0; c < Classes; ++c) index += x[c] <= noise && x[c] < reached;
  return index;
}

// x, the logits, becomes the gradient that reaches them from `slope`, that of the sample, as if this had been the unimixed
// probabilities.
template <int Classes>
FD_HD void straight_through(float* x, const float* slope, float unimix) {
  float top = x[0], total = 0.0f, mean = 0.0f;
  for (int c = 1; c < Classes; ++c) top = fmaxf(top, x[c]);
  for (int c = 0; c < Classes; ++c) total += x[c] = exponential(x[c] - top);
  const float share = divided(1.0f, total);
  for (int c = 0; c < Classes; ++c) mean += (x[c] *= share) * slope[c];
  for (int c = 0; c < Classes; ++c) x[c] *= (1.0f - unimix) * (slope[c] - mean);
}

}  // namespace fastdream::resident
