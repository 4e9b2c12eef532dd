#include "cpu/lambda_return.h"

namespace fastdream::cpu {

template <typename T>
void lambda_return(const LambdaReturn<T>& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t start = row * args.steps;
    T next = args.steps > 0 ? args.value[start + args.steps - 1] : T(0);
    for (int64_t i = start + args.steps - 1; i >= start; --i) {
      next = lambda_step(args.reward[i], args.live[i], args.mix[i], args.value[i], next);
      args.ret[i] = next;
    }
  }
}

// ret[t] feeds ret[t - 1], so gradients run forward in time.
template <typename T>
void lambda_return_backward(const LambdaReturnBackward<T>& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t start = row * args.steps;
    const int64_t last = start + args.steps - 1;
    T carry = T(0);
    for (int64_t i = start; i <= last; ++i) {
      const T grad = args.grad[i] + carry;
      const T next = i < last ? args.ret[i + 1] : args.value[i];
      const LambdaGrad<T> d = lambda_step_backward(grad, args.live[i], args.mix[i], args.value[i], next);
      args.d_reward[i] = grad;
      args.d_live[i] = d.live;
      args.d_mix[i] = d.mix;
      args.d_value[i] = i < last ? d.value : d.value + d.next;  // the last step bootstraps from its own value
      carry = d.next;
    }
  }
}

template void lambda_return(const LambdaReturn<float>&);
template void lambda_return(const LambdaReturn<double>&);
template void lambda_return_backward(const LambdaReturnBackward<float>&);
template void lambda_return_backward(const LambdaReturnBackward<double>&);

}  // namespace fastdream::cpu
