#pragma once

#include "common/resident/backward_cta.h"

// The end of the backward scan: what threads added up over the steps, for biases and norms' scales, is added up over rows.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct BackwardTotals : BackwardCta<S, T, Cta> {
  using Base = BackwardCta<S, T, Cta>;
  using To = Totals<S>;
  using Base::a, Base::c, Base::held, Base::x;

  // Lanes of a row of this CTA's columns of deter, two a lane; of its columns of a hidden layer, four a lane; of a variable.
  static constexpr int lanes = lanes_of(S::own, 2), lanes_hidden = lanes_of(S::own_hidden, 4);
  static constexpr int lanes_classes = lanes_of(S::classes, 4);

  // Each thread gives what it has in the phase in which it was added up, of the same items.
  FD_HD void finish_totals() {
    const bool alone = this->speaks();
    const auto of_hidden = [&](int n) { return n / S::own_hidden * S::hidden + c.rank * S::own_hidden + n % S::own_hidden; };
    c.sync();
    c.template groups<lanes_classes, Sum>(kRows * S::own_stoch, [&](int q, auto& g) {
      g.each([&](int lane, Sum&) {
        const int m = q / S::own_stoch, n = q % S::own_stoch * S::classes + 4 * lane;
        if (lane < S::classes / 4) put<4, S::own_flat>(held.logits_bias.of((m * S::own_flat + n) / 4), m, n);
      });
    });
    add_rows<S::own_flat>(alone, [&](int n) { return To::logits_bias + c.rank * S::own_flat + n; });
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2;
      FD_UNROLL
      for (int j = 0; j < 3; ++j) put<2, 3 * S::own>(held.gates_bias.of(i) + 2 * j, m, j * S::own + n);
    });
    add_rows<3 * S::own>(true, [&](int n) {
      return To::gates_bias + (c.block * 3 + n / S::own) * S::block + c.rank * S::own + n % S::own;
    });
    constexpr int fours = S::own_hidden / 4;
    c.each(2 * kRows * fours, [&](int i) {
      const int half = i / (kRows * fours), m = i / fours % kRows, j = i % fours * 4;
      put<4, 2 * S::own_hidden>(held.pre_bias.of(i), m, half * S::own_hidden + j);
    });
    add_rows<2 * S::own_hidden>(alone, [&](int n) { return To::pre_bias + of_hidden(n); });
    c.template groups<lanes_hidden, Sum>(2 * kRows, [&](int q, auto& g) {
      g.each([&](int lane, Sum&) {
        const int m = q % kRows, half = q / kRows, j = 4 * lane;
        if (j >= S::own_hidden) return;
        put<4, 2 * S::own_hidden>(held.pre_scale.of((q * S::own_hidden + j) / 4), m, half * S::own_hidden + j);
      });
    });
    add_rows<2 * S::own_hidden>(alone, [&](int n) { return To::pre_scale + of_hidden(n); });
    c.template groups<lanes_hidden, Sum>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Sum&) {
        const int j = 4 * lane;
        if (j < S::own_hidden) put<4, S::own_hidden>(held.post_scale.of((m * S::own_hidden + j) / 4), m, j);
      });
    });
    add_rows<S::own_hidden>(alone, [&](int n) { return To::post_scale + of_hidden(n); });
    c.template groups<lanes, Sum>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Sum&) {
        const int n = 2 * lane;
        if (n < S::own) put<2, S::own>(held.hidden_scale.of((m * S::own + n) / 2), m, n);
      });
    });
    add_rows<S::own>(true, [&](int n) { return To::hidden_scale + this->column(n); });
  }

 private:
  // N neighbours of row m from column n on, into x.partial, [16, columns].
  template <int N, int columns>
  FD_HD void put(const float* totals, int m, int n) {
    FD_UNROLL
    for (int k = 0; k < N; ++k) x.partial[m * columns + n + k] = totals[k];
  }

  // The n-th column's sum goes to place out(n) among the totals.
  template <int columns, class Out>
  FD_HD void add_rows(bool wanted, Out out) {
    static_assert(kRows * columns * sizeof(float) <= sizeof(x.partial), "the rows fit");
    c.sync();
    c.each(columns, [&](int n) {
      float sum = 0.0f;
      FD_UNROLL8
      for (int m = 0; m < kRows; ++m) sum += x.partial[m * columns + n];
      if (wanted) a.totals[int64_t(c.tile) * To::elements + out(n)] = sum;
    });
    c.sync();
  }
};

}  // namespace fastdream::resident
