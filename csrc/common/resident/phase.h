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
//   c.sync()                         what its threads wrote is seen by all of them
//   c.template product<P>(a, b, to)  a [16, K] times b [K, N], as partial results
//   c.peer(rank, p)                  where p, in this shared memory, is in that of another CTA of the block
//   c.template fetch<bytes>(to, from)  begin to copy from global to shared memory
//   c.fetched()                      that thread's fetches are done; others see them after sync
//   c.fresh(p)                       what another CTA wrote to global memory before the last exchange
namespace fastdream::resident {

// Copy what this CTA has in `mine` to the same place in every other CTA of its block, beginning with the next one so that
// not all write to the same.
template <class S, class Cta, typename U>
FD_HD void spread(Cta& c, U* mine, int count) {
  c.each((S::ranks - 1) * count, [&](int i) {
    c.peer((c.rank + 1 + i / count) % S::ranks, mine)[i % count] = mine[i % count];
  });
}

template <typename T>
struct alignas(kPiece * sizeof(T)) Piece {
  T at[kPiece];
};

// As `spread`, for columns [first, first + count) of an activation, whole eighths of them.
template <class S, class Cta, typename T>
FD_HD void spread_columns(Cta& c, T* mine, int first, int count) {
  const int pieces = count / 8 * kLanes;
  c.each((S::ranks - 1) * pieces, [&](int i) {
    const int offset = piece_offset(first / 8 + i % pieces / kLanes, i % kLanes);
    T* const theirs = c.peer((c.rank + 1 + i / pieces) % S::ranks, mine);
    *reinterpret_cast<Piece<T>*>(theirs + offset) = *reinterpret_cast<const Piece<T>*>(mine + offset);
  });
}

// Begin to copy `width` elements of each row of the tile: row m from from + m * row to to + m * width. Rows past the batch
// are left as they are: no row's numbers reach another row.
template <int width, class Cta, typename T>
FD_HD void fetch_rows(Cta& c, int rows, T* to, const T* from, int64_t row) {
  constexpr int bytes = width * int(sizeof(T));
  constexpr int chunk = bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4;
  constexpr int chunks = bytes / chunk;
  static_assert(chunks * chunk == bytes, "rows are copied in words");
  c.each(rows * chunks, [&](int i) {
    const int m = i / chunks, part = i % chunks * (chunk / int(sizeof(T)));
    c.template fetch<chunk>(to + m * width + part, from + m * row + part);
  });
}

// Begin to copy `count` elements, a multiple of 16 bytes.
template <class Cta, typename T>
FD_HD void fetch_all(Cta& c, T* to, const T* from, int count) {
  constexpr int each = 16 / int(sizeof(T));
  c.each(count / each, [&](int i) { c.template fetch<16>(to + i * each, from + i * each); });
}

// Sum of what all CTAs of the team left in `parts` [team, 16], into sums[m * kWarps]; the order is the same in every CTA.
template <class S, class Cta>
FD_HD void gather_sums(Cta& c, const float* parts, float* sums) {
  constexpr int each = S::team / kWarps > 0 ? S::team / kWarps : 1;
  constexpr int shares = S::team / each;
  c.each(kRows * shares, [&](int i) {
    const int m = i % kRows, share = i / kRows;
    float sum = 0.0f;
    FD_UNROLL
    for (int k = 0; k < each; ++k) sum += c.fresh(parts + (share * each + k) * kRows + m);
    sums[m * kWarps + share] = sum;
  });
  c.sync();
  c.each(kRows, [&](int m) {
    float sum = 0.0f;
    for (int k = 0; k < shares; ++k) sum += sums[m * kWarps + k];
    sums[m * kWarps] = sum;
  });
  c.sync();
}

FD_HD bool bit(int32_t word, int m) { return word >> m & 1; }

}  // namespace fastdream::resident
