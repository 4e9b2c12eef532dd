// Matrix products and elementary functions of one instruction set, against double precision and libm.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/raw.h"

namespace {

using namespace fastdream::cpu::FD_ISA;

int failures = 0;

void check(bool ok, const char* what, double got, double want) {
  if (ok) return;
  ++failures;
  std::printf("%s: got %.9g, want %.9g\n", what, got, want);
}

double noise() { return 2.0 * std::rand() / RAND_MAX - 1.0; }

// Every start, a's rows or columns contiguous, b's too, with guard elements around c; b packed and as it is.
template <typename T>
void test_gemm(int64_t rows, int64_t columns, int64_t depth, bool a_rows, bool b_rows, Start start) {
  Arena arena;
  T *a = nullptr, *b = nullptr, *packed = nullptr, *c = nullptr, *raw = nullptr, *before = nullptr, *bias = nullptr;
  const int64_t c_row = columns + 3;
  for (int pass = 0; pass < 2; ++pass) {
    a = arena.take<T>(rows * depth);
    b = arena.take<T>(depth * columns);
    packed = arena.take<T>(packed_size<T>(depth, columns));
    c = arena.take<T>(rows * c_row);
    raw = arena.take<T>(rows * c_row);
    before = arena.take<T>(rows * c_row);
    bias = arena.take<T>(columns);
    if (pass == 0) arena.allocate();
  }
  for (int64_t i = 0; i < rows * depth; ++i) a[i] = T(noise());
  for (int64_t i = 0; i < depth * columns; ++i) b[i] = T(noise());
  for (int64_t i = 0; i < columns; ++i) bias[i] = T(noise());
  for (int64_t i = 0; i < rows * c_row; ++i) before[i] = raw[i] = c[i] = T(noise());
  const int64_t a_row = a_rows ? depth : 1, a_depth = a_rows ? 1 : rows;
  const int64_t b_row = b_rows ? columns : 1, b_column = b_rows ? 1 : depth;
  const Packed<T> panels = pack(packed, b, b_row, b_column, depth, columns);
  gemm_panels(rows, a, a_row, a_depth, panels, c, c_row, start, bias, 0, panels.panels());
  if (a_rows) multiply(rows, a, a_row, Raw<T>{b, depth, columns, b_row, b_column}, raw, c_row, start, bias);
  const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < c_row; ++n) {
      double want = before[m * c_row + n];
      if (n < columns) {
        if (start == Start::zero) want = 0;
        if (start == Start::bias) want = bias[n];
        for (int64_t k = 0; k < depth; ++k) want += double(a[m * a_row + k * a_depth]) * b[k * b_row + n * b_column];
      }
      const double got = c[m * c_row + n];
      check(std::fabs(got - want) <= eps * (16 + double(depth)) * (1 + std::fabs(want)), "gemm", got, want);
      if (!a_rows) continue;
      const double other = raw[m * c_row + n];
      check(std::fabs(other - want) <= eps * (16 + double(depth)) * (1 + std::fabs(want)), "multiply", other, want);
    }
  }
}

// A weight's gradient, its panels shared as two threads would.
template <typename T>
void test_over_rows(int64_t rows, int64_t columns, int64_t depth) {
  Arena arena;
  T *a = nullptr, *b = nullptr, *c = nullptr, *scratch = nullptr;
  for (int pass = 0; pass < 2; ++pass) {
    a = arena.take<T>(depth * (rows + 1));
    b = arena.take<T>(depth * (columns + 2));
    c = arena.take<T>(rows * columns);
    scratch = arena.take<T>(kDepth * kPanel<T>);
    if (pass == 0) arena.allocate();
  }
  for (int64_t i = 0; i < depth * (rows + 1); ++i) a[i] = T(noise());
  for (int64_t i = 0; i < depth * (columns + 2); ++i) b[i] = T(noise());
  const int64_t panels = div_up(columns, kPanel<T>), half = panels / 2;
  gemm_over_rows(depth, a, rows + 1, rows, b, columns + 2, columns, c, columns, Start::zero, scratch, 0, half);
  gemm_over_rows(depth, a, rows + 1, rows, b, columns + 2, columns, c, columns, Start::zero, scratch, half, panels);
  const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) {
      double want = 0;
      for (int64_t k = 0; k < depth; ++k) want += double(a[k * (rows + 1) + m]) * b[k * (columns + 2) + n];
      const double got = c[m * columns + n];
      check(std::fabs(got - want) <= eps * (16 + double(depth)) * (1 + std::fabs(want)), "over rows", got, want);
    }
  }
}

