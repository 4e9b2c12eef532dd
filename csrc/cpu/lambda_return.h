#pragma once

#include "common/lambda_return.h"

namespace fastdream::cpu {

template <typename T>
void lambda_return(const LambdaReturn<T>& args);

template <typename T>
void lambda_return_backward(const LambdaReturnBackward<T>& args);

}  // namespace fastdream::cpu
