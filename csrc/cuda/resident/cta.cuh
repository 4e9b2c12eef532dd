#pragma once

#include <cooperative_groups.h>

#include "common/resident/phase.h"

// A CTA as csrc/common/resident/phase.h asks for it, played by the threads of a real one.
namespace fastdream::resident {

__device__ inline void multiply(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// This thread, in a way that keeps what follows from it from being computed before the scan and kept in registers.
__device__ inline int this_thread() {
  int thread;
  asm volatile("mov.b32 %0, %1;" : "=r"(thread) : "r"(threadIdx.x));
  __builtin_assume(thread >= 0 && thread < kThreads);
  return thread;
}

// L neighbouring lanes of a warp, of which this thread is one.
template <int L, class State>
struct DeviceGroup {
  static constexpr uint32_t mask = ~0u;  // whole warps have groups, or none
  const int lane;
  State state;

  template <class F>
  __device__ void each(F f) {
    f(lane, state);
  }
  template <int N = L>
  __device__ float sum(float State::*x) {
    return state.*x = add<N>(state.*x);
  }
  template <int N = L, int Count>
  __device__ void sum(float (State::*x)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) (state.*x)[i] = add<N>((state.*x)[i]);
  }
  __device__ float top(float State::*x) {
    float top = state.*x;
#pragma unroll
    for (int apart = L / 2; apart > 0; apart /= 2) top = fmaxf(top, __shfl_xor_sync(mask, top, apart));
    return state.*x = top;
  }
  template <class F>
  __device__ float chain(int count, float x, F f) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (lane == i) x = f(lane, state, x);
      x = __shfl_sync(mask, x, i, L);
    }
    return x;
  }

 private:
  template <int N>
  __device__ float add(float x) {
#pragma unroll
    for (int apart = N / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(mask, x, apart);
    return x;
  }
};

template <class S, class Shared>
struct DeviceCta {
  Shared& mine;
  int block, rank, tile;

  template <class F>
  __device__ void each(int n, F f) {
    for (int i = this_thread(); i < n; i += kThreads) f(i);
  }
  template <int L, class State, class F>
  __device__ void groups(int n, F f) {
    const int thread = this_thread();
    for (int i = thread / L; i < n; i += kThreads / L) {
      DeviceGroup<L, State> group{thread % L, {}};
      f(i, group);
    }
  }
  __device__ void sync() { __syncthreads(); }

  // A warp takes one of `split` shares of K and every groups-th strip. It reads a tile of the left operand once for all
  // of its strips.
  template <class P>
  __device__ void product(const bf16* left, const bf16* right, float* partial) {
    constexpr int pairs = P::pairs / P::split;
    const int thread = this_thread(), warp = thread / kLanes, lane = thread % kLanes;
    const int share = warp % P::split, group = warp / P::split;
    const uint4* const a = reinterpret_cast<const uint4*>(left);
    const uint4* const b = reinterpret_cast<const uint4*>(right);
    float result[P::strips_each][4] = {};
#pragma unroll 4
    for (int p = 0; p < pairs; ++p) {
      const int pair = share * pairs + p;
      const uint4 first = a[pair * 2 * kLanes + lane], second = a[(pair * 2 + 1) * kLanes + lane];
#pragma unroll
      for (int s = 0; s < P::strips_each; ++s) {
        const int strip = s * P::groups + group;
        if (P::strips % P::groups && strip >= P::strips) continue;
        const uint4 weight = b[(strip * P::pairs + pair) * kLanes + lane];
        multiply(result[s], first, weight.x, weight.y);
        multiply(result[s], second, weight.z, weight.w);
      }
    }
#pragma unroll
    for (int s = 0; s < P::strips_each; ++s) {
      const int strip = s * P::groups + group;
      if (P::strips % P::groups && strip >= P::strips) continue;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int at = (share * kRows + result_row(lane, i)) * P::row + strip * kStrip + result_column(lane, i);
        *reinterpret_cast<float2*>(partial + at) = make_float2(result[s][i], result[s][i + 1]);
      }
    }
  }

  template <typename U>
  __device__ U* peer(int other, U* p) {
    if constexpr (S::one_cluster) {
      return p;  // a block is this CTA alone
    } else {
      return cooperative_groups::this_cluster().map_shared_rank(p, other);
    }
  }

  template <int bytes, typename U>
  __device__ void fetch(U* to, const U* from) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(bytes) : "memory");
  }
  __device__ void fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }

  // Past the first cache, which does not see what others write; volatile, for the same address holds something else at
  // the next step (not every toolkit's __ldcg is).
  template <int N>
  __device__ Numbers<float, N> fresh(const float* p) {
    Numbers<float, N> x;
    if constexpr (N == 4) {
      asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(x.at[0]), "=f"(x.at[1]), "=f"(x.at[2]), "=f"(x.at[3])
                   : "l"(p));
    } else if constexpr (N == 2) {
      asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(x.at[0]), "=f"(x.at[1]) : "l"(p));
    } else {
      static_assert(N == 1, "four, two or one at a time");
      asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(x.at[0]) : "l"(p));
    }
    return x;
  }
};

}  // namespace fastdream::resident
