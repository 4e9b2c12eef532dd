#include "cpu/arena.h"
#include "cpu/categorical.h"
#include "cpu/free_nats.h"
#include "cpu/instantiate.h"
#include "cpu/team.h"

// KL(post || prior) of categorical latents [rows, stoch, classes] after unimix, summed over stoch. Its value is one number a
// row; its two gradients, of the posterior and of the prior, belong to the two losses rep and dyn.
//
// With p and q the softmaxes and P, Q what mixing makes of them, p -> (1 - unimix) p + unimix / classes:
//
//   KL = sum P log(P / Q),  d_post = (1 - unimix) p (r - sum p r), r = log(P / Q),
//                           d_prior = (1 - unimix) q (sum q s - s), s = P / Q
//
// Without mixing q may be 0 where p is not: then log(P / Q) comes from the logits, and d_prior is q - p.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 4096;  // elements below which a second thread costs more than it saves
constexpr int64_t kRows = 16;     // rows at a time: lanes are full of groups whatever stoch is

template <typename T>
struct Scratch {
  T *post, *prior, *log_ratio, *ratio;  // kLanes groups, transposed
  T* of_group;                          // [kRows * stoch] KL of every group; backward: the two factors of every group
};

template <typename T>
Scratch<T> lay_out(T* from, int64_t classes) {
  const int64_t width = classes * kLanes<T>;
  return {from, from + width, from + 2 * width, from + 3 * width, from + 4 * width};
}

// For n <= kLanes groups: their KL, and log_ratio; post and prior become the softmaxes, ratio only if mixed.
template <typename T, bool Mixed>
Vec<T> compare(Scratch<T> s, const T* post, const T* prior, int64_t classes, int64_t n, T unimix) {
  constexpr int64_t lanes = kLanes<T>;
  to_lanes(s.post, post, classes, n);
  to_lanes(s.prior, prior, classes, n);
  if constexpr (!Mixed) {
    Vec<T> top_post = load(s.post), top_prior = load(s.prior);
    for (int64_t c = 1; c < classes; ++c) {
      top_post = max_of(top_post, load(s.post + c * lanes));
      top_prior = max_of(top_prior, load(s.prior + c * lanes));
    }
    for (int64_t c = 0; c < classes; ++c) {
      const Vec<T> of_post = load(s.post + c * lanes) - top_post, of_prior = load(s.prior + c * lanes) - top_prior;
      store(s.log_ratio + c * lanes, of_post - of_prior);
    }
  }
  const Vec<T> sum_post = exp_and_sum(s.post, classes), sum_prior = exp_and_sum(s.prior, classes);
  const Vec<T> norm_post = T(1) / sum_post, norm_prior = T(1) / sum_prior;
  const Vec<T> shift = Mixed ? Vec<T>{} : log(sum_prior) - log(sum_post);
  const T share = 1 - unimix, floor = unimix / T(classes);
  Vec<T> kl = {};
  for (int64_t c = 0; c < classes; ++c) {
    const Vec<T> p = load(s.post + c * lanes) * norm_post, q = load(s.prior + c * lanes) * norm_prior;
    store(s.post + c * lanes, p);
    store(s.prior + c * lanes, q);
    if constexpr (Mixed) {
      const Vec<T> mixed = p * share + floor, ratio = mixed / (q * share + floor), log_ratio = log(ratio);
      store(s.ratio + c * lanes, ratio);
      store(s.log_ratio + c * lanes, log_ratio);
      kl += mixed * log_ratio;
    } else {
      const Vec<T> log_ratio = load(s.log_ratio + c * lanes) + shift;
      store(s.log_ratio + c * lanes, log_ratio);
      kl += p * log_ratio;
    }
  }
  return kl;
}

// d_post and d_prior times the groups' factors, after `compare`, in the place of log_ratio and ratio.
template <typename T, bool Mixed>
void gradients(Scratch<T> s, int64_t classes, T unimix, Vec<T> of_post, Vec<T> of_prior) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> mean_log = {}, mean_ratio = {};
  for (int64_t c = 0; c < classes; ++c) {
    mean_log += load(s.post + c * lanes) * load(s.log_ratio + c * lanes);
    if (Mixed) mean_ratio += load(s.prior + c * lanes) * load(s.ratio + c * lanes);
  }
  of_post *= 1 - unimix;
  of_prior *= 1 - unimix;
  for (int64_t c = 0; c < classes; ++c) {
    const Vec<T> p = load(s.post + c * lanes), q = load(s.prior + c * lanes);
    store(s.log_ratio + c * lanes, of_post * p * (load(s.log_ratio + c * lanes) - mean_log));
    store(s.ratio + c * lanes, of_prior * (Mixed ? q * (mean_ratio - load(s.ratio + c * lanes)) : q - p));
  }
}

