#pragma once

#include <cstdint>

#include "macros.h"

// Lambda-returns, [rows, steps], contiguous:
//
//   ret[t] = reward[t] + live[t] * ((1 - mix[t]) * value[t] + mix[t] * ret[t + 1]),   ret[steps] := value[steps - 1]
//
// live is the discount times the chance of going on, mix is lambda (0 where a sequence is cut), value[t] is the value
// of the state after step t. The caller owns all memory; outputs must not overlap inputs.
namespace fastdream {

template <typename T>
struct LambdaReturn {
  const T* reward;
  const T* live;
  const T* mix;
  const T* value;
  T* ret;
  int64_t rows;
  int64_t steps;
};

// Gradients of a loss with respect to the four inputs, from its gradient `grad` with respect to ret.
template <typename T>
struct LambdaReturnBackward {
  const T* grad;
  const T* live;
  const T* mix;
  const T* value;
  const T* ret;
  T* d_reward;
  T* d_live;
  T* d_mix;
  T* d_value;
  int64_t rows;
  int64_t steps;
};

// `next` is ret[t + 1].
template <typename T>
FD_HD T lambda_step(T reward, T live, T mix, T value, T next) {
  return reward + live * ((T(1) - mix) * value + mix * next);
}

template <typename T>
struct LambdaGrad {
  T live;
  T mix;
  T value;
  T next;  // what flows on to ret[t + 1]
};

// `grad` is the whole gradient that reaches ret[t], which is also that of reward[t].
template <typename T>
FD_HD LambdaGrad<T> lambda_step_backward(T grad, T live, T mix, T value, T next) {
  const T scaled = grad * live;
  return {grad * ((T(1) - mix) * value + mix * next), scaled * (next - value), scaled * (T(1) - mix), scaled * mix};
}

}  // namespace fastdream
