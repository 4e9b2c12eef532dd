#pragma once

#include "cpu/simd.h"
#include "cpu/transpose.h"

// Softmax, unimix, sampling and the straight-through gradient of groups of classes: a latent of S variables of C classes is
// S groups, B rows of it are B * S. Groups lie one after the other: x[group * classes + class].
//
// There are few classes and their cumulative sum goes one by one, so kLanes groups are worked on side by side: transposed,
// lane g of vector c is class c of group g, and nothing is ever summed over lanes. Functions take any number of groups and
// a scratch of `categorical_scratch(classes)` elements.
namespace fastdream::cpu::FD_ISA {

template <typename T>
constexpr int64_t categorical_scratch(int64_t classes) {
  return 2 * classes * kLanes<T>;
}

// n <= kLanes groups into lanes; the lanes that are left are zero.
template <typename T>
void to_lanes(T* __restrict lanes, const T* __restrict x, int64_t classes, int64_t n) {
  int64_t done = 0;
  if (n < kLanes<T>) {
    __builtin_memset(lanes, 0, size_t(classes * kLanes<T>) * sizeof(T));
  } else {
    if (classes == 2) return separate<T, 2>(x, kLanes<T>, lanes, kLanes<T>);
    if (classes == 4 && kLanes<T> >= 4) return separate<T, 4>(x, kLanes<T>, lanes, kLanes<T>);
    if (classes == 8 && kLanes<T> >= 8) return separate<T, 8>(x, kLanes<T>, lanes, kLanes<T>);
    for (; done + kLanes<T> <= classes; done += kLanes<T>) {
      transpose(x + done, classes, lanes + done * kLanes<T>, kLanes<T>);
    }
  }
  for (int64_t g = 0; g < n; ++g) {
    for (int64_t c = done; c < classes; ++c) lanes[c * kLanes<T> + g] = x[g * classes + c];
  }
}

template <typename T>
void from_lanes(T* __restrict x, const T* __restrict lanes, int64_t classes, int64_t n) {
  int64_t done = 0;
  if (n == kLanes<T>) {
    if (classes == 2) return interleave<T, 2>(lanes, kLanes<T>, x, kLanes<T>);
    if (classes == 4 && kLanes<T> >= 4) return interleave<T, 4>(lanes, kLanes<T>, x, kLanes<T>);
    if (classes == 8 && kLanes<T> >= 8) return interleave<T, 8>(lanes, kLanes<T>, x, kLanes<T>);
    for (; done + kLanes<T> <= classes; done += kLanes<T>) {
      transpose(lanes + done * kLanes<T>, kLanes<T>, x + done, classes);
    }
  }
  for (int64_t g = 0; g < n; ++g) {
    for (int64_t c = done; c < classes; ++c) x[g * classes + c] = lanes[c * kLanes<T> + g];
  }
}

// Calls body(first, n) for every kLanes groups.
template <typename T, typename Body>
void over_lanes(int64_t groups, Body body) {
  for (int64_t first = 0; first < groups; first += kLanes<T>) {
    body(first, groups - first < kLanes<T> ? groups - first : kLanes<T>);
  }
}

// x becomes e^(x - max x); returns its sum. NaN for a group of which every logit is -infinity, as there is no answer.
template <typename T>
Vec<T> exp_and_sum(T* x, int64_t classes) {
  Vec<T> top = load(x), total = {};
  for (int64_t c = 1; c < classes; ++c) top = max_of(top, load(x + c * kLanes<T>));
  for (int64_t c = 0; c < classes; ++c) {
    const Vec<T> power = exp(load(x + c * kLanes<T>) - top);
    store(x + c * kLanes<T>, power);
    total += power;
  }
  return total;
}

// Draws a class for every group by the inverse CDF of (1 - unimix) * softmax(logit) + unimix / classes: the number of
// classes whose cumulative sum is at most the noise and below the whole sum. noise[groups] in [0, 1), one a group.
template <typename T, typename Index>
void sample_categorical(int64_t groups, int64_t classes, const T* logit, const T* noise, T unimix, Index* index,
                        T* scratch) {
  const T floor = unimix / T(classes);
  over_lanes<T>(groups, [=](int64_t first, int64_t n) {
    to_lanes(scratch, logit + first * classes, classes, n);
    const Vec<T> share = (1 - unimix) / exp_and_sum(scratch, classes), uniform = load_part(noise + first, n);
    Vec<T> reached = {};
    for (int64_t c = 0; c < classes; ++c) {
      reached += load(scratch + c * kLanes<T>) * share + floor;
      store(scratch + c * kLanes<T>, reached);
    }
    IntVec<T> drawn = {};
    for (int64_t c = 0; c < classes; ++c) {
      const Vec<T> cdf = load(scratch + c * kLanes<T>);
      drawn -= (cdf <= uniform) & (cdf < reached);
    }
    for (int64_t g = 0; g < n; ++g) index[first + g] = Index(drawn[g]);
  });
}

template <typename T, typename Index>
void write_onehot(int64_t groups, int64_t classes, const Index* index, T* onehot) {
  __builtin_memset(onehot, 0, size_t(groups * classes) * sizeof(T));
  for (int64_t g = 0; g < groups; ++g) onehot[g * classes + int64_t(index[g])] = T(1);
}

// The straight-through gradient: what reaches the logits of a gradient d_onehot of the samples, as if these had been the
// unimixed probabilities. `also`, if not null, is a gradient of the logits from elsewhere that is added. d_logit may be
// d_onehot or `also`.
template <typename T>
void straight_through(int64_t groups, int64_t classes, const T* logit, const T* d_onehot, const T* also, T unimix,
                      T* d_logit, T* scratch) {
  T* const probs = scratch;
  T* const grad = scratch + classes * kLanes<T>;
  over_lanes<T>(groups, [=](int64_t first, int64_t n) {
    to_lanes(probs, logit + first * classes, classes, n);
    to_lanes(grad, d_onehot + first * classes, classes, n);
    const Vec<T> norm = T(1) / exp_and_sum(probs, classes);
    Vec<T> mean = {};
    for (int64_t c = 0; c < classes; ++c) mean += load(probs + c * kLanes<T>) * load(grad + c * kLanes<T>);
    mean *= norm;
    for (int64_t c = 0; c < classes; ++c) {
      const Vec<T> weight = (1 - unimix) * norm * load(probs + c * kLanes<T>);
      store(grad + c * kLanes<T>, weight * (load(grad + c * kLanes<T>) - mean));
    }
    if (also) {
      to_lanes(probs, also + first * classes, classes, n);
      for (int64_t i = 0; i < classes * kLanes<T>; i += kLanes<T>) store(grad + i, load(grad + i) + load(probs + i));
    }
    from_lanes(d_logit + first * classes, grad, classes, n);
  });
}

}  // namespace fastdream::cpu::FD_ISA
