#pragma once

#include "common/resident/call.h"

// The program of csrc/common/resident, played on the CPU for tests.
//
// itemsize: 4 for float32, 2 for bfloat16, the products' type; order: that of resident_run.h. They return 0 or kNoShape.
namespace fastdream::resident {

int play_forward(int itemsize, Call call, int order);
int play_backward(int itemsize, Call call, int order);

}  // namespace fastdream::resident
