#pragma once

#include "common/lambda_return.h"

// Pointers are device memory of the current device; `stream` is a cudaStream_t. Kernels are only queued; what is
// returned is the cudaError_t of the launch, 0 if it went well.
namespace fastdream::cuda {

template <typename T>
int lambda_return(const LambdaReturn<T>& args, uintptr_t stream);

template <typename T>
int lambda_return_backward(const LambdaReturnBackward<T>& args, uintptr_t stream);

}  // namespace fastdream::cuda
