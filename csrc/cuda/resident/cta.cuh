#pragma once

#include "common/resident/phase.h"
#include "cuda/resident/exchange.cuh"

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

// A pair of tiles of the left operand times one of the right.
__device__ inline void multiply_pair(float (&sums)[4], const uint4& low, const uint4& high, const uint4& right) {
  multiply(sums, low, right.x, right.y);
  multiply(sums, high, right.z, right.w);
}

// Of one thread: results so far of its warp's strips, and its warp's weights.
template <class P>
struct DeviceSums {
  float at[P::strips_each][4];
};
template <class P>
struct DeviceHeld {
  uint4 at[P::pairs / P::split][P::strips_each];
};

template <int Items, int N>
struct DeviceTotals {
  static_assert(Items <= kThreads, "one item a thread");
  float at[N];

  __device__ float* of(int) { return at; }
};

template <class S, class Shared>
struct DeviceCta {
  Shared& mine;
  const int block, rank, tile;
  uint64_t* const barriers;  // two, in shared memory
  int32_t* const failed;
  uint32_t exchanges = 0;
  int expected = 0;
  bool gave_up = false;

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

  // A warp takes one of `split` shares of the pairs and every groups-th strip. It reads a tile of the left operand once for
  // all of its strips.
  template <class P>
  using Sums = DeviceSums<P>;
  template <class P>
  using Held = DeviceHeld<P>;
  template <int Items, int N>
  using Totals = DeviceTotals<Items, N>;

  template <class P>
  __device__ void multiply(const bf16* left, const bf16* right, DeviceSums<P>& sums) {
    constexpr int pairs = P::pairs / P::split;
    const int thread = this_thread(), warp = thread / kLanes, lane = thread % kLanes;
    const int share = warp % P::split * pairs, group = warp / P::split;
    const uint4* const a = reinterpret_cast<const uint4*>(left) + share * 2 * kLanes + lane;
    const uint4* const b = reinterpret_cast<const uint4*>(right) + (group * P::pairs + share) * kLanes + lane;
#pragma unroll 4
    for (int p = 0; p < pairs; ++p) {
      const uint4 low = a[p * 2 * kLanes], high = a[(p * 2 + 1) * kLanes];
#pragma unroll
      for (int s = 0; s < P::strips_each; ++s) {
        if (!P::has(s, group)) continue;
        multiply_pair(sums.at[s], low, high, b[(s * P::groups * P::pairs + p) * kLanes]);
      }
    }
  }
  template <class P>
  __device__ void multiply(const bf16* left, const DeviceHeld<P>& held, DeviceSums<P>& sums) {
    constexpr int pairs = P::pairs / P::split;
    const int thread = this_thread(), warp = thread / kLanes, lane = thread % kLanes;
    const uint4* const a = reinterpret_cast<const uint4*>(left) + warp % P::split * pairs * 2 * kLanes + lane;
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
      const uint4 low = a[p * 2 * kLanes], high = a[(p * 2 + 1) * kLanes];
#pragma unroll
      for (int s = 0; s < P::strips_each; ++s) multiply_pair(sums.at[s], low, high, held.at[p][s]);
    }
  }
  template <class P>
  __device__ void hold(const bf16* right, DeviceHeld<P>& held) {
    constexpr int pairs = P::pairs / P::split;
    const int thread = this_thread(), warp = thread / kLanes, lane = thread % kLanes, group = warp / P::split;
    const uint4* const b = reinterpret_cast<const uint4*>(right) + (group * P::pairs + warp % P::split * pairs) * kLanes + lane;
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
#pragma unroll
      for (int s = 0; s < P::strips_each; ++s) {
        held.at[p][s] = P::has(s, group) ? b[(s * P::groups * P::pairs + p) * kLanes] : uint4{};
      }
    }
  }
  template <class P, class F>
  __device__ void forget(DeviceSums<P>& sums, F f) {
    const int lane = this_thread() % kLanes;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (!f(result_row(lane, i))) continue;
#pragma unroll
      for (int s = 0; s < P::strips_each; ++s) sums.at[s][i] = sums.at[s][i + 1] = 0.0f;
    }
  }
  template <class P>
  __device__ void leave(const DeviceSums<P>& sums, float* partial) {
    const int thread = this_thread(), warp = thread / kLanes, lane = thread % kLanes;
    const int share = warp % P::split, group = warp / P::split;
#pragma unroll
    for (int s = 0; s < P::strips_each; ++s) {
      if (!P::has(s, group)) continue;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int column = (s * P::groups + group) * kStrip + result_column(lane, i);
        float* const to = partial + (share * kRows + result_row(lane, i)) * P::row + column;
        store(to, Numbers<float, 2>{sums.at[s][i], sums.at[s][i + 1]});
      }
    }
  }

  template <int N, typename U>
  __device__ void send(int other, U* place, const Numbers<U, N>& numbers) {
    Word<N * sizeof(U)> word;
    memcpy(&word, &numbers, sizeof(word));
    resident::send(address_in(other, shared_address(place)), word, address_in(other, barrier()));
  }
  __device__ void expect(int bytes) { expected += bytes; }

  // Until the others' have come.
  __device__ void receive() {
    if (threadIdx.x == 0) expect_bytes(barrier(), expected);
    wait([&] { return has_come(barrier(), exchanges / 2 % 2); });
    ++exchanges;
    expected = 0;
  }

  template <int bytes, typename U>
  __device__ void fetch(U* to, const U* from) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(bytes) : "memory");
  }
  __device__ void fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }

  template <int N>
  __device__ void give(float* p, const Numbers<float, N>& numbers, int step) {
    uint32_t words[N];
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = marked(numbers.at[i], mark_of(step));
    give_words(p, words);
  }

  // All are read before one is looked at. The mark stays in the numbers, as little as it is.
  template <int N, int Count>
  __device__ void fresh(Numbers<float, N> (&parts)[Count], const float* first, int apart, int step) {
    wait([&] {
      uint32_t words[Count][N], others = 0;
#pragma unroll
      for (int k = 0; k < Count; ++k) take_words(first + k * apart, words[k]);
#pragma unroll
      for (int k = 0; k < Count; ++k) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          others |= words[k][i] ^ mark_of(step);
          parts[k].at[i] = __uint_as_float(words[k][i]);
        }
      }
      return (others & 3) == 0;
    });
  }

 private:
  // A thread that waited in vain says so and waits no more: the kernel ends, and the host sees the flag at its next call.
  template <class Ready>
  __device__ void wait(Ready ready) {
    uint64_t since = 0;
    for (uint32_t tries = 1; !ready() && !gave_up; ++tries) {
      if (tries % 1024) continue;
      if (since == 0) since = nanoseconds();
      if (nanoseconds() - since < kPatience) continue;
      gave_up = true;
      *static_cast<volatile int32_t*>(failed) = 1;
      __threadfence_system();
    }
  }
  __device__ uint32_t barrier() const { return shared_address(barriers + exchanges % 2); }
};

}  // namespace fastdream::resident
