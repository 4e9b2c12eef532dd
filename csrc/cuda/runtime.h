#pragma once

namespace fastdream::cuda {

// The words for a status that a launch returned.
const char* error_string(int status);

// Number of devices; minus the cudaError_t where there is no usable driver.
int device_count();

}  // namespace fastdream::cuda