template <typename T, typename Ours, typename Theirs>
void test_function(const char* name, Ours ours, Theirs theirs, double low, double high, double ulps) {
  const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
  for (int i = 0; i <= 20000; ++i) {
    const T x = T(low + (high - low) * i / 20000);
    const double got = double(ours(splat(x))[0]), want = theirs(double(x));
    const double size = std::fabs(want) < 1e-37 ? 1e-37 : std::fabs(want);
    check(std::fabs(got - want) <= ulps * 2 * eps * size + (std::fabs(want) < 1.2e-38 ? 1.2e-38 : 0), name, got, want);
  }
}

template <typename T>
void test_functions() {
  test_function<T>("exp", [](Vec<T> x) { return exp(x); }, [](double x) { return std::exp(x); }, -90, 88, 2);
  test_function<T>("expm1", [](Vec<T> x) { return expm1(x); }, [](double x) { return std::expm1(x); }, -3, 88, 3);
  test_function<T>("expm1", [](Vec<T> x) { return expm1(x); }, [](double x) { return std::expm1(x); }, -1e-3, 1e-3, 3);
  test_function<T>("log", [](Vec<T> x) { return log(x); }, [](double x) { return std::log(x); }, 1e-6, 3, 2);
  test_function<T>("log", [](Vec<T> x) { return log(x); }, [](double x) { return std::log(x); }, 3, 1e9, 2);
  test_function<T>("log1p", [](Vec<T> x) { return log1p(x); }, [](double x) { return std::log1p(x); }, -0.5, 1e6, 3);
  test_function<T>("log1p", [](Vec<T> x) { return log1p(x); }, [](double x) { return std::log1p(x); }, 0, 1e-3, 3);
  test_function<T>("tanh", [](Vec<T> x) { return tanh(x); }, [](double x) { return std::tanh(x); }, -20, 20, 3);
  test_function<T>(
      "sigmoid", [](Vec<T> x) { return sigmoid(x); }, [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 40, 3);
  const T inf = T(INFINITY), nan = T(NAN);
  check(exp(splat(inf))[0] == inf && exp(splat(-inf))[0] == 0, "exp of infinity", exp(splat(-inf))[0], 0);
  check(exp(splat(T(1000)))[0] == inf, "exp overflow", exp(splat(T(1000)))[0], INFINITY);
  check(log(splat(T(0)))[0] == -inf && log(splat(inf))[0] == inf, "log of 0", log(splat(T(0)))[0], -INFINITY);
  check(std::isnan(log(splat(T(-1)))[0]), "log of -1", log(splat(T(-1)))[0], NAN);
  check(log1p(splat(inf))[0] == inf, "log1p of infinity", log1p(splat(inf))[0], INFINITY);
  check(tanh(splat(inf))[0] == 1 && tanh(splat(-inf))[0] == -1, "tanh of infinity", tanh(splat(inf))[0], 1);
  check(sigmoid(splat(-inf))[0] == 0 && sigmoid(splat(inf))[0] == 1, "sigmoid", sigmoid(splat(-inf))[0], 0);
  for (T got : {exp(splat(nan))[0], expm1(splat(nan))[0], log(splat(nan))[0], log1p(splat(nan))[0],
                tanh(splat(nan))[0], sigmoid(splat(nan))[0]}) {
    check(std::isnan(got), "function of NaN", got, NAN);
  }
}

template <typename T>
void test_all() {
  for (Start start : {Start::zero, Start::bias, Start::sum}) {
    for (int layout = 0; layout < 4; ++layout) {
      for (int64_t rows : {1, 2, 7, 16, 65}) {
        for (int64_t columns : {1, 5, 16, 31, 32, 33, 100}) {
          for (int64_t depth : {0, 1, 17, 64}) test_gemm<T>(rows, columns, depth, layout & 1, layout & 2, start);
        }
      }
      test_gemm<T>(300, 40, 1100, layout & 1, layout & 2, start);
    }
  }
  for (int64_t depth : {1, 64, 1100}) {
    test_over_rows<T>(9, 70, depth);
    test_over_rows<T>(64, 32, depth);
  }
  test_functions<T>();
}

}  // namespace

#define FD_STRING_(x) #x
#define FD_STRING(x) FD_STRING_(x)

int main() {
  for (fastdream::cpu::Isa isa : {fastdream::cpu::Isa::avx2, fastdream::cpu::Isa::avx512}) {
    const char* name = fastdream::cpu::name_of(isa);
    if (!fastdream::cpu::supported(isa) && !std::strcmp(name, FD_STRING(FD_ISA))) {
      std::printf("%s: this processor does not have it\n", name);
      return 0;
    }
  }
  test_all<float>();
  test_all<double>();
  if (failures == 0) std::printf("gemm %s: ok\n", FD_STRING(FD_ISA));
  return failures != 0;
}
