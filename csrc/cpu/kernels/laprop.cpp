#include "cpu/arena.h"
#include "cpu/instantiate.h"
#include "cpu/simd.h"
#include "cpu/team.h"

// One step of LaProp with adaptive gradient clipping on any number of tensors: fastdream/ops/reference/optim.py.
//
// It is all memory traffic. A tensor is clipped by norms of the whole of it, so it is read twice, the second time from the
// cache if it fits there; nothing else is touched more than once.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kAlone = 32768;  // elements up to which one thread takes a tensor by itself
constexpr int64_t kBlock = 4096;   // elements of which squares are added in T, before the sums are added in double

template <typename T>
struct Tensor {
  T* param;
  const T* grad;
  T *nu, *mu;
  int64_t n;
  bool decayed;
};

template <typename T>
struct Rule {
  double agc, pmin;
  T lr, beta2, eps, decay;
  T one_less1, one_less2;    // 1 - beta, before rounding
  T unbiased1, unbiased2;    // 1 / (1 - beta1^step), 1 / sqrt(1 - beta2^step)
  bool momentum, nesterov;
};

template <typename T>
double sum_of_squares(const T* x, int64_t n) {
  double total = 0;
  for (int64_t first = 0; first < n; first += kBlock) {
    Vec<T> sums = {};
    over<T>(n - first < kBlock ? n - first : kBlock, [&](auto at) {
      const Vec<T> v = at.load(x + first);
      sums += v * v;
    });
    total += double(sum<T>(sums));
  }
  return total;
}

// What the gradient is multiplied by, of the sums of squares of gradient and parameter.
template <typename T>
T clipping(const Rule<T>& rule, double grad, double param) {
  const double norm = __builtin_sqrt(param), bound = rule.agc * (norm < rule.pmin ? rule.pmin : norm);
  const double excess = __builtin_sqrt(grad) / bound;
  return T(excess < 1 ? 1 : 1 / excess);
}

// Sums of squares: of the update, of the gradient as it came, of the parameters after the step.
struct Squares {
  double step = 0, grad = 0, param = 0;
};

// Elements first ... last - 1.
template <typename T>
void update(const Rule<T>& rule, const Tensor<T>& x, int64_t first, int64_t last, T clip, Squares& squares) {
  const T decay = x.decayed ? rule.decay : T(0);
  for (; first < last; first += kBlock) {
    Vec<T> of_step = {}, of_grad = {}, of_param = {};
    over<T>(last - first < kBlock ? last - first : kBlock, [&](auto at) {
      const Vec<T> raw = at.load(x.grad + first), grad = raw * clip, param = at.load(x.param + first);
      const Vec<T> nu = rule.beta2 * at.load(x.nu + first) + rule.one_less2 * (grad * grad);
      at.store(x.nu + first, nu);
      Vec<T> step = grad / (sqrt(nu) * rule.unbiased2 + rule.eps);
      if (rule.momentum) {
        const Vec<T> old = at.load(x.mu + first), mu = old + rule.one_less1 * (step - old);
        at.store(x.mu + first, mu);
        step = (rule.nesterov ? mu + rule.one_less1 * (step - mu) : mu) * rule.unbiased1;
      }
      step = -rule.lr * (decay != T(0) ? step + decay * param : step);
      const Vec<T> moved = param + step;
      at.store(x.param + first, moved);
      of_step += at.only(step * step);
      of_grad += raw * raw;
      of_param += moved * moved;
    });
    squares.step += double(sum<T>(of_step));
    squares.grad += double(sum<T>(of_grad));
    squares.param += double(sum<T>(of_param));
  }
}

// Sums of one thread, on a cache line of its own; those of clipping twice, for tensors by turns.
struct alignas(64) Partial {
  double grad[2], param[2];
  Squares all;
};

