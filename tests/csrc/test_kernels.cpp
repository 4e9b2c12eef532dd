// Kernels of one instruction set called as Python calls them: ragged sizes in buffers of exactly those, so that a
// sanitizer sees the first element too many; values against libm; one thread against three; arguments that do not fit.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "cpu/kernels.h"
#include "threads.h"

namespace {

using namespace fastdream::cpu;
namespace isa_kernels = fastdream::cpu::FD_TESTED;

int failures = 0;

void check(bool ok, const char* what, int64_t size) {
  if (ok) return;
  ++failures;
  std::printf("%s, size %lld\n", what, static_cast<long long>(size));
}

// One call's arguments; outputs are the last `outputs` arrays.
template <typename T>
struct Arguments {
  std::vector<std::vector<T>> arrays;
  std::vector<int64_t> sizes;
  std::vector<double> scalars;
  std::vector<bool> absent = {};  // null pointers in place of these arrays

  void run(void (*kernel)(Call&), int threads) {
    std::vector<uintptr_t> pointers;
    for (size_t i = 0; i < arrays.size(); ++i) {
      const bool null = i < absent.size() && absent[i];
      pointers.push_back(null ? 0 : reinterpret_cast<uintptr_t>(arrays[i].data()));
    }
    Call call(pointers.data(), int64_t(pointers.size()), sizes.data(), int64_t(sizes.size()), scalars.data(),
              int64_t(scalars.size()), threads);
    kernel(call);
  }
};

template <typename T>
std::vector<T> noise(int64_t n) {
  std::vector<T> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(T(4.0 * std::rand() / RAND_MAX - 2.0));
  return values;
}

template <typename T>
std::vector<T> unwritten(int64_t n) {
  return std::vector<T>(size_t(n), T(NAN));
}

template <typename T>
bool equal(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

// The kernel in three threads writes what it writes in one, and leaves no element of the outputs unwritten.
template <typename T>
Arguments<T> ran(const char* name, void (*kernel)(Call&), Arguments<T> args, size_t outputs, bool sums = false) {
  Arguments<T> shared = args;
  args.run(kernel, 1);
  shared.run(kernel, 3);
  for (size_t i = args.arrays.size() - outputs; i < args.arrays.size(); ++i) {
    if (i < args.absent.size() && args.absent[i]) continue;
    if (!sums) check(equal(args.arrays[i], shared.arrays[i]), name, int64_t(args.arrays[i].size()));
    for (T x : args.arrays[i]) check(std::isfinite(x), name, int64_t(args.arrays[i].size()));
    for (T x : shared.arrays[i]) check(std::isfinite(x), name, int64_t(args.arrays[i].size()));
  }
  return args;
}

template <typename T>
void test_pointwise(int64_t n) {
  const auto x = noise<T>(n), grad = noise<T>(n);
  const auto log = ran<T>("symlog", isa_kernels::symlog<T>, {{x, unwritten<T>(n)}, {n}, {}}, 1).arrays[1];
  const auto exp = ran<T>("symexp", isa_kernels::symexp<T>, {{x, unwritten<T>(n)}, {n}, {}}, 1).arrays[1];
  for (size_t i = 0; i < x.size(); ++i) {
    const double size = std::fabs(double(x[i])), sign = x[i] < 0 ? -1 : 1;
    check(std::fabs(log[i] - sign * std::log1p(size)) < 1e-6, "symlog's value", n);
    check(std::fabs(exp[i] - sign * std::expm1(size)) < 1e-5, "symexp's value", n);
  }
  ran<T>("symlog_backward", isa_kernels::symlog_backward<T>, {{x, grad, unwritten<T>(n)}, {n}, {}}, 1);
  ran<T>("symexp_backward", isa_kernels::symexp_backward<T>, {{x, grad, unwritten<T>(n)}, {n}, {}}, 1);
}

template <typename T>
void test_norm_act(int64_t rows, int64_t n) {
  for (int64_t norm : {0, 1, 2}) {
    for (int64_t act : {0, 1, 2, 3, 4, 5}) {
      for (bool scaled : {false, true}) {
        const std::vector<int64_t> sizes = {norm, act, rows, n};
        const auto x = noise<T>(rows * n), scale = noise<T>(n), shift = noise<T>(n), grad = noise<T>(rows * n);
        const auto out = unwritten<T>(rows * n), sum = unwritten<T>(n);
        const bool none = !scaled || norm == 0;
        ran<T>("norm_act", isa_kernels::norm_act<T>, {{x, scale, shift, out}, sizes, {1e-3}, {false, none, none}}, 1);
        ran<T>("norm_act_backward", isa_kernels::norm_act_backward<T>,
               {{x, scale, shift, grad, out, sum, sum}, sizes, {1e-3}, {false, none, none, false, false, none, none}},
               3, true);
      }
    }
  }
}

template <typename T>
void test_wrong_arguments() {
  for (size_t arrays : {1, 3}) {
    Arguments<T> args{std::vector<std::vector<T>>(arrays, noise<T>(4)), {4}, {}};
    bool refused = false;
    try {
      args.run(isa_kernels::symlog<T>, 1);
    } catch (const std::logic_error&) {
      refused = true;
    }
    check(refused, "wrong number of arguments", int64_t(arrays));
  }
}

template <typename T>
void test_all() {
  for (int64_t n : {0, 1, 3, 17, 63, 16384, 40001}) test_pointwise<T>(n);
  for (int64_t rows : {0, 1, 5, 130, 700}) {
    for (int64_t n : {1, 3, 16, 40, 65}) test_norm_act<T>(rows, n);
  }
  test_wrong_arguments<T>();
}

}  // namespace

#define FD_STRING_(x) #x
#define FD_STRING(x) FD_STRING_(x)

int main() {
  for (Isa isa : {Isa::avx2, Isa::avx512}) {
    if (!supported(isa) && !std::strcmp(name_of(isa), FD_STRING(FD_TESTED))) {
      std::printf("%s: this processor does not have it\n", name_of(isa));
      return 0;
    }
  }
  stand_in::use();
  test_all<float>();
#ifndef FD_FLOAT_ALONE
  test_all<double>();
#endif
  if (failures == 0) std::printf("kernels %s: ok\n", FD_STRING(FD_TESTED));
  return failures != 0;
}
