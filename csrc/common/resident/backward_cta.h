#pragma once

#include "common/resident/backward_data.h"
#include "common/resident/phase.h"

// A CTA of the backward scan: where its share is, its first phase, and what several phases do.
//
// A norm's gradient needs a sum over the whole row: with v the gradient of its normalised numbers n, that of what it took
// is root * (v - n * mean(v n)). So a layer's gradient goes two ways round: each rank spreads v of its columns with its
// part of the sum, and each CTA finishes all columns for itself.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct BackwardCta {
  using Weights = BackwardWeights<S>;
  using Args = BackwardArgs<T>;
  enum Norms { kDeter, kStoch, kPost, kHidden };

  Cta& c;
  const Args& a;
  BackwardShared<S, T>& x = c.mine;

  FD_HD int rows() const { return a.batch - c.tile * kRows < kRows ? a.batch - c.tile * kRows : kRows; }
  FD_HD int64_t at(int m, int t) const { return int64_t(c.tile * kRows + m) * a.length + t; }
  FD_HD int cta() const { return c.block * S::ranks + c.rank; }
  FD_HD int column(int n) const { return c.block * S::block + c.rank * S::own + n; }  // of deter
  FD_HD bool speaks() const { return c.block == 0; }  // writes what all blocks compute alike
  FD_HD bool reset(int m, int t) const { return bit(x.resets[t % 2], m); }
  FD_HD const float* vector(int offset) const { return x.vectors + offset; }

  FD_HD T* stoch() const { return x.wide + BackwardShared<S, T>::stoch; }  // the next step's layer of stoch

  // Weight number `offset` of this CTA, wherever it is kept.
  template <int offset>
  FD_HD const T* weight() const {
    if constexpr (offset < Weights::kept) {
      return x.weights + offset;
    } else {
      return a.weights + int64_t(cta()) * Weights::elements + offset;
    }
  }

  // Element `place` of a gradient that may be absent, for row m of the tile.
  FD_HD float given(const T* gradient, int m, int64_t place) const {
    return gradient && m < rows() ? widened(gradient[place]) : 0.0f;
  }

  // Own column n of deter before step t, as the gates saw it.
  FD_HD float before(int m, int t, int n) const {
    if (m >= rows() || reset(m, t)) return 0.0f;
    if (t > 0) return widened(a.deter[at(m, t - 1) * S::deter + column(n)]);
    return widened(a.deter0[int64_t(c.tile * kRows + m) * S::deter + column(n)]);
  }

  FD_HD int64_t product_at(int block, int m, int n) const {
    const int k = n / S::own_hidden * S::hidden + c.rank * S::own_hidden + n % S::own_hidden;
    return ((int64_t(c.tile) * S::blocks + block) * kRows + m) * 2 * S::hidden + k;
  }

  // Weights come to the chip; nothing comes from after the last step.
  FD_HD void begin() {
    fetch_all(c, x.weights, a.weights + int64_t(cta()) * Weights::elements, Weights::kept);
    c.each(Vectors<S>::elements, [&](int i) { x.vectors[i] = a.vectors[int64_t(cta()) * Vectors<S>::elements + i]; });
    c.each(kRows * 2 * S::hidden, [&](int i) { x.pair[i] = rounded<T>(0.0f); });
    c.each(kRows * S::hidden, [&](int i) { stoch()[i] = rounded<T>(0.0f); });
    c.each(kRows * S::own, [&](int i) { x.carry[i] = 0.0f; });
    c.fetched();
    c.sync();
  }

  // Norms and resets of step t.
  FD_HD void load_step(int t) {
    c.sync();
    c.each(4 * kRows, [&](int i) {
      const int m = i / 4;
      x.roots[i % 4][m] = m < rows() ? a.roots[at(m, t) * 4 + i % 4] : 0.0f;
    });
    c.each(1, [&](int) { x.resets[t % 2] = a.resets[int64_t(c.tile) * (a.length + 1) + t]; });
    c.sync();
  }

  // From the gradient of own feature j of a layer to that of its normalised number, kept at `to` and with its term of the
  // sum. pre: [B, T, width], the layer before its norm in columns from `first` on; terms: likewise, for the norm's scale.
  FD_HD void keep_slope(Norms which, int m, int t, int j, float gradient, T* to, const T* pre, int width, int first,
                        T* terms) {
    const int k = c.rank * S::own_hidden + j;
    const int64_t place = at(m, t) * width + first + k;
    const float normal = m < rows() ? widened(pre[place]) * x.roots[which][m] : 0.0f;
    const float scale = vector(Vectors<S>::scales)[which * S::hidden + k];
    const float slope = gradient * silu_slope(normal * scale);
    to[left_offset(m, k)] = rounded<T>(slope * scale);
    x.terms[which == kStoch][m * S::own_hidden + j] = slope * scale * normal;
    if (speaks() && m < rows()) terms[place] = rounded<T>(slope * normal);
  }

  // This rank's part of the sum.
  FD_HD void add_terms(Norms which, int m) {
    float sum = 0.0f;
    FD_UNROLL8
    for (int j = 0; j < S::own_hidden; ++j) sum += x.terms[which == kStoch][m * S::own_hidden + j];
    x.dots[which][c.rank][m] = sum;
  }

  FD_HD void find_means(int first, int count) {
    c.each(count * kRows, [&](int i) {
      const int which = first + i / kRows, m = i % kRows;
      float sum = 0.0f;
      FD_UNROLL
      for (int rank = 0; rank < S::ranks; ++rank) sum += x.dots[which][rank][m];
      x.means[which][m] = sum * (1.0f / S::hidden);
    });
    c.sync();
  }

  // From the gradient of normalised numbers to that of what the norm took, in place. This rank's columns are kept at `out`,
  // which is shaped like `pre`. forget: rows that forgot their state pass nothing on.
  FD_HD void through_norm(Norms which, int t, T* activation, const T* pre, int width, int first, bool forget, T* out) {
    c.each(kRows * S::hidden, [&](int i) {
      const int m = left_row_at(i), k = left_column_at(i);
      const int64_t place = at(m, t) * width + first + k;
      const float root = x.roots[which][m], normal = m < rows() ? widened(pre[place]) * root : 0.0f;
      const T value = rounded<T>(root * (widened(activation[i]) - normal * x.means[which][m]));
      if (speaks() && m < rows() && k / S::own_hidden == c.rank) out[place] = value;
      activation[i] = forget && reset(m, t) ? rounded<T>(0.0f) : value;
    });
  }

  // The state's layers of step t, before their norms.
  FD_HD void finish_state(int t) {
    find_means(kDeter, 2);
    through_norm(kDeter, t, x.pair + kRows * S::hidden, a.pre, 2 * S::hidden, 0, true, a.d_pre);
    through_norm(kStoch, t, stoch(), a.pre, 2 * S::hidden, S::hidden, true, a.d_pre);
  }
};

}  // namespace fastdream::resident
