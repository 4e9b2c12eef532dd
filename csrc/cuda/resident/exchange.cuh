#pragma once

#include "common/resident/plan.h"

// How CTAs give numbers to one another, in PTX. No barrier is between them: whoever needs numbers waits for these alone.
//
// In a cluster they are stored into the receiver's shared memory, where each store also counts, at one of two mbarriers in
// turn, the bytes that have come. Through global memory every float says in its last two bits of which step it is: what is
// there from the step before, or from before the launch, differs. Nothing is overwritten that someone may still read,
// because all CTAs take part in every exchange of theirs: who is at the next has received from all that they were at this.
namespace fastdream::resident {

constexpr uint64_t kPatience = 2'000'000'000;  // nanoseconds of waiting, after which something has gone wrong

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ inline uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// Where this address is in the shared memory of another CTA of the cluster.
__device__ inline uint32_t address_in(int other, uint32_t address) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(other));
  return there;
}

// Store into the shared memory of another CTA, and count the bytes at its barrier.
__device__ inline void send(uint32_t to, uint4 word, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w), "r"(barrier)
      : "memory");
}
__device__ inline void send(uint32_t to, uint2 word, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "r"(word.x), "r"(word.y), "r"(barrier)
               : "memory");
}

__device__ inline void prepare_barrier(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ inline void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline bool has_come(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Past the first cache, which does not see what others write. What is infinite becomes NaN.
__device__ inline uint32_t marked(float x, uint32_t mark) { return (__float_as_uint(x) & ~3u) | mark; }
__device__ inline uint32_t mark_of(int step) { return 1 + step % 2; }

template <int N>
__device__ void give_words(float* p, const uint32_t (&x)[N]) {
  if constexpr (N == 4) {
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
  } else {
    static_assert(N == 1, "four or one at a time");
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(x[0]) : "memory");
  }
}

template <int N>
__device__ void take_words(const float* p, uint32_t (&x)[N]) {
  if constexpr (N == 4) {
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "l"(p));
  } else if constexpr (N == 2) {
    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "l"(p));
  } else {
    static_assert(N == 1, "four, two or one at a time");
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(x[0]) : "l"(p));
  }
}

}  // namespace fastdream::resident
