#pragma once

#include "common/resident/backward_cta.h"

// Observing backward, as phases of a CTA, and `backward_scan`, which is the whole of it.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct Backward : BackwardCta<S, T, Cta> {
  using Base = BackwardCta<S, T, Cta>;
  using Weights = BackwardWeights<S>;
  using Base::a, Base::c, Base::x, Base::kDeter, Base::kStoch, Base::kPost, Base::kHidden;
  using Base::add_terms, Base::at, Base::column, Base::cta, Base::find_means, Base::given, Base::keep_slope, Base::reset,
      Base::rows, Base::speaks, Base::through_norm, Base::vector;

  // Gradients of the samples, from the step after and from outside, and of the logits. Then a narrow exchange, of these.
  FD_HD void slope_logits(int t) {
    using Table = typename Weights::Table;
    if (t + 1 < a.length) this->finish_state(t + 1);
    this->load_step(t);
    c.template product<Table>(this->stoch(), this->template weight<Weights::table>(), x.partial);
    c.sync();
    float* const logits = x.partial + BackwardShared<S, T>::logits;
    float* const slopes = logits + kRows * S::own_flat;
    c.each(kRows * S::own_flat, [&](int i) {
      const int m = i / S::own_flat, n = i % S::own_flat;
      const int64_t from = at(m, t) * S::flat + c.rank * S::own_flat + n;
      logits[i] = m < rows() ? widened(a.logit[from]) : 0.0f;
      slopes[i] = Table::sum(x.partial, m, n) + given(a.d_stoch, m, from);
    });
    c.sync();
    c.each(kRows * S::own_stoch, [&](int i) {
      straight_through<S::classes>(logits + i * S::classes, slopes + i * S::classes, a.unimix);
    });
    c.sync();
    c.each(kRows * S::own_flat, [&](int i) {
      const int m = i / S::own_flat, k = c.rank * S::own_flat + i % S::own_flat;
      const int64_t to = at(m, t) * S::flat + k;
      const T value = rounded<T>(logits[i] + given(a.d_logit, m, to));
      x.wide[left_offset(m, k)] = value;
      if (speaks() && m < rows()) a.logits[to] = value;
    });
    c.sync();
    spread_columns<S>(c, x.wide, c.rank * S::own_flat, S::own_flat);
  }

  // Through the posterior's layers. Then a narrow exchange, of its first layer's columns.
  FD_HD void slope_post(int t) {
    using Logits = typename Weights::Logits;
    c.template product<Logits>(x.wide, this->template weight<Weights::logits>(), x.partial);
    c.sync();
    c.each(kRows * S::own_hidden, [&](int i) {
      const int m = i / S::own_hidden, j = i % S::own_hidden;
      keep_slope(kPost, m, t, j, Logits::sum(x.partial, m, j), x.pair, a.post, S::hidden, 0, a.post_terms);
    });
    c.sync();
    c.each(kRows, [&](int m) { add_terms(kPost, m); });
    c.sync();
    spread<S>(c, x.dots[kPost][c.rank], kRows);
    spread_columns<S>(c, x.pair, c.rank * S::own_hidden, S::own_hidden);
  }

  // The gradient of deter, through the gates. Then a narrow exchange, of the gates' columns.
  FD_HD void slope_gates(int t) {
    using ToDeter = typename Weights::ToDeter;
    find_means(kPost, 1);
    through_norm(kPost, t, x.pair, a.post, S::hidden, 0, false, a.d_post);
    c.sync();
    c.template product<ToDeter>(x.pair, this->template weight<Weights::to_deter>(), x.partial);
    c.sync();
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      const bool there = m < rows();
      const int64_t place = at(m, t) * S::deter + column(n);
      const float slope = ToDeter::sum(x.partial, m, n) + x.carry[i] + given(a.d_deter, m, place);
      const int64_t gate = at(m, t) * 3 * S::deter + c.block * 3 * S::block + c.rank * S::own + n;
      float gates[3];
      for (int j = 0; j < 3; ++j) gates[j] = there ? widened(a.gates[gate + j * S::block]) : 0.0f;
      const GateSlopes d = gated_slopes(gates[0], gates[1], gates[2], this->before(m, t, n), slope);
      const float slopes[3] = {d.reset, d.cand, d.update};
      for (int j = 0; j < 3; ++j) {
        const T value = rounded<T>(slopes[j]);
        x.wide[left_offset(m, j * S::block + c.rank * S::own + n)] = value;
        if (there) a.d_gates[gate + j * S::block] = value;
      }
      x.carry[i] = reset(m, t) ? 0.0f : d.deter;
    });
    c.sync();
    for (int j = 0; j < 3; ++j) spread_columns<S>(c, x.wide, j * S::block + c.rank * S::own, S::own);
  }

  // Through the gates' weights and the hidden layer's activation. Then a wide exchange, of sums for its norm.
  FD_HD void slope_hidden(int t) {
    using Gates = typename Weights::Gates;
    c.template product<Gates>(x.wide, this->template weight<Weights::gates>(), x.partial);
    c.sync();
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      const int64_t place = at(m, t) * S::deter + column(n);
      const float normal = m < rows() ? widened(a.hidden[place]) * x.roots[kHidden][m] : 0.0f;
      const float scale = vector(Vectors<S>::hidden_scale)[n];
      const float slope = Gates::sum(x.partial, m, n) * silu_slope(normal * scale);
      x.normal[i] = normal;
      x.slope[i] = slope * scale;
      if (m < rows()) a.hidden_terms[place] = rounded<T>(slope * normal);
    });
    c.sync();
    c.each(kRows, [&](int m) {
      float sum = 0.0f;
      FD_UNROLL8
      for (int n = 0; n < S::own; ++n) sum += x.slope[m * S::own + n] * x.normal[m * S::own + n];
      a.sums[(int64_t(c.tile) * S::team + cta()) * kRows + m] = sum;
    });
  }

  // The hidden layer before its norm. Then a narrow exchange, of its columns.
  FD_HD void finish_hidden(int t) {
    gather_sums<S>(c, a.sums + int64_t(c.tile) * S::team * kRows, x.sums);
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      const float mean = x.sums[m * kWarps] * (1.0f / S::deter);
      const T value = rounded<T>(x.roots[kHidden][m] * (x.slope[i] - x.normal[i] * mean));
      x.wide[left_offset(m, c.rank * S::own + n)] = value;
      if (m < rows()) a.d_hidden[at(m, t) * S::deter + column(n)] = value;
    });
    c.sync();
    spread_columns<S>(c, x.wide, c.rank * S::own, S::own);
  }

  // The block's part of the features' gradients, and its own deter's. Then a wide exchange, of the former.
  FD_HD void slope_features(int t) {
    using OfState = typename Weights::OfState;
    using OfDeter = typename Weights::OfDeter;
    float* const of_deter = x.partial + OfState::partial;
    c.template product<OfState>(x.wide, this->template weight<Weights::of_state>(), x.partial);
    c.template product<OfDeter>(x.wide, this->template weight<Weights::of_deter>(), of_deter);
    c.sync();
    c.each(kRows * OfState::columns, [&](int i) {
      const int m = i / OfState::columns, n = i % OfState::columns;
      a.products[this->product_at(c.block, m, n)] = OfState::sum(x.partial, m, n);
    });
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      if (!reset(m, t)) x.carry[i] += OfDeter::sum(of_deter, m, n);
      if (t > 0 || m >= rows()) return;
      a.carried[int64_t(c.tile * kRows + m) * S::deter + column(n)] = x.carry[i];
    });
  }

  // Sums over the blocks, through the activations of the state's layers. Then a narrow exchange, of their columns.
  FD_HD void slope_state(int t) {
    c.each(kRows * 2 * S::own_hidden, [&](int i) {
      const int m = i / (2 * S::own_hidden), n = i % (2 * S::own_hidden);
      float sum = 0.0f;
      FD_UNROLL
      for (int block = 0; block < S::blocks; ++block) sum += c.fresh(a.products + this->product_at(block, m, n));
      const bool stoch = n >= S::own_hidden;
      T* const to = stoch ? this->stoch() : x.pair + kRows * S::hidden;  // columns from H on follow those before
      keep_slope(stoch ? kStoch : kDeter, m, t, n % S::own_hidden, sum, to, a.pre, 2 * S::hidden,
                 stoch ? S::hidden : 0, a.pre_terms);
    });
    c.sync();
    c.each(2 * kRows, [&](int i) { add_terms(i < kRows ? kDeter : kStoch, i % kRows); });
    c.sync();
    spread<S>(c, x.dots[kDeter][c.rank], kRows);
    spread<S>(c, x.dots[kStoch][c.rank], kRows);
    spread_columns<S>(c, x.pair, S::hidden + c.rank * S::own_hidden, S::own_hidden);
    spread_columns<S>(c, this->stoch(), c.rank * S::own_hidden, S::own_hidden);
  }
};

// The whole scan, for a team that `run` plays, as in `forward_scan`.
template <class Run>
FD_HD void backward_scan(Run& run, int length) {
  run.phase([](auto& cta) { cta.begin(); });
  run.narrow();  // nobody writes to a CTA that has not begun
  for (int t = length - 1; t >= 0; --t) {
    run.phase([t](auto& cta) { cta.slope_logits(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.slope_post(t); });
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
  }
  run.phase([](auto& cta) { cta.finish_state(0); });
}

}  // namespace fastdream::resident
