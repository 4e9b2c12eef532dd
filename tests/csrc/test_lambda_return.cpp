#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/lambda_return.h"

// The CPU kernel against the formula written out, and its gradients against finite differences.
namespace {

using Vec = std::vector<double>;

int failures = 0;

void expect_close(double actual, double expected, double tolerance, const char* what, int64_t index) {
  if (std::abs(actual - expected) <= tolerance * (1 + std::abs(expected))) return;
  std::printf("FAILED %s[%lld]: %.12g, expected %.12g\n", what, static_cast<long long>(index), actual, expected);
  ++failures;
}

Vec noise(size_t size, unsigned seed) {
  std::srand(seed);
  Vec out(size);
  for (double& x : out) x = 2.0 * std::rand() / RAND_MAX - 1;
  return out;
}

struct Case {
  int64_t rows, steps;
  Vec reward, live, mix, value;

  Case(int64_t rows, int64_t steps)
      : rows(rows),
        steps(steps),
        reward(noise(rows * steps, 1)),
        live(noise(rows * steps, 2)),
        mix(noise(rows * steps, 3)),
        value(noise(rows * steps, 4)) {}

  Vec run() const {
    Vec ret(rows * steps, NAN);
    fastdream::cpu::lambda_return<double>(
        {reward.data(), live.data(), mix.data(), value.data(), ret.data(), rows, steps});
    return ret;
  }

  double loss(const Vec& weight) const {
    const Vec ret = run();
    double sum = 0;
    for (size_t i = 0; i < ret.size(); ++i) sum += weight[i] * ret[i];
    return sum;
  }
};

void test_forward(const Case& c) {
  const Vec ret = c.run();
  for (int64_t i = 0; i < c.rows * c.steps; ++i) {
    const double next = i % c.steps == c.steps - 1 ? c.value[i] : ret[i + 1];
    expect_close(ret[i], c.reward[i] + c.live[i] * ((1 - c.mix[i]) * c.value[i] + c.mix[i] * next), 1e-12, "ret", i);
  }
}

void test_backward(Case c) {
  const size_t size = c.reward.size();
  const Vec weight = noise(size, 5), ret = c.run();
  Vec d_reward(size, NAN), d_live(size, NAN), d_mix(size, NAN), d_value(size, NAN);
  fastdream::cpu::lambda_return_backward<double>({weight.data(), c.live.data(), c.mix.data(), c.value.data(), ret.data(),
                                                  d_reward.data(), d_live.data(), d_mix.data(), d_value.data(), c.rows,
                                                  c.steps});
  struct Gradient {
    const char* name;
    Vec Case::* input;
    const Vec* actual;
  };
  const Gradient gradients[] = {{"d_reward", &Case::reward, &d_reward},
                                {"d_live", &Case::live, &d_live},
                                {"d_mix", &Case::mix, &d_mix},
                                {"d_value", &Case::value, &d_value}};
  const double eps = 1e-6;
  for (const Gradient& g : gradients) {
    for (size_t i = 0; i < size; ++i) {
      double& x = (c.*g.input)[i];
      const double kept = x;
      x = kept + eps;
      const double up = c.loss(weight);
      x = kept - eps;
      const double down = c.loss(weight);
      x = kept;
      expect_close((*g.actual)[i], (up - down) / (2 * eps), 1e-7, g.name, i);
    }
  }
}

}  // namespace

int main() {
  for (const auto& [rows, steps] : {std::pair<int64_t, int64_t>{0, 3}, {3, 0}, {1, 1}, {2, 2}, {5, 7}, {3, 33}}) {
    const Case c(rows, steps);
    test_forward(c);
    test_backward(c);
  }
  if (failures == 0) std::printf("lambda_return: ok\n");
  return failures == 0 ? 0 : 1;
}
