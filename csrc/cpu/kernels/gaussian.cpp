#include "cpu/free_nats.h"
#include "cpu/instantiate.h"
#include "cpu/simd.h"
#include "cpu/team.h"

// KL(post || prior) of Gaussian latents [rows, stoch], summed over stoch, with the gradients of its two losses:
//
//   KL = sum (ratio^2 + shift^2 - 1) / 2 - log ratio,  ratio = std / prior_std,  shift = (mean - prior_mean) / prior_std
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements below which a second thread costs more than it saves

template <typename T>
struct Latents {
  const T *mean, *std, *prior_mean, *prior_std;
};

template <typename T>
Latents<T> read_latents(Call& call) {
  Latents<T> x;
  x.mean = call.pointer<const T>();
  x.std = call.pointer<const T>();
  x.prior_mean = call.pointer<const T>();
  x.prior_std = call.pointer<const T>();
  return x;
}

}  // namespace

// pointers: mean, std, prior_mean, prior_std | dyn, rep, kl [rows];  sizes: rows, stoch, clamp;  scalars: free
template <typename T>
void gaussian_kl(Call& call) {
  const Latents<T> x = read_latents<T>(call);
  T* dyn = call.pointer<T>();
  T* rep = call.pointer<T>();
  T* kl = call.pointer<T>();
  const int64_t rows = call.size(), stoch = call.size();
  const Clamp clamp = Clamp(call.size());
  const T free = T(call.scalar());
  call.done();
  parallel(rows * stoch < 2 * kGrain ? 1 : call.threads, [=](Team& team) {
    const Share mine = share(team, rows);
    for (int64_t row = mine.first; row < mine.last; ++row) {
      const int64_t first = row * stoch;
      Vec<T> total = {};
      over<T>(stoch, [&](auto at) {
        const Vec<T> prior_std = at.load(x.prior_std + first), ratio = at.load(x.std + first) / prior_std;
        const Vec<T> shift = (at.load(x.mean + first) - at.load(x.prior_mean + first)) / prior_std;
        total += at.only(T(0.5) * (ratio * ratio + shift * shift - T(1)) - log(ratio));
      });
      kl[row] = sum<T>(total);
    }
  });
  clamp_pair(clamp, free, rows, kl, dyn, rep);
}

// pointers: d_dyn, d_rep, kl, mean, std, prior_mean, prior_std | d_mean, d_std, d_prior_mean, d_prior_std
// sizes and scalars: as above
template <typename T>
void gaussian_kl_backward(Call& call) {
  FreeNats<T> nats = read_free_nats<T>(call);
  const Latents<T> x = read_latents<T>(call);
  T* d_mean = call.pointer<T>();
  T* d_std = call.pointer<T>();
  T* d_prior_mean = call.pointer<T>();
  T* d_prior_std = call.pointer<T>();
  const int64_t rows = call.size(), stoch = call.size();
  const Clamp clamp = Clamp(call.size());
  const T free = T(call.scalar());
  call.done();
  nats.choose(clamp, free, rows);
  parallel(rows * stoch < 2 * kGrain ? 1 : call.threads, [=](Team& team) {
    const Share mine = share(team, rows);
    for (int64_t row = mine.first; row < mine.last; ++row) {
      const T of_rep = nats.of_rep(row), of_dyn = nats.of_dyn(row);
      const int64_t first = row * stoch;
      over<T>(stoch, [=](auto at) {
        const Vec<T> std = at.load(x.std + first), prior_std = at.load(x.prior_std + first), ratio = std / prior_std;
        const Vec<T> shift = (at.load(x.mean + first) - at.load(x.prior_mean + first)) / prior_std;
        at.store(d_mean + first, of_rep * shift / prior_std);
        at.store(d_std + first, of_rep * (ratio / prior_std - T(1) / std));
        at.store(d_prior_mean + first, -of_dyn * shift / prior_std);
        at.store(d_prior_std + first, of_dyn * (T(1) - ratio * ratio - shift * shift) / prior_std);
      });
    }
  });
}

FD_INSTANTIATE(gaussian_kl)
FD_INSTANTIATE(gaussian_kl_backward)

}  // namespace fastdream::cpu::FD_ISA
