#pragma once

#include "common/resident/forward_core.h"

// The phases of a forward step that make the latent, and `forward_scan`, which is the whole of observing forward.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct Forward : ForwardCore<S, T, Cta> {
  using Base = ForwardCore<S, T, Cta>;
  using Weights = ForwardWeights<S>;
  using Base::a, Base::c, Base::held, Base::x, Base::kDeter, Base::kStoch, Base::kPost;
  using Base::activate, Base::at, Base::find_roots, Base::product_at, Base::reset, Base::rows, Base::speaks, Base::vector;

  // Lanes of a row of this CTA's columns of a hidden layer, four a lane; of a variable.
  static constexpr int lanes_hidden = lanes_of(S::own_hidden, 4), lanes_classes = lanes_of(S::classes, 4);

  // Sums over the blocks: the next step's first layer, and the posterior's. Then a narrow exchange, of both.
  FD_HD void combine(int t) {
    this->template hold<typename Weights::Logits, Weights::logits>(held.logits);
    c.fetched();
    c.sync();
    c.template groups<lanes_hidden, Sum>(2 * kRows, [&](int q, auto& g) {
      const int m = q % kRows;
      const bool post = q >= kRows;
      g.each([&](int lane, Sum& s) {
        const int j = 4 * lane, k = c.rank * S::own_hidden + j;
        s.value = 0.0f;
        if (j >= S::own_hidden) return;
        const Numbers<float, 4> sums = sum_of_blocks<S>(c, a.products + product_at(0, m, post * S::own_hidden + j), t);
        const Numbers<float, 4> bias = load<4>(vector(Vectors<S>::deter_bias) + j);
        const Numbers<float, 4> embedded = widened(load<4>(x.embedded + m * S::own_hidden + j));
        Numbers<T, 4> values;
        FD_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float sum = post || !reset(m, t + 1) ? sums.at[e] : 0.0f;
          values.at[e] = rounded<T>(sum + (post ? embedded.at[e] : bias.at[e]));
          s.value += widened(values.at[e]) * widened(values.at[e]);
        }
        if (post) {
          keep(values, x.active, m, k, speaks() && m < rows(), a.post + at(m, t, S::hidden, k));
        } else {
          const bool kept = speaks() && m < rows() && t + 1 < a.length;
          keep(values, x.state, m, k, kept, a.pre + at(m, t + 1, 2 * S::hidden, k));
        }
      });
      g.sum(&Sum::value);
      g.each([&](int lane, Sum& s) {
        if (lane == 0) x.squares[post ? kPost : kDeter][c.rank][m] = s.value;
      });
    });
    c.sync();
    spread<S, kRows>(c, x.squares[kDeter][c.rank]);
    spread<S, kRows>(c, x.squares[kPost][c.rank]);
    spread_columns<S, S::own_hidden>(c, x.state, c.rank * S::own_hidden);
    spread_columns<S, S::own_hidden>(c, x.active, c.rank * S::own_hidden);
  }

  // Features of the posterior, logits, draws. Then a narrow exchange, of the draws.
  FD_HD void draw_latent(int t) {
    using Logits = typename Weights::Logits;
    find_roots(kPost, a.eps_post);
    activate(kPost, x.active, a.post_feat, S::hidden, 0, t);
    c.sync();
    this->template product_of<Logits, Weights::logits>(x.active, held.logits);
    c.sync();
    c.template groups<lanes_classes, Classes>(kRows * S::own_stoch, [&](int q, auto& g) {
      const int m = q / S::own_stoch, own = q % S::own_stoch, s = c.rank * S::own_stoch + own;
      const bool there = m < rows();
      const Index place = at(m, t, S::stoch, s);
      g.each([&](int lane, Classes& v) {
        v.value = -INFINITY;
        if (lane >= S::classes / 4) return;
        const int n = own * S::classes + 4 * lane;
        const Numbers<float, 4> sums = Logits::template sums<4>(x.partial, m, n);
        const Numbers<float, 4> bias = load<4>(vector(Vectors<S>::logits_bias) + n);
        Numbers<T, 4> values;
        FD_UNROLL
        for (int e = 0; e < 4; ++e) {
          values.at[e] = rounded<T>(sums.at[e] + bias.at[e]);
          v.x[e] = widened(values.at[e]);
          v.value = fmaxf(v.value, v.x[e]);
        }
        if (speaks() && there) store(a.logit + (place * S::classes + 4 * lane), values);
        if (speaks() && there && s == 0 && lane == 0) a.roots[at(m, t, 4, 2)] = x.roots[kPost][m];
      });
      int index = 0;
      if (a.replayed) {
        const int64_t given = there ? a.replayed[place] : 0;
        index = given < 0 ? 0 : given < S::classes ? int(given) : S::classes - 1;
      } else {
        index = drawn<S::classes>(g, x.noise[m * S::own_stoch + own], a.unimix);
      }
      g.each([&](int lane, Classes&) {
        if (lane != 0) return;
        x.index[index_at(m, s)] = uint8_t(index);
        if (speaks() && there) a.index[place] = index;
      });
    });
    c.sync();
    spread<S, S::own_stoch * kRows>(c, x.index + c.rank * S::own_stoch * kRows);
  }

  static FD_HD int index_at(int m, int s) {
    return (s / S::own_stoch * kRows + m) * S::own_stoch + s % S::own_stoch;
  }

  // The next step's first layer of stoch: a sum of gathered rows. Then a narrow exchange, of it.
  FD_HD void gather(int t) {
    const T* const table = this->template weight<Weights::table>();
    // Lanes of a row: `shares` of the variables for each four columns.
    constexpr int lanes = lanes_hidden * S::stoch < kLanes ? lanes_hidden * S::stoch : kLanes;
    constexpr int shares = lanes / lanes_hidden, each = S::stoch / shares;
    c.template groups<lanes, Row>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Row& r) {
        const int j = lane / shares * 4;
        r = {};
        if (j >= S::own_hidden) return;
        Numbers<T, 4> rows[each];
        FD_UNROLL
        for (int i = 0; i < each; ++i) {
          const int s = lane % shares * each + i;
          rows[i] = load<4>(table + (s * S::classes + x.index[index_at(m, s)]) * S::own_hidden + j);
        }
        FD_UNROLL
        for (int i = 0; i < each; ++i) {
          const Numbers<float, 4> row = widened(rows[i]);
          FD_UNROLL
          for (int e = 0; e < 4; ++e) r.sums[e] += row.at[e];
        }
      });
      g.template sum<shares>(&Row::sums);
      g.each([&](int lane, Row& r) {
        const int j = lane / shares * 4, k = S::hidden + c.rank * S::own_hidden + j;
        if (j >= S::own_hidden || lane % shares != 0) return;
        const Numbers<float, 4> bias = load<4>(vector(Vectors<S>::stoch_bias) + j);
        Numbers<T, 4> values;
        FD_UNROLL
        for (int e = 0; e < 4; ++e) {
          values.at[e] = rounded<T>((reset(m, t + 1) ? 0.0f : r.sums[e]) + bias.at[e]);
          r.squares += widened(values.at[e]) * widened(values.at[e]);
        }
        keep(values, x.state, m, k, speaks() && m < rows(), a.pre + at(m, t + 1, 2 * S::hidden, k));
      });
      g.template sum<lanes>(&Row::squares);
      g.each([&](int lane, Row& r) {
        if (lane == 0) x.squares[kStoch][c.rank][m] = r.squares;
      });
    });
    c.sync();
    spread<S, kRows>(c, x.squares[kStoch][c.rank]);
    spread_columns<S, S::own_hidden>(c, x.state, S::hidden + c.rank * S::own_hidden);
  }

  struct Row {
    float sums[4], squares;
  };
};

