#pragma once

#include <cooperative_groups.h>

#include "cuda/resident/cta.cuh"

namespace fastdream::resident {

// Phases<S, T, Cta> of the CTA that this thread belongs to.
template <class S, class Shared, template <class, typename, class> class Phases, class Args>
class DeviceRun {
 public:
  using Cta = DeviceCta<S, Shared>;

  __device__ DeviceRun(Shared& shared, uint64_t* barriers, const Args& args)
      : cta_{shared,   int(blockIdx.x) % S::team / S::ranks, int(blockIdx.x) % S::ranks, int(blockIdx.x) / S::team,
             barriers, args.failed},
        args_(args) {}

  template <class F>
  __device__ void phase(F f) {
    Phases<S, bf16, Cta> phases{{cta_, args_, held_}};
    stamp();
    f(phases);
    stamp();
  }

  // Nobody sends to a CTA that has not begun.
  __device__ void begun() {
    if constexpr (S::ranks > 1) {
      if (threadIdx.x < 2) prepare_barrier(shared_address(cta_.barriers + threadIdx.x));
      cooperative_groups::this_cluster().sync();
    } else {
      __syncthreads();
    }
  }

  __device__ void narrow() {
    if constexpr (S::ranks > 1) cta_.receive();
  }

  __device__ void wide() {}  // who needs others' numbers waits for these

 private:
  __device__ void stamp() {
    if (args_.clocks == nullptr) return;
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) args_.clocks[stamps_++] = clock64();
  }

  Cta cta_;
  typename Phases<S, bf16, Cta>::Held held_;
  const Args& args_;
  int32_t stamps_ = 0;
};

}  // namespace fastdream::resident
