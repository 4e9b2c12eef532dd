#pragma once

#include "common/resident/maths.h"
#include "common/resident/plan.h"

// What the phases of both directions share.
//
// A phase is what one CTA computes between two exchanges: a function of the CTA and the step. It is written once, for
// whoever plays the CTA:
//
//   c.block, c.rank, c.tile          which one it is
//   c.mine                           its shared memory
//   c.each(n, f)                     f(0) ... f(n - 1), shared among its threads
//   c.template groups<L, State>(n, f)  f(0, g) ... f(n - 1, g), shared among groups of L lanes of a warp, L a power of 2 and n * L
//                                    whole warps; groups of a warp call the same of these:
//     g.each(f)                      f(lane, state) for each lane, with the State that it keeps
//     g.sum(&State::x), g.top(...)   x, a float or floats, becomes the sum or the largest of all lanes'
//     g.chain(n, x, f)               x = f(lane, state, x) for lanes 0 ... n - 1 in turn; returns the last x
//   c.sync()                         what its threads wrote is seen by all of them
//   Sums<P>                          results of a [16, K] times b [K, N] so far, of which each warp has its part
//   c.multiply(a, b, sums)           add one more
//   c.forget(sums, f)                rows m with f(m) become zeros
//   c.leave(sums, to)                the sums, as partial results
//   Held<P>                          the weights b of a product in registers, which c.hold(b, held) begins to read there
//   Totals<Items, N>                 N sums of each of the items of a loop, at totals.of(item), of which a thread has one
//   c.expect(n)                      n bytes are to come from other CTAs of the block before the next narrow exchange ends
//   c.send(rank, p, numbers)         store numbers at p in the shared memory of another CTA of the block: it has them after
//                                    that exchange
//   c.template fetch<bytes>(to, from)  begin to copy from global to shared memory
//   c.fetched()                      that thread's fetches are done; others see them after sync
//   c.give(p, numbers, t)            store numbers of step t in global memory for CTAs of any block
//   c.fresh(parts, p, apart, t)      what others gave at p, p + apart, ... for step t, which is waited for
namespace fastdream::resident {

// What lanes add up.
struct Sum {
  float value;
};

// Lanes that share `count` numbers of a row, of which each takes `each`.
constexpr int lanes_of(int count, int each) { return power_of_two(count / each); }

// Copy `count` numbers that this CTA has at `mine` to the same place in every other CTA of its block, beginning with the
// next one so that not all write to the same; whole 16 bytes, where they are aligned too.
template <class S, int count, class Cta, typename U>
FD_HD void spread(Cta& c, U* mine) {
  constexpr int each = 16 / int(sizeof(U)), pieces = count / each;
  static_assert(pieces * each == count, "what is spread is whole 16 bytes");
  c.each((S::ranks - 1) * pieces, [&](int i) {
    U* const from = mine + i % pieces * each;
    c.send((c.rank + 1 + i / pieces) % S::ranks, from, load<each>(from));
  });
  c.expect((S::ranks - 1) * count * int(sizeof(U)));
}

// As `spread`, for columns [first, first + count) of an activation, whole eighths of them.
template <class S, int count, class Cta, typename T>
FD_HD void spread_columns(Cta& c, T* mine, int first) {
  if constexpr (count % kStep == 0) {
    spread<S, count * kRows>(c, mine + first * kRows);
  } else {
    constexpr int pieces = count / 8 * kLanes;
    c.each((S::ranks - 1) * pieces, [&](int i) {
      T* const from = mine + piece_offset(first / 8 + i % pieces / kLanes, i % kLanes);
      c.send((c.rank + 1 + i / pieces) % S::ranks, from, load<kPiece>(from));
    });
    c.expect((S::ranks - 1) * count * kRows * int(sizeof(T)));
  }
}

template <class P, class Cta, typename T>
FD_HD void product(Cta& c, const T* left, const T* right, float* partial) {
  typename Cta::template Sums<P> sums = {};
  c.multiply(left, right, sums);
  c.leave(sums, partial);
}
template <class P, class Cta, typename T>
FD_HD void product(Cta& c, const T* left, const typename Cta::template Held<P>& right, float* partial) {
  typename Cta::template Sums<P> sums = {};
  c.multiply(left, right, sums);
  c.leave(sums, partial);
}

// Begin to copy `width` elements of each row of the tile: row m from from + m * row to to + m * width. Rows past the batch
// are left as they are: no row's numbers reach another row.
template <int width, class Cta, typename T>
FD_HD void fetch_rows(Cta& c, int rows, T* to, const T* from, Index row) {
  constexpr int bytes = width * int(sizeof(T));
  constexpr int chunk = bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4;
  constexpr int chunks = bytes / chunk;
  static_assert(chunks * chunk == bytes, "rows are copied in words");
  c.each(kRows * chunks, [&](int i) {
    const int m = i / chunks, part = i % chunks * (chunk / int(sizeof(T)));
    if (m < rows) c.template fetch<chunk>(to + m * width + part, from + (m * row + part));
  });
}

// Begin to copy `count` elements, a multiple of 16 bytes.
template <class Cta, typename T>
FD_HD void fetch_all(Cta& c, T* to, const T* from, int count) {
  constexpr int each = 16 / int(sizeof(T));
  c.each(count / each, [&](int i) { c.template fetch<16>(to + i * each, from + i * each); });
}

// Sums of what all CTAs of the team gave in `parts` [16, team] for step t; the order is the same in every CTA.
template <class S, class Cta>
FD_HD void gather_sums(Cta& c, const float* parts, float* sums, int t) {
  constexpr int lanes = S::team < kLanes ? S::team : kLanes, each = S::team / lanes;
  c.template groups<lanes, Sum>(kRows, [&](int m, auto& g) {
    g.each([&](int lane, Sum& s) {
      Numbers<float, each> numbers[1];
      c.fresh(numbers, parts + m * S::team + lane * each, 0, t);
      s.value = 0.0f;
      FD_UNROLL
      for (int k = 0; k < each; ++k) s.value += numbers[0].at[k];
    });
    g.sum(&Sum::value);
    g.each([&](int lane, Sum& s) {
      if (lane == 0) sums[m] = s.value;
    });
  });
  c.sync();
}

// Sums over the blocks of four neighbours in their products of step t [blocks, 16, 2H], of which `first` are the first block's.
template <class S, class Cta>
FD_HD Numbers<float, 4> sum_of_blocks(Cta& c, const float* first, int t) {
  Numbers<float, 4> parts[S::blocks], total = {};
  c.fresh(parts, first, kRows * 2 * S::hidden, t);
  FD_UNROLL
  for (int block = 0; block < S::blocks; ++block) {
    FD_UNROLL
    for (int e = 0; e < 4; ++e) total.at[e] += parts[block].at[e];
  }
  return total;
}

// Keep columns [k, k + N) of row m of a layer: in an activation, and in a tensor if `kept`. N is even.
template <typename T, int N>
FD_HD void keep(const Numbers<T, N>& values, T* activation, int m, int k, bool kept, T* tensor) {
  FD_UNROLL
  for (int i = 0; i < N; i += 2) {
    store(activation + left_offset(m, k + i), Numbers<T, 2>{values.at[i], values.at[i + 1]});
  }
  if (kept) store(tensor, values);
}

FD_HD bool bit(int32_t word, int m) { return word >> m & 1; }

}  // namespace fastdream::resident
