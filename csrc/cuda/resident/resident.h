#pragma once

#include "common/resident/call.h"

// Observing in one launch, for devices of compute capability 9.0. Pointers are device memory of the current device, but
// for `failed`, which the host may read; operands are bfloat16. `stream` is a cudaStream_t. Kernels are only queued: what
// is returned is the cudaError_t of the launch, 0 if it went well, or kNoShape.
namespace fastdream::resident {

int forward(Call call, uintptr_t stream);
int backward(Call call, uintptr_t stream);

// How many teams (each takes 16 rows of the batch) the current device can run at once; minus a cudaError_t or kNoShape.
int forward_teams(const Call& call);
int backward_teams(const Call& call);

}  // namespace fastdream::resident
