#pragma once

#include "common/resident/cta.h"
#include "common/resident/forward_data.h"

// A CTA of the forward scan: where its share is, its first phase, and what several phases do.
namespace fastdream::resident {

template <class S, typename T, class Cta>
struct ForwardParts {
  using Weights = ForwardWeights<S>;
  using Args = ForwardArgs<T>;
  using Shared = ForwardShared<S, T>;

  struct Held {
    typename Cta::template Sums<typename Weights::Hidden> hidden;  // of the core's hidden layer, before entered is added
    typename Cta::template Held<typename Weights::Logits> logits;
  };
};

template <class S, typename T, class Cta>
struct ForwardCta : ScanCta<S, T, Cta, ForwardParts<S, T, Cta>> {
  using Base = ScanCta<S, T, Cta, ForwardParts<S, T, Cta>>;
  using typename Base::Shared, typename Base::Weights;
  using Base::a, Base::at, Base::c, Base::column, Base::cta, Base::rows, Base::speaks, Base::vector, Base::x;
  enum Norms { kDeter, kStoch, kPost };

  // Weights come to the chip, and the state before the first step.
  FD_HD void begin() {
    fetch_all(c, x.weights, a.weights + int64_t(cta()) * Weights::elements, Shared::kept);
    c.each(Vectors<S>::elements, [&](int i) { x.vectors[i] = a.vectors[int64_t(cta()) * Vectors<S>::elements + i]; });
    c.each(kRows * S::block, [&](int i) {
      const int m = left_row_at(i), k = left_column_at(i);
      const int64_t from = int64_t(c.tile * kRows + m) * S::deter + c.block * S::block + k;
      const T value = m < rows() ? a.deter0[from] : rounded<T>(0.0f);
      x.deter[i] = value;
      const int n = k - c.rank * S::own;
      if (n >= 0 && n < S::own) x.own_deter[m * S::own + n] = value;
    });
    c.each(kRows * 2 * S::hidden, [&](int i) {
      const int m = left_row_at(i), k = left_column_at(i);
      const int64_t from = int64_t(c.tile * kRows + m) * 2 * S::hidden + k;
      x.state[i] = m < rows() ? a.first[from] : rounded<T>(0.0f);
    });
    fetch_resets(0);
    fetch_entered(0);
    c.fetched();
    c.sync();
    c.each(2 * S::ranks * kRows, [&](int i) {
      const int m = i % kRows, rank = i / kRows % S::ranks, which = i / kRows / S::ranks;
      float sum = 0.0f;
      for (int n = 0; n < S::own_hidden; ++n) {
        const float value = widened(x.state[left_offset(m, which * S::hidden + rank * S::own_hidden + n)]);
        sum += value * value;
      }
      x.squares[which][rank][m] = sum;
    });
    c.each(rows() * 2 * S::own_hidden, [&](int i) {
      const int m = i / (2 * S::own_hidden), n = i % (2 * S::own_hidden);
      const int k = n / S::own_hidden * S::hidden + c.rank * S::own_hidden + n % S::own_hidden;
      if (speaks()) a.pre[at(m, 0, 2 * S::hidden, k)] = x.state[left_offset(m, k)];
    });
  }

  FD_HD void fetch_resets(int t) {
    const int32_t* const from = a.resets + int64_t(c.tile) * (a.length + 1) + t;
    c.each(1, [&](int) { c.template fetch<4>(&x.resets[t % 2], from); });
  }

  FD_HD void fetch_entered(int t) {
    fetch_rows<S::own>(c, rows(), x.entered, a.entered + at(0, t, S::deter, column(0)), a.length * S::deter);
  }

  // x.roots of a norm from the ranks' sums of squares.
  FD_HD void find_roots(Norms which, float eps) {
    c.each(kRows, [&](int m) {
      float sum = 0.0f;
      FD_UNROLL
      for (int rank = 0; rank < S::ranks; ++rank) sum += x.squares[which][rank][m];
      x.roots[which][m] = inverse_root(sum * (1.0f / S::hidden) + eps);
    });
    c.sync();
  }

  // Norm and activation, in place, of the columns of one norm: a lane's eight elements at a time. This rank's columns are
  // kept in columns from `first` on of `feat` [B, T, width].
  FD_HD void activate(Norms which, T* activation, T* feat, int width, int first, int t) {
    c.each(S::hidden / kStep * kLanes, [&](int i) {
      const int m = left_row(i % kLanes, 0), k = i / kLanes * kStep + left_column(i % kLanes, 0);
      const Numbers<float, 8> before = widened(load<8>(activation + i * 8));
      const float* const root = x.roots[which] + m;
      const float* const scale = vector(Vectors<S>::scales) + which * S::hidden + k;
      const float roots[2] = {root[0], root[8]};
      const Numbers<float, 2> scales[2] = {load<2>(scale), load<2>(scale + 8)};
      Numbers<float, 8> values;
      FD_UNROLL
      for (int e = 0; e < 8; ++e) {
        const float normal = before.at[e] * roots[left_row(0, e) / 8];
        values.at[e] = silu(normal * scales[left_column(0, e) / 8].at[e % 2]);
      }
      const Numbers<T, 8> after = rounded<T>(values);
      store(activation + i * 8, after);
      if (!speaks()) return;
      FD_UNROLL
      for (int e = 0; e < 8; e += 2) {
        const int row = m + left_row(0, e), column = k + left_column(0, e);
        const bool mine = column / S::own_hidden == c.rank && row < rows();
        if (mine) store(feat + at(row, t, width, first + column), Numbers<T, 2>{after.at[e], after.at[e + 1]});
      }
    });
  }
};

}  // namespace fastdream::resident