template <typename T>
Squares step_all(const Rule<T>& rule, const Tensor<T>* tensors, int64_t count, Partial* partials, int threads) {
  parallel(threads, [=](Team& team) {
    Partial& mine = partials[team.rank];
    int turn = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Tensor<T>& x = tensors[i];
      const bool alone = x.n <= kAlone || team.size == 1;
      if (alone && i % team.size != team.rank) continue;
      const Share range = alone ? Share{0, x.n} : share(team, x.n, kBlock);
      T clip = T(1);
      if (rule.agc != 0) {
        const int64_t n = range.last - range.first;
        mine.grad[turn] = sum_of_squares(x.grad + range.first, n);
        mine.param[turn] = sum_of_squares<T>(x.param + range.first, n);
        double grad = mine.grad[turn], param = mine.param[turn];
        if (!alone) {
          team.barrier();
          grad = param = 0;
          for (int other = 0; other < team.size; ++other) {
            grad += partials[other].grad[turn];
            param += partials[other].param[turn];
          }
          turn = 1 - turn;  // others may still read these
        }
        clip = clipping(rule, grad, param);
      }
      update(rule, x, range.first, range.last, clip, mine.all);
    }
  });
  Squares total;
  for (int i = 0; i < threads; ++i) {
    total.step += partials[i].all.step;
    total.grad += partials[i].all.grad;
    total.param += partials[i].all.param;
  }
  return total;
}

}  // namespace

// pointers: params, grads, nu, mu (of every tensor), step, lr | norms of update, gradients, parameters
// sizes: tensors, then of each its elements, then of each whether it is decayed, momentum, nesterov
// scalars: agc, pmin, beta1, beta2, eps, decay
template <typename T>
void laprop_(Call& call) {
  const int64_t count = call.size();
  Arena arena;
  Tensor<T>* x = nullptr;
  Partial* partials = nullptr;
  const auto take = [&] {
    x = arena.take<Tensor<T>>(count);
    partials = arena.take<Partial>(call.threads);
  };
  take();
  arena.allocate();
  take();
  for (int64_t i = 0; i < count; ++i) x[i].param = call.pointer<T>();
  for (int64_t i = 0; i < count; ++i) x[i].grad = call.pointer<const T>();
  for (int64_t i = 0; i < count; ++i) x[i].nu = call.pointer<T>();
  for (int64_t i = 0; i < count; ++i) x[i].mu = call.pointer<T>();
  const double step = double(*call.pointer<const int64_t>());
  const T* lr = call.pointer<const T>();
  T* update_norm = call.pointer<T>();
  T* grad_norm = call.pointer<T>();
  T* param_norm = call.pointer<T>();
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += x[i].n = call.size();
  for (int64_t i = 0; i < count; ++i) x[i].decayed = call.size();
  Rule<T> rule;
  rule.momentum = call.size();
  rule.nesterov = call.size();
  rule.agc = call.scalar();
  rule.pmin = call.scalar();
  const double beta1 = call.scalar(), beta2 = call.scalar();
  rule.eps = T(call.scalar());
  rule.decay = T(call.scalar());
  call.done();
  rule.lr = *lr;
  rule.beta2 = T(beta2);
  rule.one_less1 = T(1 - beta1);
  rule.one_less2 = T(1 - beta2);
  rule.unbiased1 = T(1 / (1 - __builtin_pow(beta1, step)));
  rule.unbiased2 = T(1 / __builtin_sqrt(1 - __builtin_pow(beta2, step)));
  const int threads = total < 2 * kAlone ? 1 : call.threads;
  for (int i = 0; i < threads; ++i) partials[i] = Partial{};
  const Squares squares = step_all(rule, x, count, partials, threads);
  *update_norm = T(__builtin_sqrt(squares.step));
  *grad_norm = T(__builtin_sqrt(squares.grad));
  *param_norm = T(__builtin_sqrt(squares.param));
}

FD_INSTANTIATE(laprop_)

}  // namespace fastdream::cpu::FD_ISA
