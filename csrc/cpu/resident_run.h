#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "common/resident/phase.h"

// Plays a team of CTAs in one thread, for tests of the program that the GPU runs: the same phases, slices, exchanges and
// order of sums, and products through the same layouts.
//
// Between two exchanges the GPU promises no order among CTAs, and between two wide ones none among clusters. `order` picks
// one that is possible; results that depend on it show a missing exchange. 0: phase by phase; 1: phase by phase, from the
// last CTA to the first; 2, 3: cluster by cluster, each from one wide exchange to the next, from the first or the last.
namespace fastdream::resident {

// One mma.m16n8k16 of a warp, on the elements that its lanes hold.
template <typename T>
void multiply(const T* left[kLanes], const T* right[kLanes], float (*result)[4]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 8; ++i) a[left_row(lane, i)][left_column(lane, i)] = widened(left[lane][i]);
    for (int i = 0; i < 4; ++i) b[right_row(lane, i)][right_column(lane, i)] = widened(right[lane][i]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float sum = result[lane][i];
      for (int k = 0; k < 16; ++k) sum += a[result_row(lane, i)][k] * b[k][result_column(lane, i)];
      result[lane][i] = sum;
    }
  }
}

// Products by warps `first`, first + every, ..., as those of csrc/cuda/resident/cta.cuh make them.
template <class P>
struct HostSums {
  float at[kWarps][P::strips_each][kLanes][4] = {};
};

template <class P>
struct HostHeld {
  const void* right;
};

template <int Items, int N>
struct HostTotals {
  float at[Items][N];

  float* of(int item) { return at[item]; }
};

struct HostProducts {
  int first = 0, every = 1;

  template <class P>
  using Sums = HostSums<P>;
  template <class P>
  using Held = HostHeld<P>;
  template <int Items, int N>
  using Totals = HostTotals<Items, N>;

  template <class P>
  void hold(const void* right, HostHeld<P>& held) {
    held.right = right;
  }
  template <class P, typename T>
  void multiply(const T* left, const HostHeld<P>& held, HostSums<P>& sums) {
    multiply(left, static_cast<const T*>(held.right), sums);
  }

  template <class P, typename T>
  void multiply(const T* left, const T* right, HostSums<P>& sums) {
    constexpr int pairs = P::pairs / P::split;
    for (int warp = first; warp < kWarps; warp += every) {
      for (int s = 0; s < P::strips_each; ++s) {
        if (!P::has(s, warp / P::split)) continue;
        const int strip = s * P::groups + warp / P::split;
        for (int p = 0; p < pairs; ++p) {
          const int pair = warp % P::split * pairs + p;
          for (int half = 0; half < 2; ++half) {
            const T *a[kLanes], *b[kLanes];
            for (int lane = 0; lane < kLanes; ++lane) {
              a[lane] = left + ((pair * 2 + half) * kLanes + lane) * 8;
              b[lane] = right + ((strip * P::pairs + pair) * kLanes + lane) * 8 + half * 4;
            }
            resident::multiply(a, b, sums.at[warp][s]);
          }
        }
      }
    }
  }
  template <class P, class F>
  void forget(HostSums<P>& sums, F f) {
    for (int warp = first; warp < kWarps; warp += every) {
      for (auto& strip : sums.at[warp]) {
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int i = 0; i < 4; ++i) strip[lane][i] = f(result_row(lane, i)) ? 0.0f : strip[lane][i];
        }
      }
    }
  }
  template <class P>
  void leave(const HostSums<P>& sums, float* partial) {
    for (int warp = first; warp < kWarps; warp += every) {
      for (int s = 0; s < P::strips_each; ++s) {
        if (!P::has(s, warp / P::split)) continue;
        const int strip = s * P::groups + warp / P::split, share = warp % P::split;
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const int at = (share * kRows + result_row(lane, i)) * P::row + strip * kStrip + result_column(lane, i);
            partial[at] = sums.at[warp][s][lane][i];
          }
        }
      }
    }
  }
};

// A group of lanes, one after the other.
template <int L, class State>
struct HostGroup {
  State states[L] = {};

