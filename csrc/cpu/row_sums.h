#pragma once

#include "cpu/arena.h"
#include "cpu/team.h"

// Sums over rows, by several threads, whose rounding stays small.
namespace fastdream::cpu::FD_ISA {

// Runs body(row, height, d_scale, d_shift) for every `block` rows, or what is left of them, and adds up what each adds to
// the two [n], which are the thread's own and null where they are not wanted.
template <typename T, typename Body>
void sum_over_rows(int threads, int64_t rows, int64_t block, int64_t n, T* const (&outputs)[2], Body body) {
  Arena arena;
  T* buffers = nullptr;  // [threads][sums of all rows, of one block][scale, shift][n]
  for (int pass = 0; pass < 2; ++pass) {
    buffers = arena.take<T>(threads * 4 * n);
    if (pass == 0) arena.allocate();
  }
  parallel(threads, [=](Team& team) {
    const Share mine = share(team, rows);
    T *total = buffers + team.rank * 4 * n, *part = total + 2 * n;
    for (int64_t i = 0; i < 2 * n; ++i) total[i] = T(0);
    for (int64_t row = mine.first; row < mine.last; row += block) {
      // Sums of a block before those of all: this keeps rounding small.
      for (int64_t i = 0; i < 2 * n; ++i) part[i] = T(0);
      body(row, mine.last - row < block ? mine.last - row : block, outputs[0] ? part : nullptr,
           outputs[1] ? part + n : nullptr);
      for (int64_t i = 0; i < 2 * n; ++i) total[i] += part[i];
    }
    team.barrier();
    for (int output = 0; output < 2; ++output) {
      if (!outputs[output] || team.rank > 0) continue;
      for (int64_t i = 0; i < n; ++i) {
        T sum = T(0);
        for (int thread = 0; thread < team.size; ++thread) sum += buffers[(thread * 4 + output) * n + i];
        outputs[output][i] = sum;
      }
    }
  });
}

}  // namespace fastdream::cpu::FD_ISA
