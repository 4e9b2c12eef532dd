// The layouts of csrc/common/resident: an mma's operands lie where its lanes read them, products equal plain ones.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/resident/backward_data.h"
#include "common/resident/forward_data.h"
#include "cpu/resident_run.h"

using namespace fastdream;
using namespace fastdream::resident;

namespace {

int failures = 0;

void check(bool good, const char* what) {
  if (good) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

float random_number() { return float(std::rand() % 2001 - 1000) / 1000.0f; }

// Every offset once, and the way back.
void test_offsets() {
  constexpr int columns = 96;
  std::vector<int> seen(kRows * columns, 0);
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < columns; ++k) {
      const int offset = left_offset(m, k);
      ++seen.at(size_t(offset));
      check(left_row_at(offset) == m && left_column_at(offset) == k, "an activation's offset leads back");
      bool in_piece = false;
      for (int lane = 0; lane < kLanes; ++lane) {
        const int first = piece_offset(k / 8, lane);
        in_piece |= offset >= first && offset < first + kPiece;
      }
      check(in_piece, "an element is in a piece of its eight columns");
    }
  }
  for (int count : seen) check(count == 1, "an activation's elements have places of their own");
  std::vector<int> weights(64 * 24, 0);
  for (int k = 0; k < 64; ++k) {
    for (int n = 0; n < 24; ++n) ++weights.at(size_t(right_offset(k, n, 64)));
  }
  for (int count : weights) check(count == 1, "a weight's elements have places of their own");
}

template <class P>
void test_product(const char* name) {
  std::vector<float> a(kRows * P::rows), b(P::elements), left(a.size()), right(b.size()), partial(P::partial, NAN);
  for (float& x : a) x = random_number();
  for (float& x : b) x = random_number();
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < P::rows; ++k) left[left_offset(m, k)] = a[m * P::rows + k];
  }
  for (int k = 0; k < P::rows; ++k) {
    for (int n = 0; n < P::columns; ++n) right[right_offset(k, n, P::rows)] = b[k * P::columns + n];
  }
  HostProducts products;
  HostSums<P> sums;
  products.multiply(left.data(), right.data(), sums);
  products.leave<P>(sums, partial.data());
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < P::columns; ++n) {
      double sum = 0;
      for (int k = 0; k < P::rows; ++k) sum += double(a[m * P::rows + k]) * b[k * P::columns + n];
      check(std::abs(P::template sums<1>(partial.data(), m, n).at[0] - sum) < 1e-4, name);
    }
  }
}

template <class S>
void test_products() {
  using Forward = ForwardWeights<S>;
  using Backward = BackwardWeights<S>;
  test_product<typename Forward::Hidden>("forward: of deter and of the state's features");
  test_product<typename Forward::Gates>("forward: gates");
  test_product<typename Forward::OfNext>("forward: of the next layers");
  test_product<typename Forward::Logits>("forward: logits");
  test_product<typename Backward::ToDeter>("backward: to deter");
  test_product<typename Backward::Gates>("backward: gates");
  test_product<typename Backward::OfState>("backward: of the state's features");
  test_product<typename Backward::OfDeter>("backward: of deter");
  test_product<typename Backward::Logits>("backward: logits");
  test_product<typename Backward::Table>("backward: table");
}

void test_rounding() {
  const auto round_trip = [](float x) { return widened(rounded<bf16>(x)); };
  check(round_trip(1.0f) == 1.0f && round_trip(-0.15625f) == -0.15625f, "what bfloat16 has stays");
  check(round_trip(1.0f + 1.0f / 256) == 1.0f, "a tie goes to the even one below");
  check(round_trip(1.0f + 3.0f / 256) == 1.0f + 4.0f / 256, "a tie goes to the even one above");
  check(round_trip(1.0f + 1.1f / 256) == 1.0f + 2.0f / 256, "above a tie goes up");
  check(std::isinf(round_trip(3.4e38f)), "what is too large becomes infinite");
  check(std::isnan(round_trip(NAN)), "NaN stays");
}

}  // namespace

int main() {
  test_offsets();
  test_rounding();
  test_products<Tiny>();
  test_products<Size1m>();
  test_products<Size12m>();
  test_products<Size12mBy8>();
  test_products<Size25m>();
  if (failures == 0) std::puts("ok");
  return failures != 0;
}
