#include "cpu/arena.h"
#include "cpu/instantiate.h"
#include "cpu/simd.h"
#include "cpu/team.h"
#include "cpu/transpose.h"

// Regression over bins: cross-entropy of rows of logits [bins] with two-hot targets, and the mean of the distribution.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements below which a second thread costs more than it saves

template <typename Body>
void over_rows(const Call& call, int64_t rows, int64_t bins, Body body) {
  parallel(rows * bins < 2 * kGrain ? 1 : call.threads, [=](Team& team) {
    const Share mine = share(team, rows);
    for (int64_t row = mine.first; row < mine.last; ++row) body(row, team.rank);
  });
}

template <typename T>
T top_of(const T* x, int64_t n) {
  if (n < kLanes<T>) {
    T top = x[0];
    for (int64_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
    return top;
  }
  // Two at a time, since each waits for the one before it.
  Vec<T> top = load(x), other = load(x + n - kLanes<T>);
  for (int64_t i = kLanes<T>; i + 2 * kLanes<T> <= n; i += 2 * kLanes<T>) {
    top = max_of(top, load(x + i));
    other = max_of(other, load(x + i + kLanes<T>));
  }
  if (n >= 2 * kLanes<T>) top = max_of(top, load(x + n - 2 * kLanes<T>));
  return max<T>(max_of(top, other));
}

template <typename T>
inline T log_of(T x) {
  return log(splat(x))[0];
}

// Where a target lies: its weight is shared by the bins below and below + 1, all on one of them outside of the bins.
template <typename T>
struct TwoHot {
  int64_t below;
  T above_weight;
};

template <typename T>
TwoHot<T> two_hot(T target, const T* bins, int64_t count, bool in_symlog) {
  if (in_symlog) {
    const T size = log1p(splat(target < T(0) ? -target : target))[0];
    target = target < T(0) ? -size : size;
  }
  // How many bins are not above the target, by halves and without a branch; NaN is above all of them.
  int64_t reached = 0;
  for (int64_t left = count; left > 0;) {
    const int64_t half = (left + 1) / 2;
    reached += bins[reached + half - 1] > target ? 0 : half;
    left -= half;
  }
  const int64_t below = reached < 1 ? 0 : reached > count - 1 ? count - 2 : reached - 1;
  const T weight = (target - bins[below]) / (bins[below + 1] - bins[below]);
  return {below, weight < T(0) ? T(0) : weight > T(1) ? T(1) : weight};
}

// Mirrored bins in pairs: a distribution that is symmetric has a mean of exactly 0, whatever the rounding.
//
//   sum_k<half  p[k] b[k] + p[n-1-k] b[n-1-k]  =  sum_k<half (p[k] - p[n-1-k]) b[k] + p[n-1-k] (b[k] + b[n-1-k])
template <typename T>
struct Mirrored {
  int64_t bins;
  const T* left;  // b[k] of k < half, then zeros up to a whole vector
  const T* both;  // b[k] + b[n-1-k], likewise; zeros for symmetric bins

  static int64_t size(int64_t bins) { return bins / 2 + kLanes<T>; }

  static Mirrored make(const T* b, int64_t bins, T* left, T* both) {
    const int64_t half = bins / 2;
    for (int64_t k = 0; k < size(bins); ++k) {
      left[k] = k < half ? b[k] : T(0);
      both[k] = k < half ? b[k] + b[bins - 1 - k] : T(0);
    }
    return {bins, left, both};
  }

  // Of weights p with a vector of zeros before and after.
  T dot(const T* p, const T* b) const {
    const int64_t half = bins / 2;
    IntVec<T> mirror = {};
    for (int i = 0; i < kLanes<T>; ++i) mirror[i] = kLanes<T> - 1 - i;
    Vec<T> total = {};
    for (int64_t k = 0; k < half; k += kLanes<T>) {
      const Vec<T> one = load(p + k), far = load(p + bins - k - kLanes<T>), other = shuffle<T>(far, far, mirror);
      total += (one - other) * load(left + k) + other * load(both + k);
    }
    return sum<T>(total) + (bins % 2 ? p[half] * b[half] : T(0));
  }
};

// Workspace of one thread for the mean.
template <typename T>
struct Means {
  Mirrored<T> mirrored;
  T* powers;  // e^(x - max) of a row, between two vectors of zeros
  int64_t stride;

  // Powers of a row, their sum, and the mean.
  T of(const T* x, const T* b, int rank, T*& p, T& total) const {
    p = powers + rank * stride + kLanes<T>;
    const T top = top_of(x, mirrored.bins);
    Vec<T> sums = {};
    over<T>(mirrored.bins, [&, p](auto at) {
      const Vec<T> power = exp(at.load(x) - top);
      at.store(p, power);
      sums += at.only(power);
    });
    total = sum<T>(sums);
    return mirrored.dot(p, b) / total;
  }
};

template <typename T>
Means<T> lay_out(Arena& arena, const T* b, int64_t bins, int threads) {
  T *left = nullptr, *both = nullptr, *powers = nullptr;
  const int64_t stride = bins + 2 * kLanes<T>;
  const auto take = [&] {
    left = arena.take<T>(Mirrored<T>::size(bins));
    both = arena.take<T>(Mirrored<T>::size(bins));
    powers = arena.take<T>(threads * stride);
  };
  take();
  arena.allocate();
  take();
  __builtin_memset(powers, 0, size_t(threads * stride) * sizeof(T));
  return {Mirrored<T>::make(b, bins, left, both), powers, stride};
}

}  // namespace

