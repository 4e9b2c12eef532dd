#pragma once

#include "common/resident/backward_data.h"
#include "common/resident/cta.h"

// A CTA of the backward scan: where its share is, its first phase, and what several phases do.
//
// A norm's gradient needs a sum over the whole row: with v the gradient of its normalised numbers n, that of what it took
// is root * (v - n * mean(v n)). So ranks first spread their parts of the sum, then their columns of the gradient.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct BackwardParts {
  using Weights = BackwardWeights<S>;
  using Args = BackwardArgs<T>;
  using Shared = BackwardShared<S, T>;

  struct Held {
    typename Cta::template Held<typename Weights::Table> table;
    typename Cta::template Held<typename Weights::Logits> logits;
    // Sums over steps, of neighbours in a row: as many items as the phase has to which they belong.
    typename Cta::template Totals<kRows * S::own_flat / 4, 4> logits_bias;
    typename Cta::template Totals<kRows * S::own / 2, 6> gates_bias;
    typename Cta::template Totals<kRows * 2 * S::own_hidden / 4, 4> pre_bias, pre_scale;
    typename Cta::template Totals<kRows * S::own_hidden / 4, 4> post_scale;
    typename Cta::template Totals<kRows * S::own / 2, 2> hidden_scale;
  };
};

template <class S, typename T, class Cta>
struct BackwardCta : ScanCta<S, T, Cta, BackwardParts<S, T, Cta>> {
  using Base = ScanCta<S, T, Cta, BackwardParts<S, T, Cta>>;
  using typename Base::Shared, typename Base::Weights;
  using Base::a, Base::at, Base::c, Base::column, Base::cta, Base::held, Base::rows, Base::speaks, Base::vector, Base::x;
  enum Norms { kDeter, kStoch, kPost, kHidden };

  FD_HD T* stoch() const { return x.wide + Shared::stoch; }  // the next step's layer of stoch

  // Weights come to the chip; nothing comes from after the last step.
  FD_HD void begin() {
    fetch_all(c, x.weights, a.weights + int64_t(cta()) * Weights::elements, Shared::kept);
    c.each(Vectors<S>::elements, [&](int i) { x.vectors[i] = a.vectors[int64_t(cta()) * Vectors<S>::elements + i]; });
    c.each(kRows * 2 * S::hidden, [&](int i) { x.pair[i] = rounded<T>(0.0f); });
    c.each(kRows * S::hidden, [&](int i) { stoch()[i] = rounded<T>(0.0f); });
    c.each(kRows * S::own, [&](int i) { x.carry[i] = 0.0f; });
    held = {};
    fetch_step(a.length - 1);
    c.fetched();
    c.sync();
  }

  // Begin to copy what step t needs but for the state's layers: this CTA's columns of it.
  FD_HD void fetch_step(int t) {
    const int flat = c.rank * S::own_flat, gates = c.block * 3 * S::block + c.rank * S::own;
    fetch_columns<S::own_flat>(x.logit, a.logit, S::flat, flat, t);
    fetch_columns<S::own_flat>(x.d_logit, a.d_logit, S::flat, flat, t);
    fetch_columns<S::own_flat>(x.d_stoch, a.d_stoch, S::flat, flat, t);
    fetch_columns<S::own_hidden>(x.post, a.post, S::hidden, c.rank * S::own_hidden, t);
    fetch_columns<S::own>(x.d_deter, a.d_deter, S::deter, column(0), t);
    for (int j = 0; j < 3; ++j) fetch_columns<S::own>(x.gates[j], a.gates, 3 * S::deter, gates + j * S::block, t);
    fetch_columns<S::own>(x.hidden, a.hidden, S::deter, column(0), t);
    if (t > 0) {
      fetch_columns<S::own>(x.before, a.deter, S::deter, column(0), t - 1);
    } else {
      fetch_rows<S::own>(c, rows(), x.before, a.deter0 + int64_t(c.tile) * kRows * S::deter + column(0), S::deter);
    }
    fetch_rows<4>(c, rows(), x.roots[t % 2], a.roots + at(0, t, 4, 0), a.length * 4);
    c.each(1, [&](int) { c.template fetch<4>(&x.resets[t % 2], a.resets + int64_t(c.tile) * (a.length + 1) + t); });
  }

  // The state's layers of step t, before their norms.
  FD_HD void fetch_state(int t) {
    for (int j = 0; j < 2; ++j) {
      fetch_columns<S::own_hidden>(x.pre[j], a.pre, 2 * S::hidden, j * S::hidden + c.rank * S::own_hidden, t);
    }
  }

  // Columns [first, first + count) of step t of a tensor [B, T, width], if there is one.
  template <int count>
  FD_HD void fetch_columns(T* to, const T* from, int width, int first, int t) {
    if (from) fetch_rows<count>(c, rows(), to, from + at(0, t, width, first), a.length * width);
  }

  FD_HD float root(Norms which, int m, int t) const { return x.roots[t % 2][m * 4 + which]; }

  // From the gradient of own features j ... j + 3 of a layer, `pre` before its norm, to that of its normalised numbers, kept
  // at `slopes`, and what the norm's scale gets, added to `totals`. Returns their part of the norm's sum.
  FD_HD float slope_of(Norms which, int m, int t, int j, const Numbers<float, 4>& gradient, const T* pre, float* slopes,
                       float* totals) {
    const float root = this->root(which, m, t);
    const Numbers<float, 4> before = widened(load<4>(pre + m * S::own_hidden + j));
    const Numbers<float, 4> scale = load<4>(vector(Vectors<S>::scales) + which * S::hidden + c.rank * S::own_hidden + j);
    Numbers<float, 4> slope;
    float sum = 0.0f;
    FD_UNROLL
    for (int e = 0; e < 4; ++e) {
      const float normal = before.at[e] * root;
      const float outer = gradient.at[e] * silu_slope(normal * scale.at[e]);
      slope.at[e] = outer * scale.at[e];
      sum += slope.at[e] * normal;
      if (m < rows()) totals[e] += outer * normal;
    }
    store(slopes + m * S::own_hidden + j, slope);
    return sum;
  }

  // From there to the gradient of what the norm took: into columns from k on of an activation, zeros if `forget`, and into
  // a tensor. Returns it.
  FD_HD Numbers<T, 4> through_norm(Norms which, int m, int t, int j, const T* pre, const float* slopes, T* activation,
                                   int k, bool forget, T* out) {
    const float root = this->root(which, m, t);
    float sum = 0.0f;
    FD_UNROLL
    for (int rank = 0; rank < S::ranks; ++rank) sum += x.dots[which][rank][m];
    const float mean = sum * (1.0f / S::hidden);
    const Numbers<float, 4> before = widened(load<4>(pre + m * S::own_hidden + j));
    const Numbers<float, 4> slope = load<4>(slopes + m * S::own_hidden + j);
    Numbers<T, 4> values;
    FD_UNROLL
    for (int e = 0; e < 4; ++e) {
      values.at[e] = rounded<T>(root * (slope.at[e] - before.at[e] * root * mean));
    }
    if (speaks() && m < rows()) store(out, values);
    FD_UNROLL
    for (int e = 0; e < 4; e += 2) {
      const Numbers<T, 2> pair = {forget ? rounded<T>(0.0f) : values.at[e], forget ? rounded<T>(0.0f) : values.at[e + 1]};
      store(activation + left_offset(m, k + e), pair);
    }
    return values;
  }
};

}  // namespace fastdream::resident
