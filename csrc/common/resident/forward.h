#pragma once

#include "common/resident/forward_cta.h"

// Observing forward, as phases of a CTA, and `forward_scan`, which is the whole of it.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct Forward : ForwardCta<S, T, Cta> {
  using Base = ForwardCta<S, T, Cta>;
  using Weights = ForwardWeights<S>;
  using Base::a, Base::c, Base::x, Base::kDeter, Base::kStoch, Base::kPost;
  using Base::activate, Base::at, Base::column, Base::cta, Base::fetch_entered, Base::find_roots, Base::reset,
      Base::rows, Base::speaks, Base::squared, Base::vector;

  // Features of the state; the core's hidden layer before its norm. Then a wide exchange, of sums of squares.
  FD_HD void hide(int t) {
    c.fetched();
    find_roots(kDeter, 2, a.eps_state);
    activate(x.state, 2 * S::hidden, kDeter, a.pre_feat, t);
    this->fetch_resets(t + 1);
    fetch_rows<S::own_hidden>(c, rows(), x.embedded, a.embedded + at(0, t) * S::hidden + c.rank * S::own_hidden,
                              int64_t(a.length) * S::hidden);
    if (a.noise) {
      fetch_rows<S::own_stoch>(c, rows(), x.noise, a.noise + at(0, t) * S::stoch + c.rank * S::own_stoch,
                               int64_t(a.length) * S::stoch);
    }
    c.sync();
    using OfDeter = typename Weights::OfDeter;
    using OfState = typename Weights::OfState;
    float* const of_state = x.partial + OfDeter::partial;
    c.template product<OfDeter>(x.deter, this->template weight<Weights::of_deter>(), x.partial);
    c.template product<OfState>(x.state, this->template weight<Weights::of_state>(), of_state);
    c.sync();
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      // A row that forgets its state has no part of deter, whatever deter is: it is left out, not multiplied by 0.
      const float own = reset(m, t) ? 0.0f : OfDeter::sum(x.partial, m, n);
      const T value = rounded<T>(widened(x.entered[i]) + OfState::sum(of_state, m, n) + own);
      x.own_hidden[i] = widened(value);
      if (m < rows()) a.hidden[at(m, t) * S::deter + column(n)] = value;
    });
    c.sync();
    c.each(kRows, [&](int m) {
      float sum = 0.0f;
      FD_UNROLL8
      for (int n = 0; n < S::own; ++n) sum += x.own_hidden[m * S::own + n] * x.own_hidden[m * S::own + n];
      a.squares[(int64_t(c.tile) * S::team + cta()) * kRows + m] = sum;
    });
  }

  // Norm and activation of the hidden layer. Then a narrow exchange, of the block's columns.
  FD_HD void activate_hidden(int t) {
    gather_sums<S>(c, a.squares + int64_t(c.tile) * S::team * kRows, x.sums);
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      const float root = inverse_root(x.sums[m * kWarps] * (1.0f / S::deter) + a.eps_hidden);
      const T value = rounded<T>(silu(x.own_hidden[i] * root * vector(Vectors<S>::hidden_scale)[n]));
      x.active[left_offset(m, c.rank * S::own + n)] = value;
      if (m < rows()) a.hidden_feat[at(m, t) * S::deter + column(n)] = value;
      if (m < rows() && n == 0 && cta() == 0) {
        float* const roots = a.roots + at(m, t) * 4;
        roots[0] = x.roots[kDeter][m];
        roots[1] = x.roots[kStoch][m];
        roots[3] = root;
      }
    });
    c.sync();
    spread_columns<S>(c, x.active, c.rank * S::own, S::own);
  }

  // Gates and the new deter. Then a narrow exchange, of deter's columns.
  FD_HD void gate(int t) {
    using Gates = typename Weights::Gates;
    c.template product<Gates>(x.active, this->template weight<Weights::gates>(), x.partial);
    c.sync();
    c.each(kRows * S::own, [&](int i) {
      const int m = i / S::own, n = i % S::own;
      float gates[3];
      for (int j = 0; j < 3; ++j) {
        const float bias = vector(Vectors<S>::gates_bias)[j * S::own + n];
        const T value = rounded<T>(Gates::sum(x.partial, m, j * S::own + n) + bias);
        gates[j] = widened(value);
        const int64_t to = at(m, t) * 3 * S::deter + (c.block * 3 + j) * S::block + c.rank * S::own + n;
        if (m < rows()) a.gates[to] = value;
      }
      const float before = reset(m, t) ? 0.0f : widened(x.own_deter[i]);
      const T deter = rounded<T>(gated(gates[0], gates[1], gates[2], before));
      x.own_deter[i] = deter;
      x.deter[left_offset(m, c.rank * S::own + n)] = deter;
      if (m < rows()) a.deter[at(m, t) * S::deter + column(n)] = deter;
    });
    c.sync();
    spread_columns<S>(c, x.deter, c.rank * S::own, S::own);
  }

  // The block's part of the products over all of deter. Then a wide exchange, of these.
  FD_HD void project(int t) {
    using OfNext = typename Weights::OfNext;
    c.template product<OfNext>(x.deter, this->template weight<Weights::of_next>(), x.partial);
    if (t + 1 < a.length) fetch_entered(t + 1);
    c.sync();
    c.each(kRows * OfNext::columns, [&](int i) {
      const int m = i / OfNext::columns, n = i % OfNext::columns;
      a.products[product_at(c.block, m, n)] = OfNext::sum(x.partial, m, n);
    });
  }

  FD_HD int64_t product_at(int block, int m, int n) const {
    const int k = n / S::own_hidden * S::hidden + c.rank * S::own_hidden + n % S::own_hidden;
    return ((int64_t(c.tile) * S::blocks + block) * kRows + m) * 2 * S::hidden + k;
  }

  // Sums over the blocks: the next step's first layer, and the posterior's. Then a narrow exchange, of both.
  FD_HD void combine(int t) {
    c.fetched();
    c.sync();
    c.each(kRows * 2 * S::own_hidden, [&](int i) {
      const int m = i / (2 * S::own_hidden), n = i % (2 * S::own_hidden), j = n % S::own_hidden;
      float sum = 0.0f;
      FD_UNROLL
      for (int block = 0; block < S::blocks; ++block) sum += c.fresh(a.products + product_at(block, m, n));
      const int k = c.rank * S::own_hidden + j;
      if (n < S::own_hidden) {
        const T value = rounded<T>((reset(m, t + 1) ? 0.0f : sum) + vector(Vectors<S>::deter_bias)[j]);
        x.state[left_offset(m, k)] = value;
        if (speaks() && m < rows() && t + 1 < a.length) a.pre[at(m, t + 1) * 2 * S::hidden + k] = value;
      } else {
        const T value = rounded<T>(sum + widened(x.embedded[m * S::own_hidden + j]));
        x.active[left_offset(m, k)] = value;
        if (speaks() && m < rows()) a.post[at(m, t) * S::hidden + k] = value;
      }
    });
    c.sync();
    const int first = c.rank * S::own_hidden;
    c.each(2 * kRows, [&](int i) {
      const int m = i % kRows;
      i < kRows ? x.squares[kDeter][c.rank][m] = squared(x.state, m, first)
                : x.squares[kPost][c.rank][m] = squared(x.active, m, first);
    });
    c.sync();
    spread<S>(c, x.squares[kDeter][c.rank], kRows);
    spread<S>(c, x.squares[kPost][c.rank], kRows);
    spread_columns<S>(c, x.state, first, S::own_hidden);
    spread_columns<S>(c, x.active, first, S::own_hidden);
  }

  // Features of the posterior, logits, draws. Then a narrow exchange, of the draws.
  FD_HD void draw_latent(int t) {
    using Logits = typename Weights::Logits;
    find_roots(kPost, 1, a.eps_post);
    activate(x.active, S::hidden, kPost, a.post_feat, t);
    c.sync();
    c.template product<Logits>(x.active, this->template weight<Weights::logits>(), x.partial);
    c.sync();
    c.each(kRows * S::own_flat, [&](int i) {
      const int m = i / S::own_flat, n = i % S::own_flat;
      const T value = rounded<T>(Logits::sum(x.partial, m, n) + vector(Vectors<S>::logits_bias)[n]);
      x.logits[i] = widened(value);
      if (speaks() && m < rows()) a.logit[at(m, t) * S::flat + c.rank * S::own_flat + n] = value;
      if (speaks() && m < rows() && n == 0 && c.rank == 0) a.roots[at(m, t) * 4 + 2] = x.roots[kPost][m];
    });
    c.sync();
    c.each(kRows * S::own_stoch, [&](int i) {
      const int m = i / S::own_stoch, s = c.rank * S::own_stoch + i % S::own_stoch;
      const bool there = m < rows();
      const int64_t place = at(m, t) * S::stoch + s;
      int index = 0;
      if (there && a.replayed) {
        const int64_t given = a.replayed[place];
        index = given < 0 ? 0 : given < S::classes ? int(given) : S::classes - 1;
      } else if (there) {
        index = draw<S::classes>(x.logits + i * S::classes, x.noise[i], a.unimix);
      }
      x.index[s * kRows + m] = uint8_t(index);
      if (speaks() && there) a.index[place] = index;
    });
    c.sync();
    spread<S>(c, x.index + c.rank * S::own_stoch * kRows, S::own_stoch * kRows);
  }

  // The next step's first layer of stoch: a sum of gathered rows. Then a narrow exchange, of it.
  FD_HD void gather(int t) {
    const T* const table = this->template weight<Weights::table>();
    const int first = S::hidden + c.rank * S::own_hidden;
    c.each(kRows * S::own_hidden, [&](int i) {
      const int m = i / S::own_hidden, j = i % S::own_hidden;
      float sum = 0.0f;
      FD_UNROLL8
      for (int s = 0; s < S::stoch; ++s) {
        sum += widened(table[(s * S::classes + x.index[s * kRows + m]) * S::own_hidden + j]);
      }
      const T value = rounded<T>((reset(m, t + 1) ? 0.0f : sum) + vector(Vectors<S>::stoch_bias)[j]);
      x.state[left_offset(m, first + j)] = value;
      if (speaks() && m < rows()) a.pre[at(m, t + 1) * 2 * S::hidden + first + j] = value;
    });
    c.sync();
    c.each(kRows, [&](int m) { x.squares[kStoch][c.rank][m] = squared(x.state, m, first); });
    c.sync();
    spread<S>(c, x.squares[kStoch][c.rank], kRows);
    spread_columns<S>(c, x.state, first, S::own_hidden);
  }
};

// The whole scan, for a team that `run` plays: run.phase(f) calls f with the phases of each CTA, run.narrow() and
// run.wide() let the CTAs of a block, or all of them, see what they gave to one another.
template <class Run>
FD_HD void forward_scan(Run& run, int length) {
  run.phase([](auto& cta) { cta.begin(); });
  run.narrow();  // nobody writes to a CTA that has not begun
  for (int t = 0; t < length; ++t) {
    run.phase([t](auto& cta) { cta.hide(t); });
    run.wide();
    run.phase([t](auto& cta) { cta.activate_hidden(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.gate(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.project(t); });
    run.wide();
    run.phase([t](auto& cta) { cta.combine(t); });
    run.narrow();
    run.phase([t](auto& cta) { cta.draw_latent(t); });
    run.narrow();
    if (t + 1 == length) break;
    run.phase([t](auto& cta) { cta.gather(t); });
    run.narrow();
  }
}

}  // namespace fastdream::resident
