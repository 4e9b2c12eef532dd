#include "cpu/instantiate.h"
#include "cpu/norm_act.h"
#include "cpu/row_sums.h"
#include "cpu/team.h"

// norm_act of the reference at every pixel of an image, joined to what halves or doubles the image: pool_norm_act takes
// the largest of 2x2 pixels before it, spread_norm_act puts four pixels that lie one after the other into their 2x2
// places after it. Images are [images, height, width, n].
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements below which a second thread costs more than it saves
constexpr int64_t kBytes = 16;    // what rows of places are padded to, at least the lanes of a vector

template <typename T>
using Bytes __attribute__((vector_size(kLanes<T>))) = uint8_t;

int threads_for(const Call& call, int64_t elements) { return elements < 2 * kGrain ? 1 : call.threads; }

template <typename T>
struct Images {
  explicit Images(Call& call) : count(call.size()), height(call.size()), width(call.size()), n(call.size()) {}
  const int64_t count, height, width, n;
};

// Which of four pixels is the largest, the first of equal ones; NaN is larger than all.
template <typename T>
void largest(int64_t n, const T* const (&x)[4], T* top, uint8_t* place) {
  over<T>(n, [&](auto at) {
    Vec<T> best = at.load(x[0]);
    IntVec<T> found = {};
    for (int k = 1; k < 4; ++k) {
      const Vec<T> v = at.load(x[k]);
      const IntVec<T> larger = (v > best) | (v != v);
      best = larger ? v : best;
      found = larger ? IntVec<T>{} + k : found;
    }
    at.store(top, best);
    const auto bytes = __builtin_convertvector(found, Bytes<T>);
    __builtin_memcpy(place + at.i, &bytes, sizeof bytes);
  });
}

}  // namespace

// pointers: x, scale, shift | y, top (the largest), place (of it, rows padded)
// sizes: norm, act, images, height, width, n of x
// scalars: eps
template <typename T>
void pool_norm_act(Call& call) {
  const T* x = call.pointer<const T>();
  const NormAct<T> f = read_norm_act<T>(call);
  T *y = call.pointer<T>(), *top = call.pointer<T>();
  uint8_t* place = call.pointer<uint8_t>();
  const Images<T> images(call);
  call.done();
  const int64_t n = images.n, line = images.width * n, rows = images.height / 2, columns = images.width / 2;
  const int64_t padded = (n + kBytes - 1) / kBytes * kBytes;
  parallel(threads_for(call, images.count * images.height * line), [=](Team& team) {
    const Share mine = share(team, images.count * rows);
    for (int64_t row = mine.first; row < mine.last; ++row) {
      const T* above = x + (row / rows * images.height + row % rows * 2) * line;
      for (int64_t at = row * columns; at < (row + 1) * columns; ++at, above += 2 * n) {
        largest<T>(n, {above, above + n, above + line, above + line + n}, top + at * n, place + at * padded);
      }
      norm_act_rows(f, columns, n, top + row * columns * n, n, y + row * columns * n, n);
    }
  });
}

// pointers: x [images, height, width, 4, n], scale, shift | y
// sizes: norm, act, images, height, width, n of x
// scalars: eps
template <typename T>
void spread_norm_act(Call& call) {
  const T* x = call.pointer<const T>();
  const NormAct<T> f = read_norm_act<T>(call);
  T* y = call.pointer<T>();
  const Images<T> images(call);
  call.done();
  const int64_t n = images.n, line = images.width * 2 * n, rows = images.count * images.height * 2;
  parallel(threads_for(call, rows * line), [=](Team& team) {
    const Share mine = share(team, rows);
    for (int64_t row = mine.first; row < mine.last; ++row) {
      const T* from = x + row / 2 * 2 * line + row % 2 * 2 * n;
      T* to = y + row * line;
      if (f.norm == Norm::none) {
        norm_act_rows(f, images.width, 2 * n, from, 4 * n, to, 2 * n);
        continue;
      }
      for (int64_t side = 0; side < 2; ++side) {  // left pixels, then right ones
        norm_act_rows(f, images.width, n, from + side * n, 4 * n, to + side * n, 2 * n);
      }
    }
  });
}

// pointers: x, scale, shift, grad | d_x, d_scale, d_shift (null where not wanted)
// sizes, scalars: as above
template <typename T>
void spread_norm_act_backward(Call& call) {
  const T* x = call.pointer<const T>();
  const NormAct<T> f = read_norm_act<T>(call);
  const T* grad = call.pointer<const T>();
  T* d_x = call.pointer<T>();
  T* const outputs[2] = {call.pointer<T>(), call.pointer<T>()};  // d_scale, d_shift
  const Images<T> images(call);
  call.done();
  const int64_t n = images.n, line = images.width * 2 * n, rows = images.count * images.height * 2;
  const auto backward = [=](int64_t row, int64_t, T* d_scale, T* d_shift) {
    const int64_t from = row / 2 * 2 * line + row % 2 * 2 * n;
    if (f.norm == Norm::none) {
      norm_act_rows_backward(f, images.width, 2 * n, x + from, 4 * n, grad + row * line, 2 * n, d_x + from, 4 * n,
                             d_scale, d_shift);
      return;
    }
    for (int64_t side = 0; side < 2; ++side) {
      norm_act_rows_backward(f, images.width, n, x + from + side * n, 4 * n, grad + row * line + side * n, 2 * n,
                             d_x + from + side * n, 4 * n, d_scale, d_shift);
    }
  };
  sum_over_rows<T>(threads_for(call, rows * line), rows, 1, n, outputs, backward);
}

FD_INSTANTIATE(pool_norm_act)
FD_INSTANTIATE(spread_norm_act)
FD_INSTANTIATE(spread_norm_act_backward)

}  // namespace fastdream::cpu::FD_ISA