// Several targets of the same logits share their normaliser.
// pointers: logit, target [targets, rows], bins | loss [targets, rows], norm [rows]
// sizes: rows, count of bins, targets, whether bins are in symlog space
template <typename T>
void twohot_loss(Call& call) {
  const T* logit = call.pointer<const T>();
  const T* target = call.pointer<const T>();
  const T* bins = call.pointer<const T>();
  T* loss = call.pointer<T>();
  T* norm = call.pointer<T>();
  const int64_t rows = call.size(), count = call.size(), targets = call.size();
  const bool in_symlog = call.size();
  call.done();
  over_rows(call, rows, count, [=](int64_t row, int) {
    const T* x = logit + row * count;
    const T top = top_of(x, count);
    Vec<T> sums = {};
    over<T>(count, [&](auto at) { sums += at.only(exp(at.load(x) - top)); });
    const T log_sum = top + log_of(sum<T>(sums));
    norm[row] = log_sum;
    for (int64_t i = row; i < targets * rows; i += rows) {
      const TwoHot<T> hot = two_hot(target[i], bins, count, in_symlog);
      const T low = x[hot.below] - log_sum, high = x[hot.below + 1] - log_sum;
      loss[i] = -((1 - hot.above_weight) * low + hot.above_weight * high);
    }
  });
}

// pointers: grad [targets, rows], logit, target, bins, norm | d_logit;  sizes: as above
template <typename T>
void twohot_loss_backward(Call& call) {
  const T* grad = call.pointer<const T>();
  const T* logit = call.pointer<const T>();
  const T* target = call.pointer<const T>();
  const T* bins = call.pointer<const T>();
  const T* norm = call.pointer<const T>();
  T* d_logit = call.pointer<T>();
  const int64_t rows = call.size(), count = call.size(), targets = call.size();
  const bool in_symlog = call.size();
  call.done();
  over_rows(call, rows, count, [=](int64_t row, int) {
    const T* x = logit + row * count;
    T* d = d_logit + row * count;
    T total = 0;
    for (int64_t i = row; i < targets * rows; i += rows) total += grad[i];
    const T log_sum = norm[row];
    over<T>(count, [=](auto at) { at.store(d, total * exp(at.load(x) - log_sum)); });
    for (int64_t i = row; i < targets * rows; i += rows) {
      const TwoHot<T> hot = two_hot(target[i], bins, count, in_symlog);
      d[hot.below] -= grad[i] * (1 - hot.above_weight);
      d[hot.below + 1] -= grad[i] * hot.above_weight;
    }
  });
}

// pointers: logit, bins | mean [rows];  sizes: rows, count of bins, whether bins are in symlog space
template <typename T>
void twohot_mean(Call& call) {
  const T* logit = call.pointer<const T>();
  const T* bins = call.pointer<const T>();
  T* mean = call.pointer<T>();
  const int64_t rows = call.size(), count = call.size();
  const bool in_symlog = call.size();
  call.done();
  Arena arena;
  const Means<T> means = lay_out(arena, bins, count, call.threads);
  over_rows(call, rows, count, [=](int64_t row, int rank) {
    T *powers, total;
    const T of_row = means.of(logit + row * count, bins, rank, powers, total);
    mean[row] = of_row;
    if (in_symlog) {
      const T size = expm1(splat(of_row < T(0) ? -of_row : of_row))[0];
      mean[row] = of_row < T(0) ? -size : size;
    }
  });
}

// pointers: grad [rows], logit, bins | d_logit;  sizes: as above
template <typename T>
void twohot_mean_backward(Call& call) {
  const T* grad = call.pointer<const T>();
  const T* logit = call.pointer<const T>();
  const T* bins = call.pointer<const T>();
  T* d_logit = call.pointer<T>();
  const int64_t rows = call.size(), count = call.size();
  const bool in_symlog = call.size();
  call.done();
  Arena arena;
  const Means<T> means = lay_out(arena, bins, count, call.threads);
  over_rows(call, rows, count, [=](int64_t row, int rank) {
    T *powers, total;
    const T mean = means.of(logit + row * count, bins, rank, powers, total);
    T scale = grad[row] / total;
    if (in_symlog) scale *= exp(splat(mean < T(0) ? -mean : mean))[0];
    T* d = d_logit + row * count;
    over<T>(count, [=](auto at) { at.store(d, scale * at.load(powers) * (at.load(bins) - mean)); });
  });
}

FD_INSTANTIATE(twohot_loss)
FD_INSTANTIATE(twohot_loss_backward)
FD_INSTANTIATE(twohot_mean)
FD_INSTANTIATE(twohot_mean_backward)

}  // namespace fastdream::cpu::FD_ISA
