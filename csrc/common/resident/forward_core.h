#pragma once

#include "common/resident/forward_cta.h"

// The phases of a forward step that make deter: of the blocks, each by its cluster.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct ForwardCore : ForwardCta<S, T, Cta> {
  using Base = ForwardCta<S, T, Cta>;
  using Weights = ForwardWeights<S>;
  using Hidden = typename Weights::Hidden;
  using Base::a, Base::c, Base::held, Base::x, Base::kDeter, Base::kStoch;
  using Base::activate, Base::at, Base::column, Base::cta, Base::fetch_entered, Base::find_roots, Base::product_at,
      Base::reset, Base::rows, Base::vector;

  // Lanes of a row of this CTA's columns of deter, two a lane.
  static constexpr int lanes = lanes_of(S::own, 2);

  // Of the core's hidden layer of step t, what comes from deter before it.
  FD_HD void multiply_deter(int t) {
    held.hidden = {};
    multiply_hidden<0>(x.deter);
    if (t > 0) fetch_entered(t);
  }

  // Features of deter, for step t.
  FD_HD void activate_deter(int t) {
    find_roots(kDeter, a.eps_state);
    activate(kDeter, x.state, a.pre_feat, 2 * S::hidden, 0, t);
  }

  // What comes from these. A row that forgets its state has no part of deter, whatever deter is: it is left out, not
  // multiplied by 0.
  FD_HD void multiply_features(int t) {
    c.sync();
    c.forget(held.hidden, [&](int m) { return reset(m, t); });
    multiply_hidden<1>(x.state);
  }

  // An activation times the n-th of the hidden layer's weights.
  template <int n>
  FD_HD void multiply_hidden(const T* activation) {
    const T* const weights = this->template weight<Weights::hidden + n * Hidden::elements>();
    c.multiply(activation, weights, held.hidden);
  }

  // Features of stoch; the core's hidden layer before its norm. Then a wide exchange, of sums of squares.
  FD_HD void hide(int t) {
    c.fetched();
    find_roots(kStoch, a.eps_state);
    activate(kStoch, x.state + kRows * S::hidden, a.pre_feat, 2 * S::hidden, S::hidden, t);
    c.sync();
    multiply_hidden<2>(x.state + kRows * S::hidden);
    c.leave(held.hidden, x.partial);
    c.sync();
    float* const squares = a.squares + (Index(c.tile) * kRows * S::team + cta());
    c.template groups<lanes, Sum>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Sum& s) {
        const int n = 2 * lane;
        s.value = 0.0f;
        if (n >= S::own) return;
        const Numbers<float, 2> sums = Hidden::template sums<2>(x.partial, m, n);
        const Numbers<float, 2> entered = widened(load<2>(x.entered + m * S::own + n));
        const Numbers<T, 2> values = rounded<T>(Numbers<float, 2>{entered.at[0] + sums.at[0], entered.at[1] + sums.at[1]});
        const Numbers<float, 2> wide = widened(values);
        s.value = wide.at[0] * wide.at[0] + wide.at[1] * wide.at[1];
        store(x.own_hidden + m * S::own + n, wide);
        if (m < rows()) store(a.hidden + at(m, t, S::deter, column(n)), values);
      });
      g.sum(&Sum::value);
      g.each([&](int lane, Sum& s) {
        if (lane == 0) c.give(squares + m * S::team, Numbers<float, 1>{s.value}, t);
      });
    });
  }

  // Begin to copy what the rest of the step needs.
  FD_HD void fetch_inputs(int t) {
    this->fetch_resets(t + 1);
    fetch_rows<S::own_hidden>(c, rows(), x.embedded, a.embedded + at(0, t, S::hidden, c.rank * S::own_hidden),
                              a.length * S::hidden);
    if (!a.noise) return;
    fetch_rows<S::own_stoch>(c, rows(), x.noise, a.noise + at(0, t, S::stoch, c.rank * S::own_stoch),
                             a.length * S::stoch);
  }

  // Norm and activation of the hidden layer. Then a narrow exchange, of the block's columns.
  FD_HD void activate_hidden(int t) {
    gather_sums<S>(c, a.squares + Index(c.tile) * kRows * S::team, x.sums, t);
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2;
      const float root = inverse_root(x.sums[m] * (1.0f / S::deter) + a.eps_hidden);
      const Numbers<float, 2> before = load<2>(x.own_hidden + m * S::own + n);
      const Numbers<float, 2> scale = load<2>(vector(Vectors<S>::hidden_scale) + n);
      Numbers<T, 2> values;
      FD_UNROLL
      for (int e = 0; e < 2; ++e) values.at[e] = rounded<T>(silu(before.at[e] * root * scale.at[e]));
      keep(values, x.active, m, c.rank * S::own + n, m < rows(), a.hidden_feat + at(m, t, S::deter, column(n)));
      if (m < rows() && n == 0 && cta() == 0) {
        float* const roots = a.roots + at(m, t, 4, 0);
        roots[0] = x.roots[kDeter][m];
        roots[1] = x.roots[kStoch][m];
        roots[3] = root;
      }
    });
    c.sync();
    spread_columns<S, S::own>(c, x.active, c.rank * S::own);
  }

  // Gates and the new deter. Then a narrow exchange, of deter's columns.
  FD_HD void gate(int t) {
    using Gates = typename Weights::Gates;
    product<Gates>(c, x.active, this->template weight<Weights::gates>(), x.partial);
    c.sync();
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2;
      Numbers<float, 2> gates[3], after;
      FD_UNROLL
      for (int j = 0; j < 3; ++j) {
        const Numbers<float, 2> bias = load<2>(vector(Vectors<S>::gates_bias) + j * S::own + n);
        const Numbers<float, 2> sums = Gates::template sums<2>(x.partial, m, j * S::own + n);
        FD_UNROLL
        for (int e = 0; e < 2; ++e) gates[j].at[e] = sums.at[e] + bias.at[e];
        const Numbers<T, 2> kept = rounded<T>(gates[j]);
        gates[j] = widened(kept);
        const Index to = at(m, t, 3 * S::deter, (c.block * 3 + j) * S::block + c.rank * S::own + n);
        if (m < rows()) store(a.gates + to, kept);
      }
      T* const own = x.own_deter + m * S::own + n;
      const Numbers<float, 2> old = widened(load<2>(own));
      FD_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float before = reset(m, t) ? 0.0f : old.at[e];
        after.at[e] = gated(gates[0].at[e], gates[1].at[e], gates[2].at[e], before);
      }
      const Numbers<T, 2> values = rounded<T>(after);
      store(own, values);
      keep(values, x.deter, m, c.rank * S::own + n, m < rows(), a.deter + at(m, t, S::deter, column(n)));
    });
    c.sync();
    spread_columns<S, S::own>(c, x.deter, c.rank * S::own);
  }

  // The block's part of the products over all of deter. Then a wide exchange, of these.
  FD_HD void project(int t) {
    using OfNext = typename Weights::OfNext;
    product<OfNext>(c, x.deter, this->template weight<Weights::of_next>(), x.partial);
    c.sync();
    c.each(kRows * OfNext::columns / 4, [&](int i) {
      const int m = i / (OfNext::columns / 4), n = i % (OfNext::columns / 4) * 4;
      c.give(a.products + product_at(c.block, m, n), OfNext::template sums<4>(x.partial, m, n), t);
    });
  }
};

}  // namespace fastdream::resident
