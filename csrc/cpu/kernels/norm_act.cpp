#include "cpu/norm_act.h"

#include "cpu/arena.h"
#include "cpu/instantiate.h"
#include "cpu/team.h"

// norm_act of the reference for x [rows, n], and its gradients.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements below which a second thread costs more than it saves
constexpr int64_t kBlock = 64;    // rows that are summed before they are added to the sum of all: keeps rounding small

int threads_for(const Call& call, int64_t rows, int64_t n) {
  return rows * n < 2 * kGrain ? 1 : call.threads;
}

}  // namespace

// pointers: x, scale, shift | y;  sizes: norm, act, rows, n;  scalars: eps
template <typename T>
void norm_act(Call& call) {
  const T* x = call.pointer<const T>();
  const NormAct<T> f = read_norm_act<T>(call);
  T* y = call.pointer<T>();
  const int64_t rows = call.size(), n = call.size();
  call.done();
  parallel(threads_for(call, rows, n), [=](Team& team) {
    const Share mine = share(team, rows);
    norm_act_rows(f, mine.last - mine.first, n, x + mine.first * n, n, y + mine.first * n, n);
  });
}

// pointers: x, scale, shift, grad | d_x, d_scale, d_shift (null where not wanted);  sizes and scalars as above
template <typename T>
void norm_act_backward(Call& call) {
  const T* x = call.pointer<const T>();
  const NormAct<T> f = read_norm_act<T>(call);
  const T* grad = call.pointer<const T>();
  T* d_x = call.pointer<T>();
  T* outputs[2] = {call.pointer<T>(), call.pointer<T>()};  // d_scale, d_shift
  const int64_t rows = call.size(), n = call.size();
  call.done();
  const int threads = threads_for(call, rows, n);
  Arena arena;
  T* buffers = nullptr;  // [threads][sum of all, of a block][scale, shift][n]
  for (int pass = 0; pass < 2; ++pass) {
    buffers = arena.take<T>(threads * 4 * n);
    if (pass == 0) arena.allocate();
  }
  parallel(threads, [=](Team& team) {
    const Share mine = share(team, rows);
    T *total = buffers + team.rank * 4 * n, *part = total + 2 * n;
    for (int64_t i = 0; i < 2 * n; ++i) total[i] = T(0);
    for (int64_t row = mine.first; row < mine.last; row += kBlock) {
      const int64_t height = mine.last - row < kBlock ? mine.last - row : kBlock, at = row * n;
      for (int64_t i = 0; i < 2 * n; ++i) part[i] = T(0);
      norm_act_rows_backward(f, height, n, x + at, n, grad + at, n, d_x + at, n, outputs[0] ? part : nullptr,
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

FD_INSTANTIATE(norm_act)
FD_INSTANTIATE(norm_act_backward)

}  // namespace fastdream::cpu::FD_ISA
