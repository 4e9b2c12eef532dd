#pragma once

#include "common/resident/phase.h"

// What a CTA of either scan knows of itself: where its share is, and its weights.
namespace fastdream::resident {

// Parts: the types of the scan's weights, arguments and shared memory, and of what its threads keep from phase to phase.
template <class S, typename T, class Cta, class Parts>
struct ScanCta {
  using Weights = typename Parts::Weights;
  using Args = typename Parts::Args;
  using Shared = typename Parts::Shared;
  using Held = typename Parts::Held;

  Cta& c;
  const Args& a;
  Held& held;
  Shared& x = c.mine;

  FD_HD int rows() const { return a.batch - c.tile * kRows < kRows ? a.batch - c.tile * kRows : kRows; }
  // Of a tensor [B, T, width]: where its column of row m of the tile is at step t.
  FD_HD Index at(int m, int t, int width, int column) const {
    return (Index(c.tile * kRows + m) * a.length + t) * width + column;
  }
  FD_HD int cta() const { return c.block * S::ranks + c.rank; }
  FD_HD int column(int n) const { return c.block * S::block + c.rank * S::own + n; }  // of deter
  FD_HD bool speaks() const { return c.block == 0; }  // writes what all blocks compute alike
  FD_HD bool reset(int m, int t) const { return bit(x.resets[t % 2], m); }
  FD_HD const float* vector(int offset) const { return x.vectors + offset; }

  // Weight number `offset` of this CTA, wherever it is kept.
  template <int offset>
  FD_HD const T* weight() const {
    if constexpr (offset < Shared::kept) {
      return x.weights + offset;
    } else {
      return a.weights + int64_t(cta()) * Weights::elements + offset;
    }
  }

  // Begin to read a product's weights into registers, where they are not on the chip.
  template <class P, int offset>
  FD_HD void hold(typename Cta::template Held<P>& held) {
    if constexpr (offset >= Shared::kept) c.hold(weight<offset>(), held);
  }

  // The product with these.
  template <class P, int offset>
  FD_HD void product_of(const T* left, const typename Cta::template Held<P>& held) {
    if constexpr (offset >= Shared::kept) {
      product<P>(c, left, held, x.partial);
    } else {
      product<P>(c, left, weight<offset>(), x.partial);
    }
  }

  FD_HD Index product_at(int block, int m, int n) const {
    const int k = n / S::own_hidden * S::hidden + c.rank * S::own_hidden + n % S::own_hidden;
    return ((Index(c.tile) * S::blocks + block) * kRows + m) * 2 * S::hidden + k;
  }
};

}  // namespace fastdream::resident