// The whole scan, for a team that `run` plays: run.phase(f) calls f with the phases of each CTA, run.narrow() and
// run.wide() let the CTAs of a block, or all of them, see what they gave to one another.
// What depends on no exchange that has begun is computed while that goes on.
template <class Run>
FD_HD void forward_scan(Run& run, int length) {
  run.phase([](auto& cta) { cta.begin(); });
  run.begun();
  run.phase([](auto& cta) { cta.multiply_deter(0); });
  run.phase([](auto& cta) { cta.activate_deter(0); });
  run.phase([](auto& cta) { cta.multiply_features(0); });
  for (int t = 0; t < length; ++t) {
    const bool more = t + 1 < length;
    run.phase([t](auto& cta) { cta.hide(t); });
    run.phase([t](auto& cta) { cta.fetch_inputs(t); });
    run.wide();
    run.phase([t](auto& cta) { cta.activate_hidden(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.gate(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.project(t); });
    if (more) run.phase([t](auto& cta) { cta.multiply_deter(t + 1); });
    run.wide();
    run.phase([t](auto& cta) { cta.combine(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.draw_latent(t); });
    if (more) run.phase([t](auto& cta) { cta.activate_deter(t + 1); });
    run.narrow();
    if (!more) break;
    run.phase([t](auto& cta) { cta.gather(t); });
    run.phase([t](auto& cta) { cta.multiply_features(t + 1); });
    run.narrow();
  }
}

}  // namespace fastdream::resident
