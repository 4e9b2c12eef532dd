#include "common/resident/call.h"
#include "common/resident/backward.h"
#include "cuda/resident/launch.cuh"
#include "cuda/resident/resident.h"

namespace fastdream::resident {
namespace {

using Args = BackwardArgs<bf16>;

template <class S>
__global__ void __launch_bounds__(kThreads, 1) resident_backward_kernel(const __grid_constant__ Args args) {
  using Shared = BackwardShared<S, bf16>;
  static_assert(sizeof(Shared) <= kSharedLimit, "does not fit in a CTA's shared memory");
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ uint64_t barriers[2];
  DeviceRun<S, Shared, Backward, Args> run(*reinterpret_cast<Shared*>(memory), barriers, args);
  backward_scan(run, args.length);
}

}  // namespace

int backward(Call call, uintptr_t stream) {
  return with_device_shape(call, [&](auto shape) {
    using S = decltype(shape);
    return launch<S>(resident_backward_kernel<S>, sizeof(BackwardShared<S, bf16>), backward_args<bf16>(call), call.tiles(), stream);
  });
}

int backward_teams(const Call& call) {
  return with_device_shape(call, [&](auto shape) {
    using S = decltype(shape);
    return teams<S>(resident_backward_kernel<S>, sizeof(BackwardShared<S, bf16>));
  });
}

}  // namespace fastdream::resident
