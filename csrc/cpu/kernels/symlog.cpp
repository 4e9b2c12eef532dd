#include "cpu/instantiate.h"
#include "cpu/squish.h"
#include "cpu/team.h"

// symlog(x) = sign(x) * log(1 + |x|) and its inverse, with gradients, elementwise.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements below which a second thread costs more than it saves

// pointers: x | y  (backward: x, grad | d_x);  sizes: elements
template <typename T, typename F>
void map(Call& call, F f) {
  const T* x = call.pointer<const T>();
  T* y = call.pointer<T>();
  const int64_t n = call.size();
  call.done();
  parallel(n < 2 * kGrain ? 1 : call.threads, [=](Team& team) {
    const Share mine = share(team, n, kGrain);
    over<T>(mine.last - mine.first, [=](auto at) { at.store(y + mine.first, f(at.load(x + mine.first))); });
  });
}

template <typename T, typename F>
void map_gradient(Call& call, F slope) {
  const T* x = call.pointer<const T>();
  const T* grad = call.pointer<const T>();
  T* d_x = call.pointer<T>();
  const int64_t n = call.size();
  call.done();
  parallel(n < 2 * kGrain ? 1 : call.threads, [=](Team& team) {
    const Share mine = share(team, n, kGrain);
    over<T>(mine.last - mine.first, [=](auto at) {
      at.store(d_x + mine.first, at.load(grad + mine.first) * slope(at.load(x + mine.first)));
    });
  });
}

}  // namespace

template <typename T>
void symlog(Call& call) {
  map<T>(call, [](Vec<T> x) { return squish<T>(x); });
}

template <typename T>
void symlog_backward(Call& call) {
  map_gradient<T>(call, [](Vec<T> x) { return T(1) / (T(1) + abs(x)); });
}

template <typename T>
void symexp(Call& call) {
  map<T>(call, [](Vec<T> x) {
    const Vec<T> y = expm1(abs(x));
    return x < T(0) ? -y : y;
  });
}

template <typename T>
void symexp_backward(Call& call) {
  map_gradient<T>(call, [](Vec<T> x) { return exp(abs(x)); });
}

FD_INSTANTIATE(symlog)
FD_INSTANTIATE(symlog_backward)
FD_INSTANTIATE(symexp)
FD_INSTANTIATE(symexp_backward)

}  // namespace fastdream::cpu::FD_ISA
