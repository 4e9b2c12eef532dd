#pragma once

#include "common/resident/forward_cta.h"

// Observing forward, as phases of a CTA, and `forward_scan`, which is the whole of it.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct Forward : ForwardCta<S, T, Cta> {
  using Base = ForwardCta<S, T, Cta>;
  using Weights = ForwardWeights<S>;
  using Hidden = typename Weights::Hidden;
  using Base::a, Base::c, Base::held, Base::x, Base::kDeter, Base::kStoch, Base::kPost;
  using Base::activate, Base::at, Base::column, Base::cta, Base::fetch_entered, Base::find_roots, Base::reset, Base::rows,
      Base::speaks, Base::vector;

  // Lanes of a row of this CTA's columns of deter, two a lane; of its columns of a hidden layer, four a lane; of a variable.
  static constexpr int lanes = lanes_of(S::own, 2), lanes_hidden = lanes_of(S::own_hidden, 4);
  static constexpr int lanes_classes = lanes_of(S::classes, 4);

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
    float* const squares = a.squares + int64_t(c.tile) * kRows * S::team + cta();
    c.template groups<lanes, Sum>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Sum& s) {
        const int n = 2 * lane;
        s.value = 0.0f;
        if (n >= S::own) return;
        const Numbers<float, 2> sums = Hidden::template sums<2>(x.partial, m, n);
        const Numbers<T, 2> entered = load<2>(x.entered + m * S::own + n);
        Numbers<T, 2> values;
        Numbers<float, 2> wide;
        FD_UNROLL
        for (int i = 0; i < 2; ++i) {
          values.at[i] = rounded<T>(widened(entered.at[i]) + sums.at[i]);
          wide.at[i] = widened(values.at[i]);
          s.value += wide.at[i] * wide.at[i];
        }
        store(x.own_hidden + m * S::own + n, wide);
        if (m < rows()) store(a.hidden + at(m, t) * S::deter + column(n), values);
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
    fetch_rows<S::own_hidden>(c, rows(), x.embedded, a.embedded + at(0, t) * S::hidden + c.rank * S::own_hidden,
                              int64_t(a.length) * S::hidden);
    if (!a.noise) return;
    fetch_rows<S::own_stoch>(c, rows(), x.noise, a.noise + at(0, t) * S::stoch + c.rank * S::own_stoch,
                             int64_t(a.length) * S::stoch);
  }

  // Norm and activation of the hidden layer. Then a narrow exchange, of the block's columns.
  FD_HD void activate_hidden(int t) {
    gather_sums<S>(c, a.squares + int64_t(c.tile) * kRows * S::team, x.sums, t);
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2;
      const float root = inverse_root(x.sums[m] * (1.0f / S::deter) + a.eps_hidden);
      const Numbers<float, 2> before = load<2>(x.own_hidden + m * S::own + n);
      const Numbers<float, 2> scale = load<2>(vector(Vectors<S>::hidden_scale) + n);
      Numbers<T, 2> values;
      FD_UNROLL
      for (int e = 0; e < 2; ++e) values.at[e] = rounded<T>(silu(before.at[e] * root * scale.at[e]));
      keep(values, x.active, m, c.rank * S::own + n, m < rows(), a.hidden_feat + at(m, t) * S::deter + column(n));
      if (m < rows() && n == 0 && cta() == 0) {
        float* const roots = a.roots + at(m, t) * 4;
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
      Numbers<T, 2> gates[3], values;
      FD_UNROLL
      for (int j = 0; j < 3; ++j) {
        const Numbers<float, 2> bias = load<2>(vector(Vectors<S>::gates_bias) + j * S::own + n);
        const Numbers<float, 2> sums = Gates::template sums<2>(x.partial, m, j * S::own + n);
        FD_UNROLL
        for (int e = 0; e < 2; ++e) gates[j].at[e] = rounded<T>(sums.at[e] + bias.at[e]);
        const int64_t to = at(m, t) * 3 * S::deter + (c.block * 3 + j) * S::block + c.rank * S::own + n;
        if (m < rows()) store(a.gates + to, gates[j]);
      }
      T* const own = x.own_deter + m * S::own + n;
      const Numbers<T, 2> old = load<2>(own);
      FD_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float before = reset(m, t) ? 0.0f : widened(old.at[e]);
        const float after = gated(widened(gates[0].at[e]), widened(gates[1].at[e]), widened(gates[2].at[e]), before);
        values.at[e] = rounded<T>(after);
      }
      store(own, values);
      keep(values, x.deter, m, c.rank * S::own + n, m < rows(), a.deter + at(m, t) * S::deter + column(n));
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

  FD_HD int64_t product_at(int block, int m, int n) const {
    const int k = n / S::own_hidden * S::hidden + c.rank * S::own_hidden + n % S::own_hidden;
    return ((int64_t(c.tile) * S::blocks + block) * kRows + m) * 2 * S::hidden + k;
  }

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
        const Numbers<T, 4> embedded = load<4>(x.embedded + m * S::own_hidden + j);
        Numbers<T, 4> values;
        FD_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float sum = post || !reset(m, t + 1) ? sums.at[e] : 0.0f;
          values.at[e] = rounded<T>(sum + (post ? widened(embedded.at[e]) : bias.at[e]));
          s.value += widened(values.at[e]) * widened(values.at[e]);
        }
        if (post) {
          keep(values, x.active, m, k, speaks() && m < rows(), a.post + at(m, t) * S::hidden + k);
        } else {
          const bool kept = speaks() && m < rows() && t + 1 < a.length;
          keep(values, x.state, m, k, kept, a.pre + at(m, t + 1) * 2 * S::hidden + k);
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
      const int64_t place = at(m, t) * S::stoch + s;
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
        if (speaks() && there) store(a.logit + place * S::classes + 4 * lane, values);
        if (speaks() && there && s == 0 && lane == 0) a.roots[at(m, t) * 4 + 2] = x.roots[kPost][m];
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
          FD_UNROLL
          for (int e = 0; e < 4; ++e) r.sums[e] += widened(rows[i].at[e]);
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
        keep(values, x.state, m, k, speaks() && m < rows(), a.pre + at(m, t + 1) * 2 * S::hidden + k);
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
