#include "cpu/norm_act.h"

#include "cpu/instantiate.h"
#include "cpu/row_sums.h"
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
  T* const outputs[2] = {call.pointer<T>(), call.pointer<T>()};  // d_scale, d_shift
  const int64_t rows = call.size(), n = call.size();
  call.done();
  const auto backward = [=](int64_t row, int64_t height, T* d_scale, T* d_shift) {
    const int64_t at = row * n;
    norm_act_rows_backward(f, height, n, x + at, n, grad + at, n, d_x + at, n, d_scale, d_shift);
  };
  sum_over_rows<T>(threads_for(call, rows, n), rows, kBlock, n, outputs, backward);
}

FD_INSTANTIATE(norm_act)
FD_INSTANTIATE(norm_act_backward)

}  // namespace fastdream::cpu::FD_ISA