// Calls body(first, rows, scratch) for up to kRows rows at a time, in threads.
template <typename T, typename Body>
void over_rows(const Call& call, int64_t rows, int64_t stoch, int64_t classes, Body body) {
  Arena arena;
  const int threads = rows * stoch * classes < 2 * kGrain ? 1 : call.threads;
  const int64_t size = 4 * classes * kLanes<T> + 2 * kRows * stoch;
  T* scratch = nullptr;
  const auto take = [&] { scratch = arena.take<T>(threads * size); };
  take();
  arena.allocate();
  take();
  parallel(threads, [=](Team& team) {
    const Share mine = share(team, rows, kRows);
    for (int64_t first = mine.first; first < mine.last; first += kRows) {
      const int64_t n = mine.last - first < kRows ? mine.last - first : kRows;
      body(first, n, lay_out(scratch + team.rank * size, classes));
    }
  });
}

template <typename T, bool Mixed>
void kl_rows(const Call& call, int64_t rows, int64_t stoch, int64_t classes, const T* post, const T* prior, T unimix,
             T* kl) {
  over_rows<T>(call, rows, stoch, classes, [=](int64_t first, int64_t n, Scratch<T> s) {
    const int64_t at = first * stoch * classes;
    over_lanes<T>(n * stoch, [=](int64_t g, int64_t lanes) {
      const int64_t here = at + g * classes;
      const Vec<T> of_group = compare<T, Mixed>(s, post + here, prior + here, classes, lanes, unimix);
      store_part(s.of_group + g, of_group, lanes);
    });
    for (int64_t row = 0; row < n; ++row) {
      Vec<T> total = {};
      over<T>(stoch, [&](auto part) { total += part.load(s.of_group + row * stoch); });
      kl[first + row] = sum<T>(total);
    }
  });
}

template <typename T, bool Mixed>
void kl_gradients(const Call& call, int64_t rows, int64_t stoch, int64_t classes, const T* post, const T* prior,
                  T unimix, const FreeNats<T>& nats, T* d_post, T* d_prior) {
  over_rows<T>(call, rows, stoch, classes, [=](int64_t first, int64_t n, Scratch<T> s) {
    T* const of_post = s.of_group;
    T* const of_prior = s.of_group + kRows * stoch;
    for (int64_t g = 0; g < n * stoch; ++g) {
      of_post[g] = nats.of_rep(first + g / stoch);
      of_prior[g] = nats.of_dyn(first + g / stoch);
    }
    const int64_t at = first * stoch * classes;
    over_lanes<T>(n * stoch, [=](int64_t g, int64_t lanes) {
      const int64_t here = at + g * classes;
      compare<T, Mixed>(s, post + here, prior + here, classes, lanes, unimix);
      gradients<T, Mixed>(s, classes, unimix, load_part(of_post + g, lanes), load_part(of_prior + g, lanes));
      from_lanes(d_post + here, s.log_ratio, classes, lanes);
      from_lanes(d_prior + here, s.ratio, classes, lanes);
    });
  });
}

}  // namespace

// pointers: post, prior | dyn, rep, kl [rows];  sizes: rows, stoch, classes, clamp;  scalars: unimix, free
template <typename T>
void categorical_kl(Call& call) {
  const T* post = call.pointer<const T>();
  const T* prior = call.pointer<const T>();
  T* dyn = call.pointer<T>();
  T* rep = call.pointer<T>();
  T* kl = call.pointer<T>();
  const int64_t rows = call.size(), stoch = call.size(), classes = call.size();
  const Clamp clamp = Clamp(call.size());
  const T unimix = T(call.scalar()), free = T(call.scalar());
  call.done();
  (unimix > T(0) ? kl_rows<T, true> : kl_rows<T, false>)(call, rows, stoch, classes, post, prior, unimix, kl);
  clamp_pair(clamp, free, rows, kl, dyn, rep);
}

// pointers: d_dyn, d_rep, kl, post, prior | d_post, d_prior;  sizes and scalars: as above
template <typename T>
void categorical_kl_backward(Call& call) {
  FreeNats<T> nats = read_free_nats<T>(call);
  const T* post = call.pointer<const T>();
  const T* prior = call.pointer<const T>();
  T* d_post = call.pointer<T>();
  T* d_prior = call.pointer<T>();
  const int64_t rows = call.size(), stoch = call.size(), classes = call.size();
  const Clamp clamp = Clamp(call.size());
  const T unimix = T(call.scalar()), free = T(call.scalar());
  call.done();
  nats.choose(clamp, free, rows);
  (unimix > T(0) ? kl_gradients<T, true> : kl_gradients<T, false>)(call, rows, stoch, classes, post, prior, unimix,
                                                                   nats, d_post, d_prior);
}

FD_INSTANTIATE(categorical_kl)
FD_INSTANTIATE(categorical_kl_backward)

}  // namespace fastdream::cpu::FD_ISA
