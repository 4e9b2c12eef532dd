#pragma once

#include "cuda/resident/cta.cuh"

// The exchanges between phases: barriers of a cluster, and of all CTAs of a team through a counter in global memory.
namespace fastdream::resident {

constexpr uint64_t kPatience = 2'000'000'000;  // nanoseconds at a barrier, after which something has gone wrong

__device__ inline uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// Phases<S, T, Cta> of this CTA.
template <class S, class Cta, class Phases, class Args>
class DeviceRun {
 public:
  __device__ DeviceRun(Cta& cta, const Args& args) : cta_(cta), args_(args) {}

  template <class F>
  __device__ void phase(F f) {
    Phases phases{{cta_, args_}};
    stamp();
    f(phases);
    stamp();
  }

  __device__ void narrow() {
    if constexpr (S::one_cluster) {
      __syncthreads();
    } else {
      cooperative_groups::this_cluster().sync();
    }
  }

  __device__ void wide() {
    if constexpr (S::one_cluster) {
      cooperative_groups::this_cluster().sync();
    } else {
      meet();
    }
  }

 private:
  __device__ void stamp() {
    if (args_.clocks == nullptr) return;
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) args_.clocks[stamps_++] = clock64();
  }

  // One thread arrives for its CTA and waits until all have. The counter only grows, so it is never reset between two
  // meetings: the n-th is over at n * team. Release and acquire at GPU scope order everything before the first
  // __syncthreads of any CTA before everything after the second one of any other.
  __device__ void meet() {
    __syncthreads();
    if (threadIdx.x == 0) {
      target_ += S::team;
      int32_t* const counter = args_.barrier + cta_.tile;
      asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
      wait(counter);
    }
    __syncthreads();
  }

  // A CTA that waited in vain says so and waits no more: the kernel ends, and the host sees the flag at its next call.
  __device__ void wait(const int32_t* counter) {
    uint64_t since = 0;
    for (uint32_t tries = 1; !failed_; ++tries) {
      int32_t count;
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
      if (count - target_ >= 0) return;
      if (tries % 1024) continue;
      if (since == 0) since = nanoseconds();
      if (nanoseconds() - since < kPatience) continue;
      failed_ = true;
      *static_cast<volatile int32_t*>(args_.failed) = 1;
      __threadfence_system();
    }
  }

  Cta& cta_;
  const Args& args_;
  int32_t target_ = 0, stamps_ = 0;
  bool failed_ = false;
};

}  // namespace fastdream::resident
