#pragma once

#include "common/resident/backward_totals.h"

// Observing backward, as phases of a CTA, and `backward_scan`, which is the whole of it.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct Backward : BackwardTotals<S, T, Cta> {
  using Base = BackwardTotals<S, T, Cta>;
  using Weights = BackwardWeights<S>;
  using Base::a, Base::c, Base::held, Base::x, Base::kDeter, Base::kStoch, Base::kPost, Base::kHidden;
  using Base::at, Base::column, Base::cta, Base::fetch_state, Base::fetch_step, Base::lanes,
      Base::lanes_classes, Base::lanes_hidden, Base::product_at, Base::reset, Base::root,
      Base::rows, Base::slope_of, Base::speaks, Base::stoch, Base::through_norm, Base::vector;

  // Gradients of the samples, from the step after and from outside, and of the logits. Then a narrow exchange, of these.
  FD_HD void slope_logits(int t) {
    using Table = typename Weights::Table;
    c.fetched();
    fetch_state(t);
    this->template product_of<Table, Weights::table>(stoch(), held.table);
    c.sync();
    constexpr int used = S::classes / 4;
    c.template groups<lanes_classes, Slopes>(kRows * S::own_stoch, [&](int q, auto& g) {
      const int m = q / S::own_stoch, first = q % S::own_stoch * S::classes;
      g.each([&](int lane, Slopes& v) {
        v.value = -INFINITY;
        if (lane >= used) return;
        const int n = first + 4 * lane;
        const Numbers<float, 4> logit = widened(load<4>(x.logit + m * S::own_flat + n));
        const Numbers<float, 4> outside = given<4>(a.d_stoch, x.d_stoch + m * S::own_flat + n);
        const Numbers<float, 4> sums = Table::template sums<4>(x.partial, m, n);
        FD_UNROLL
        for (int e = 0; e < 4; ++e) {
          v.x[e] = logit.at[e];
          v.slope[e] = sums.at[e] + outside.at[e];
          v.value = fmaxf(v.value, v.x[e]);
        }
      });
      straight_through(g, used, a.unimix);
      g.each([&](int lane, Slopes& v) {
        if (lane >= used) return;
        const int n = first + 4 * lane, k = c.rank * S::own_flat + n;
        const Numbers<float, 4> outside = given<4>(a.d_logit, x.d_logit + m * S::own_flat + n);
        Numbers<T, 4> values;
        FD_UNROLL
        for (int e = 0; e < 4; ++e) {
          values.at[e] = rounded<T>(v.x[e] + outside.at[e]);
          if (m < rows()) held.logits_bias.of((m * S::own_flat + n) / 4)[e] += widened(values.at[e]);
        }
        keep(values, x.wide, m, k, speaks() && m < rows(), a.logits + at(m, t, S::flat, k));
      });
    });
    c.sync();
    spread_columns<S, S::own_flat>(c, x.wide, c.rank * S::own_flat);
  }

  // What was fetched of a gradient that may be absent.
  template <int N>
  static FD_HD Numbers<float, N> given(const T* gradient, const T* fetched) {
    return gradient ? widened(load<N>(fetched)) : Numbers<float, N>{};
  }

  // Through the posterior's layers. Then a narrow exchange, of sums for its first layer's norm.
  FD_HD void slope_post(int t) {
    using Logits = typename Weights::Logits;
    this->template product_of<Logits, Weights::logits>(x.wide, held.logits);
    c.sync();
    c.template groups<lanes_hidden, Sum>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Sum& s) {
        const int j = 4 * lane;
        s.value = 0.0f;
        if (j >= S::own_hidden) return;
        float* const totals = held.post_scale.of((m * S::own_hidden + j) / 4);
        s.value = slope_of(kPost, m, t, j, Logits::template sums<4>(x.partial, m, j), x.post, x.slopes[0], totals);
      });
      g.sum(&Sum::value);
      g.each([&](int lane, Sum& s) {
        if (lane == 0) x.dots[kPost][c.rank][m] = s.value;
      });
    });
    c.sync();
    spread<S, kRows>(c, x.dots[kPost][c.rank]);
  }

  // The posterior's layer before its norm. Then a narrow exchange, of its columns.
  FD_HD void finish_post(int t) {
    constexpr int fours = S::own_hidden / 4;
    c.each(kRows * fours, [&](int i) {
      const int m = i / fours, j = i % fours * 4, k = c.rank * S::own_hidden + j;
      through_norm(kPost, m, t, j, x.post, x.slopes[0], x.pair, k, false, a.d_post + at(m, t, S::hidden, k));
    });
    c.sync();
    spread_columns<S, S::own_hidden>(c, x.pair, c.rank * S::own_hidden);
  }

  // The gradient of deter, through the gates. Then a narrow exchange, of the gates' columns.
  FD_HD void slope_gates(int t) {
    using ToDeter = typename Weights::ToDeter;
    product<ToDeter>(c, x.pair, this->template weight<Weights::to_deter>(), x.partial);
    c.sync();
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2, own = m * S::own + n;
      const Numbers<float, 2> sums = ToDeter::template sums<2>(x.partial, m, n), carried = load<2>(x.carry + own);
      const Numbers<float, 2> outside = given<2>(a.d_deter, x.d_deter + own), before = widened(load<2>(x.before + own));
      Numbers<float, 2> gates[3];
      Numbers<T, 2> slopes[3];
      FD_UNROLL
      for (int j = 0; j < 3; ++j) gates[j] = widened(load<2>(x.gates[j] + own));
      Numbers<float, 2> carry;
      FD_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float slope = sums.at[e] + carried.at[e] + outside.at[e];
        const float old = reset(m, t) ? 0.0f : before.at[e];
        const GateSlopes d =
            gated_slopes(gates[0].at[e], gates[1].at[e], gates[2].at[e], old, slope);
        slopes[0].at[e] = rounded<T>(d.reset);
        slopes[1].at[e] = rounded<T>(d.cand);
        slopes[2].at[e] = rounded<T>(d.update);
        carry.at[e] = reset(m, t) ? 0.0f : d.deter;
        if (m >= rows()) continue;
        FD_UNROLL
        for (int j = 0; j < 3; ++j) held.gates_bias.of(own / 2)[2 * j + e] += widened(slopes[j].at[e]);
      }
      store(x.carry + own, carry);
      FD_UNROLL
      for (int j = 0; j < 3; ++j) {
        const int k = j * S::block + c.rank * S::own + n;
        keep(slopes[j], x.wide, m, k, m < rows(), a.d_gates + at(m, t, 3 * S::deter, c.block * 3 * S::block + k));
      }
    });
    c.sync();
    for (int j = 0; j < 3; ++j) spread_columns<S, S::own>(c, x.wide, j * S::block + c.rank * S::own);
  }

  // Through the gates' weights and the hidden layer's activation. Then a wide exchange, of sums for its norm.
  FD_HD void slope_hidden(int t) {
    using Gates = typename Weights::Gates;
    product<Gates>(c, x.wide, this->template weight<Weights::gates>(), x.partial);
    c.sync();
    float* const team = a.sums + (Index(c.tile) * kRows * S::team + cta());
    c.template groups<lanes, Sum>(kRows, [&](int m, auto& g) {
      g.each([&](int lane, Sum& s) {
        const int n = 2 * lane;
        s.value = 0.0f;
        if (n >= S::own) return;
        const Numbers<float, 2> sums = Gates::template sums<2>(x.partial, m, n);
        const Numbers<float, 2> scale = load<2>(vector(Vectors<S>::hidden_scale) + n);
        const Numbers<float, 2> hidden = widened(load<2>(x.hidden + m * S::own + n));
        Numbers<float, 2> slopes;
        FD_UNROLL
        for (int e = 0; e < 2; ++e) {
          const float normal = hidden.at[e] * root(kHidden, m, t);
          const float outer = sums.at[e] * silu_slope(normal * scale.at[e]);
          slopes.at[e] = outer * scale.at[e];
          s.value += slopes.at[e] * normal;
          if (m < rows()) held.hidden_scale.of((m * S::own + n) / 2)[e] += outer * normal;
        }
        store(x.slope + m * S::own + n, slopes);
      });
      g.sum(&Sum::value);
      g.each([&](int lane, Sum& s) {
        if (lane == 0) c.give(team + m * S::team, Numbers<float, 1>{s.value}, t);
      });
    });
  }

  // The hidden layer before its norm. Then a narrow exchange, of its columns.
  FD_HD void finish_hidden(int t) {
    gather_sums<S>(c, a.sums + Index(c.tile) * kRows * S::team, x.sums, t);
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2;
      const float mean = x.sums[m] * (1.0f / S::deter), root = this->root(kHidden, m, t);
      const Numbers<float, 2> hidden = widened(load<2>(x.hidden + m * S::own + n));
      const Numbers<float, 2> slopes = load<2>(x.slope + m * S::own + n);
      Numbers<T, 2> values;
      FD_UNROLL
      for (int e = 0; e < 2; ++e) {
        values.at[e] = rounded<T>(root * (slopes.at[e] - hidden.at[e] * root * mean));
      }
      keep(values, x.wide, m, c.rank * S::own + n, m < rows(), a.d_hidden + at(m, t, S::deter, column(n)));
    });
    c.sync();
    spread_columns<S, S::own>(c, x.wide, c.rank * S::own);
  }

  // The block's part of the features' gradients, and its own deter's. Then a wide exchange, of the former.
  FD_HD void slope_features(int t) {
    using OfState = typename Weights::OfState;
    using OfDeter = typename Weights::OfDeter;
    float* const of_deter = x.partial + OfState::partial;
    product<OfState>(c, x.wide, this->template weight<Weights::of_state>(), x.partial);
    product<OfDeter>(c, x.wide, this->template weight<Weights::of_deter>(), of_deter);
    c.sync();
    c.each(kRows * OfState::columns / 4, [&](int i) {
      const int m = i / (OfState::columns / 4), n = i % (OfState::columns / 4) * 4;
      c.give(a.products + product_at(c.block, m, n), OfState::template sums<4>(x.partial, m, n), t);
    });
    c.each(kRows * S::own / 2, [&](int i) {
      const int m = i / (S::own / 2), n = i % (S::own / 2) * 2;
      Numbers<float, 2> carry = load<2>(x.carry + m * S::own + n);
      const Numbers<float, 2> sums = OfDeter::template sums<2>(of_deter, m, n);
      FD_UNROLL
      for (int e = 0; e < 2; ++e) carry.at[e] += reset(m, t) ? 0.0f : sums.at[e];
      store(x.carry + m * S::own + n, carry);
      if (t > 0 || m >= rows()) return;
      store(a.carried + (Index(c.tile * kRows + m) * S::deter + column(n)), carry);
    });
  }

  // Sums over the blocks, through the activations of the state's layers. Then a narrow exchange, of sums for their norms.
  FD_HD void slope_state(int t) {
    c.fetched();
    if (t > 0) fetch_step(t - 1);
    c.sync();
    c.template groups<lanes_hidden, Sum>(2 * kRows, [&](int q, auto& g) {
      const int m = q % kRows, half = q / kRows;
      g.each([&](int lane, Sum& s) {
        const int j = 4 * lane;
        s.value = 0.0f;
        if (j >= S::own_hidden) return;
        const Numbers<float, 4> sums = sum_of_blocks<S>(c, a.products + product_at(0, m, half * S::own_hidden + j), t);
        s.value = slope_of(half ? kStoch : kDeter, m, t, j, sums, x.pre[half], x.slopes[half],
                           held.pre_scale.of((q * S::own_hidden + j) / 4));
      });
      g.sum(&Sum::value);
      g.each([&](int lane, Sum& s) {
        if (lane == 0) x.dots[half ? kStoch : kDeter][c.rank][m] = s.value;
      });
    });
    c.sync();
    spread<S, kRows>(c, x.dots[kDeter][c.rank]);
    spread<S, kRows>(c, x.dots[kStoch][c.rank]);
  }

  // The state's layers before their norms. Rows that forgot their state pass nothing on. Then a narrow exchange, of these.
  FD_HD void finish_state(int t) {
    constexpr int fours = S::own_hidden / 4;
    c.each(2 * kRows * fours, [&](int i) {
      const int half = i / (kRows * fours), m = i / fours % kRows, j = i % fours * 4, k = c.rank * S::own_hidden + j;
      T* const to = half ? stoch() : x.pair + kRows * S::hidden;  // columns from H on follow those before
      const Numbers<T, 4> values = through_norm(half ? kStoch : kDeter, m, t, j, x.pre[half], x.slopes[half], to, k,
                                                reset(m, t), a.d_pre + at(m, t, 2 * S::hidden, half * S::hidden + k));
      FD_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (m < rows()) held.pre_bias.of(i)[e] += widened(values.at[e]);
      }
    });
    c.sync();
    spread_columns<S, S::own_hidden>(c, x.pair, S::hidden + c.rank * S::own_hidden);
    spread_columns<S, S::own_hidden>(c, stoch(), c.rank * S::own_hidden);
  }

  // Weights of the next phases.
  FD_HD void hold_weights() {
    this->template hold<typename Weights::Table, Weights::table>(held.table);
    this->template hold<typename Weights::Logits, Weights::logits>(held.logits);
  }
};

// The whole scan, for a team that `run` plays, as in `forward_scan`.
template <class Run>
FD_HD void backward_scan(Run& run, int length) {
  run.phase([](auto& cta) { cta.begin(); });
  run.begun();
  run.phase([](auto& cta) { cta.hold_weights(); });
  for (int t = length - 1; t >= 0; --t) {
    run.phase([t](auto& cta) { cta.slope_logits(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.slope_post(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.finish_post(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.slope_gates(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.slope_hidden(t); });
    run.wide();
    run.phase([t](auto& cta) { cta.finish_hidden(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.slope_features(t); });
    run.wide();
    run.phase([t](auto& cta) { cta.slope_state(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.finish_state(t); });
    run.phase([](auto& cta) { cta.hold_weights(); });
    run.narrow();
  }
  run.phase([](auto& cta) { cta.finish_totals(); });
}

}  // namespace fastdream::resident
