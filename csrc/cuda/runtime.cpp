#include "cuda/runtime.h"

#include <cuda_runtime.h>

namespace fastdream::cuda {

const char* error_string(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  return status == cudaSuccess ? count : -static_cast<int>(status);
}

}  // namespace fastdream::cuda
