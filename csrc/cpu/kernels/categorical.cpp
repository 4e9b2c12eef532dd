#include "cpu/arena.h"
#include "cpu/categorical.h"
#include "cpu/instantiate.h"
#include "cpu/team.h"

// Categorical samples of given noise, by the inverse CDF and by the Gumbel-max rule, and their straight-through gradients.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements below which a second thread costs more than it saves

// Calls body(first, groups, scratch) in every thread for its share of the groups, whole vectors of them.
template <typename T, typename Body>
void over_groups(const Call& call, int64_t groups, int64_t classes, int64_t scratch_size, Body body) {
  Arena arena;
  const int threads = groups * classes < 2 * kGrain ? 1 : call.threads;
  T* scratch = nullptr;
  const auto lay_out = [&] { scratch = arena.take<T>(threads * scratch_size); };
  lay_out();
  arena.allocate();
  lay_out();
  parallel(threads, [=](Team& team) {
    const Share mine = share(team, groups, kLanes<T>);
    if (mine.first < mine.last) body(mine.first, mine.last - mine.first, scratch + team.rank * scratch_size);
  });
}

// index = replayed, every one of which must be a class.
void replay(int64_t groups, int64_t classes, const int64_t* replayed, int64_t* index) {
  for (int64_t g = 0; g < groups; ++g) {
    if (replayed[g] < 0 || replayed[g] >= classes) fail("the index of an earlier draw is no class: below 0 or too large");
    index[g] = replayed[g];
  }
}

// The mean waiting time of an exponential clock, -log(uniform), which is finite and positive.
template <typename T>
inline Vec<T> waiting(Vec<T> uniform) {
  const T tiny = sizeof(T) == sizeof(float) ? T(1.17549435e-38) : T(2.2250738585072014e-308);
  return -log(uniform < tiny ? splat(tiny) : uniform);
}

// x becomes the unimixed probabilities of the logits x, or those before the mixing for unimix = 0.
template <typename T>
void to_probs(T* x, int64_t classes, T unimix) {
  const Vec<T> share = (1 - unimix) / exp_and_sum(x, classes);
  for (int64_t c = 0; c < classes; ++c) {
    store(x + c * kLanes<T>, load(x + c * kLanes<T>) * share + unimix / T(classes));
  }
}

// The gradient of softmax(log(p / wait) / tau) in the logits of p, for n <= kLanes groups: grad is d_onehot, then d_logit.
template <typename T>
void gumbel_gradient(int64_t classes, T unimix, T tau, T* probs, T* wait, T* grad) {
  constexpr int64_t lanes = kLanes<T>;
  to_probs(probs, classes, T(0));
  const auto mixed = [=](int64_t c) { return (1 - unimix) * load(probs + c * lanes) + unimix / T(classes); };
  for (int64_t c = 0; c < classes; ++c) {
    store(wait + c * lanes, log(mixed(c) / waiting<T>(load(wait + c * lanes))) / tau);
  }
  to_probs(wait, classes, T(0));
  Vec<T> mean = {}, sum = {};
  for (int64_t c = 0; c < classes; ++c) mean += load(wait + c * lanes) * load(grad + c * lanes);
  for (int64_t c = 0; c < classes; ++c) {
    Vec<T> d = load(wait + c * lanes) * (load(grad + c * lanes) - mean) / tau;  // of log p
    if (unimix > T(0)) d *= (1 - unimix) * load(probs + c * lanes) / mixed(c);
    store(grad + c * lanes, d);
    sum += d;
  }
  for (int64_t c = 0; c < classes; ++c) store(grad + c * lanes, load(grad + c * lanes) - load(probs + c * lanes) * sum);
}

}  // namespace

// pointers: logit, noise or null, replayed or null | onehot, index;  sizes: groups, classes;  scalars: unimix
template <typename T>
void categorical_sample(Call& call) {
  const T* logit = call.pointer<const T>();
  const T* noise = call.pointer<const T>();
  const int64_t* replayed = call.pointer<const int64_t>();
  T* onehot = call.pointer<T>();
  int64_t* index = call.pointer<int64_t>();
  const int64_t groups = call.size(), classes = call.size();
  const T unimix = T(call.scalar());
  call.done();
  if (replayed) replay(groups, classes, replayed, index);
  over_groups<T>(call, groups, classes, categorical_scratch<T>(classes), [=](int64_t first, int64_t n, T* scratch) {
    if (!replayed) {
      sample_categorical(n, classes, logit + first * classes, noise + first, unimix, index + first, scratch);
    }
    write_onehot(n, classes, index + first, onehot + first * classes);
  });
}