  template <class F>
  void each(F f) {
    for (int lane = 0; lane < L; ++lane) f(lane, states[lane]);
  }
  template <int N = L>
  float sum(float State::*x) {
    for (int first = 0; first < L; first += N) {
      float total = 0.0f;
      for (int lane = first; lane < first + N; ++lane) total += states[lane].*x;
      for (int lane = first; lane < first + N; ++lane) states[lane].*x = total;
    }
    return states[0].*x;
  }
  template <int N = L, int Count>
  void sum(float (State::*x)[Count]) {
    for (int i = 0; i < Count; ++i) {
      for (int first = 0; first < L; first += N) {
        float total = 0.0f;
        for (int lane = first; lane < first + N; ++lane) total += (states[lane].*x)[i];
        for (int lane = first; lane < first + N; ++lane) (states[lane].*x)[i] = total;
      }
    }
  }
  float top(float State::*x) {
    float top = states[0].*x;
    for (const State& state : states) top = std::max(top, state.*x);
    for (State& state : states) state.*x = top;
    return top;
  }
  template <class F>
  float chain(int count, float x, F f) {
    for (int lane = 0; lane < count; ++lane) x = f(lane, states[lane], x);
    return x;
  }
};

template <class Shared>
struct HostCta : HostProducts {
  Shared& mine;
  Shared* team;  // in the order block * ranks + rank
  int block, rank, tile, ranks;

  HostCta(Shared& mine, Shared* team, int block, int rank, int tile, int ranks)
      : mine(mine), team(team), block(block), rank(rank), tile(tile), ranks(ranks) {}

  template <class F>
  void each(int n, F f) {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <int L, class State, class F>
  void groups(int n, F f) {
    for (int i = 0; i < n; ++i) {
      HostGroup<L, State> group;
      f(i, group);
    }
  }
  void sync() {}
  template <int N, typename U>
  void send(int other, U* place, const Numbers<U, N>& numbers) {
    const size_t offset = size_t(reinterpret_cast<char*>(place) - reinterpret_cast<char*>(&mine));
    store(reinterpret_cast<U*>(reinterpret_cast<char*>(&team[block * ranks + other]) + offset), numbers);
  }
  void expect(int) {}
  template <int bytes, typename U>
  void fetch(U* to, const U* from) {
    std::memcpy(to, from, bytes);
  }
  void fetched() {}
  template <int N>
  void give(float* p, const Numbers<float, N>& numbers, int) {
    store(p, numbers);
  }
  template <int N, int Count>
  void fresh(Numbers<float, N> (&parts)[Count], const float* first, int apart, int) {
    for (int k = 0; k < Count; ++k) parts[k] = load<N>(first + k * apart);
  }
};

// Phases<S, T, Cta> of each CTA, run in the order that `order` says.
template <class S, class Shared, class Phases, class Args>
class HostRun {
 public:
  HostRun(const Args& args, int tile, int order, std::vector<Shared>& team) : args_(args), order_(order) {
    // What a phase reads before it was written is NaN.
    std::memset(static_cast<void*>(team.data()), 0xff, sizeof(Shared) * team.size());
    for (int i = 0; i < S::team; ++i) {
      ctas_.emplace_back(team[i], team.data(), i / S::ranks, i % S::ranks, tile, S::ranks);
    }
  }
  ~HostRun() { flush(); }

  void phase(std::function<void(Phases&)> f) {
    pending_.push_back(std::move(f));
    if (order_ < 2) flush();
  }
  void begun() {}
  void narrow() {}
  void wide() { flush(); }

 private:
  void flush() {
    const bool backwards = order_ % 2;
    const int clusters = order_ < 2 ? 1 : S::blocks, each = S::team / clusters;
    for (int k = 0; k < clusters; ++k) {
      const int first = (backwards ? clusters - 1 - k : k) * each;
      for (auto& f : pending_) {
        for (int i = 0; i < each; ++i) {
          const int cta = first + (backwards ? each - 1 - i : i);
          Phases phases{{ctas_[cta], args_, held_[cta]}};
          f(phases);
        }
      }
    }
    pending_.clear();
  }

  const Args& args_;
  const int order_;
  std::vector<HostCta<Shared>> ctas_;
  std::vector<typename Phases::Held> held_{S::team};
  std::vector<std::function<void(Phases&)>> pending_;
};

}  // namespace fastdream::resident
