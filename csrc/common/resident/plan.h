#pragma once

#include <cstddef>
#include <cstdint>

#include "common/bf16.h"
#include "common/resident/numbers.h"
#include "common/resident/fragments.h"

// How observing is divided among CTAs whose weights stay on chip.
//
// A team of blocks * ranks CTAs takes 16 rows of the batch through all steps. CTA (block, rank) owns `own` of the block's
// columns of deter, `own_hidden` columns of every hidden layer and `own_stoch` variables of the latent. The CTAs of one
// block are a cluster: what they compute, they spread to one another (the narrow exchange). Blocks meet twice a step, in
// global memory (the wide exchange): for the norm of the core's hidden layer, and for products over all of deter, which
// every block computes in part. What needs no other block (the posterior after its first product, the draws) each cluster
// computes for itself. With one rank the whole team is one cluster, and both exchanges are that cluster's.
namespace fastdream::resident {

// Of the elements of a tensor, of which there are less than 2^31.
using Index = uint32_t;

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kLanes;

template <int Blocks, int Deter, int Hidden, int Stoch, int Classes, int Ranks>
struct Shape {
  static constexpr int blocks = Blocks, deter = Deter, hidden = Hidden, stoch = Stoch, classes = Classes;
  static constexpr int ranks = Ranks;
  static constexpr int block = Deter / Blocks, flat = Stoch * Classes;
  static constexpr int own = block / Ranks, own_hidden = Hidden / Ranks, own_stoch = Stoch / Ranks;
  static constexpr int own_flat = own_stoch * Classes;
  static constexpr int team = Blocks * Ranks;
  static constexpr bool one_cluster = Ranks == 1;
  static constexpr int cluster = one_cluster ? Blocks : Ranks;
  static_assert(block % kPair == 0 && Hidden % kPair == 0 && flat % kPair == 0, "products go in pairs of tiles");
  static_assert(own % kStrip == 0 && own_hidden % kStrip == 0 && own_flat % kStrip == 0, "and in whole strips");
  static_assert(own * Ranks == block && own_hidden * Ranks == Hidden && own_stoch * Ranks == Stoch, "even shares");
};

// The presets of DreamerV3 whose weights fit on chip, and one for tests.
using Tiny = Shape<2, 64, 32, 4, 8, 2>;
using Size1m = Shape<8, 512, 64, 32, 4, 1>;
using Size12m = Shape<8, 2048, 256, 32, 16, 16>;
using Size12mBy8 = Shape<8, 2048, 256, 32, 16, 8>;
using Size25m = Shape<8, 3072, 384, 32, 24, 16>;

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int power_of_two(int least) { return least <= 1 ? 1 : 2 * power_of_two((least + 1) / 2); }

// [16, K] times [K, N]: the warps share K by `split` and the strips by `groups`, and leave `split` partial results, which
// whoever reads them adds in order. An odd number of eights between rows of them keeps lanes on different banks.
template <int K, int N>
struct Product {
  static constexpr int rows = K, columns = N, elements = K * N;
  static constexpr int pairs = K / kPair, strips = N / kStrip;
  static constexpr int row = strips % 2 ? N : N + kStrip;
  static constexpr int most = strips >= 12 ? 2 : strips > 2 ? 4 : 8;
  static constexpr int split = pairs % most == 0 ? most : pairs % 4 == 0 ? 4 : pairs % 2 == 0 ? 2 : 1;
  static constexpr int groups = kWarps / split;
  static constexpr int strips_each = (strips + groups - 1) / groups;
  static constexpr int partial = split * kRows * row;
  static_assert(pairs % split == 0, "even shares");

  // Whether a group of warps has an s-th strip.
  static FD_HD bool has(int s, int group) { return strips % groups == 0 || s * groups + group < strips; }

  // Elements [m, n ... n + Count) of the product, from its partial results; n is a multiple of Count.
  template <int Count>
  static FD_HD Numbers<float, Count> sums(const float* partial, int m, int n) {
    Numbers<float, Count> parts[split], total = {};
    FD_UNROLL
    for (int s = 0; s < split; ++s) parts[s] = load<Count>(partial + (s * kRows + m) * row + n);
    FD_UNROLL
    for (int s = 0; s < split; ++s) {
      FD_UNROLL
      for (int i = 0; i < Count; ++i) total.at[i] += parts[s].at[i];
    }
    return total;
  }
};

// Bytes that a CTA can have on compute capability 9.0, but for those of its exchanges.
constexpr size_t kSharedLimit = 227 * 1024 - 128;

// The largest of these numbers of weights of 2 bytes that fit beside so many bytes.
template <size_t Count>
constexpr int largest_beside(size_t bytes, const int (&numbers)[Count]) {
  int largest = 0;
  for (int number : numbers) {
    if (number > largest && bytes + size_t(number) * 2 <= kSharedLimit) largest = number;
  }
  return largest;
}

// A CTA's weights, one after the other; as many of them as fit beside all else, from the first, lie in its shared memory.
template <class S>
struct ForwardWeights {
  using Hidden = Product<S::block, S::own>;           // from deter, from the features of deter, from those of stoch
  static_assert(S::block == S::hidden, "these have the same shape");
  using Gates = Product<S::block, 3 * S::own>;        // reset | cand | update
  using OfNext = Product<S::block, 2 * S::own_hidden>;  // to the next step's first layer | the posterior's
  using Logits = Product<S::hidden, S::own_flat>;
  static constexpr int hidden = 0;
  static constexpr int gates = hidden + 3 * Hidden::elements;
  static constexpr int of_next = gates + Gates::elements;
  static constexpr int table = of_next + OfNext::elements;  // [flat, own_hidden], rows to gather
  static constexpr int logits = table + S::flat * S::own_hidden;
  static constexpr int elements = logits + Logits::elements;
  static constexpr int kept_beside(size_t bytes) { return largest_beside(bytes, {of_next, table, logits, elements}); }
};

template <class S>
struct BackwardWeights {
  using ToDeter = Product<2 * S::hidden, S::own>;  // from the posterior's first layer | the next step's
  using Gates = Product<3 * S::block, S::own>;
  using OfState = Product<S::block, 2 * S::own_hidden>;
  using OfDeter = Product<S::block, S::own>;
  using Logits = Product<S::flat, S::own_hidden>;
  using Table = Product<S::hidden, S::own_flat>;
  static constexpr int to_deter = 0;
  static constexpr int gates = to_deter + ToDeter::elements;
  static constexpr int of_state = gates + Gates::elements;
  static constexpr int of_deter = of_state + OfState::elements;
  static constexpr int logits = of_deter + OfDeter::elements;
  static constexpr int table = logits + Logits::elements;
  static constexpr int elements = table + Table::elements;
  static constexpr int kept_beside(size_t bytes) {
    return largest_beside(bytes, {gates, of_state, of_deter, logits, table, elements});
  }
};

// A CTA's norms and biases in float, one after the other, for both directions.
template <class S>
struct Vectors {
  static constexpr int scales = 0;  // of deter | stoch | the posterior, whole rows
  static constexpr int hidden_scale = 3 * S::hidden;
  static constexpr int gates_bias = hidden_scale + S::own;
  static constexpr int deter_bias = gates_bias + 3 * S::own;
  static constexpr int stoch_bias = deter_bias + S::own_hidden;
  static constexpr int logits_bias = stoch_bias + S::own_hidden;
  static constexpr int elements = logits_bias + S::own_flat;
};

}  // namespace fastdream::resident