// pointers: grad, logit | d_logit;  sizes: groups, classes;  scalars: unimix
template <typename T>
void categorical_sample_backward(Call& call) {
  const T* grad = call.pointer<const T>();
  const T* logit = call.pointer<const T>();
  T* d_logit = call.pointer<T>();
  const int64_t groups = call.size(), classes = call.size();
  const T unimix = T(call.scalar());
  call.done();
  over_groups<T>(call, groups, classes, categorical_scratch<T>(classes), [=](int64_t first, int64_t n, T* scratch) {
    const int64_t at = first * classes;
    straight_through<T>(n, classes, logit + at, grad + at, nullptr, unimix, d_logit + at, scratch);
  });
}

// The largest log(p / wait) is the largest p / wait.
// pointers: logit, noise, replayed or null | onehot, index;  sizes: groups, classes;  scalars: unimix, tau (which the gradient alone needs)
template <typename T>
void gumbel_sample(Call& call) {
  const T* logit = call.pointer<const T>();
  const T* noise = call.pointer<const T>();
  const int64_t* replayed = call.pointer<const int64_t>();
  T* onehot = call.pointer<T>();
  int64_t* index = call.pointer<int64_t>();
  const int64_t groups = call.size(), classes = call.size(), width = classes * kLanes<T>;
  const T unimix = T(call.scalar());
  call.scalar();
  call.done();
  if (replayed) replay(groups, classes, replayed, index);
  over_groups<T>(call, groups, classes, 2 * width, [=](int64_t start, int64_t count, T* probs) {
    T* const wait = probs + width;
    if (!replayed) {
      over_lanes<T>(count, [=](int64_t first, int64_t n) {
        to_lanes(probs, logit + (start + first) * classes, classes, n);
        to_lanes(wait, noise + (start + first) * classes, classes, n);
        to_probs(probs, classes, unimix);
        Vec<T> best = load(probs) / waiting<T>(load(wait));
        IntVec<T> chosen = {}, current = {};
        for (int64_t c = 1; c < classes; ++c) {
          current += 1;
          const Vec<T> rate = load(probs + c * kLanes<T>) / waiting<T>(load(wait + c * kLanes<T>));
          const IntVec<T> better = rate > best;
          best = better ? rate : best;
          chosen = better ? current : chosen;
        }
        for (int64_t g = 0; g < n; ++g) index[start + first + g] = chosen[g];
      });
    }
    write_onehot(count, classes, index + start, onehot + start * classes);
  });
}

// pointers: grad, logit, noise | d_logit;  sizes: groups, classes;  scalars: unimix, tau
template <typename T>
void gumbel_sample_backward(Call& call) {
  const T* grad = call.pointer<const T>();
  const T* logit = call.pointer<const T>();
  const T* noise = call.pointer<const T>();
  T* d_logit = call.pointer<T>();
  const int64_t groups = call.size(), classes = call.size(), width = classes * kLanes<T>;
  const T unimix = T(call.scalar()), tau = T(call.scalar());
  call.done();
  over_groups<T>(call, groups, classes, 3 * width, [=](int64_t start, int64_t count, T* scratch) {
    over_lanes<T>(count, [=](int64_t first, int64_t n) {
      const int64_t at = (start + first) * classes;
      to_lanes(scratch, logit + at, classes, n);
      to_lanes(scratch + width, noise + at, classes, n);
      to_lanes(scratch + 2 * width, grad + at, classes, n);
      gumbel_gradient(classes, unimix, tau, scratch, scratch + width, scratch + 2 * width);
      from_lanes(d_logit + at, scratch + 2 * width, classes, n);
    });
  });
}

FD_INSTANTIATE(categorical_sample)
FD_INSTANTIATE(categorical_sample_backward)
FD_INSTANTIATE(gumbel_sample)
FD_INSTANTIATE(gumbel_sample_backward)

}  // namespace fastdream::cpu::FD_ISA
