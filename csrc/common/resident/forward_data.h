#pragma once

#include "common/resident/plan.h"

// What the forward scan reads, writes and keeps in a CTA's shared memory. B rows of the batch, T steps.
namespace fastdream::resident {

// Tensors are contiguous; those of T are of the products' type. The caller owns all memory.
template <typename T>
struct ForwardArgs {
  const T* weights;      // [team, ForwardWeights::elements]
  const float* vectors;  // [team, Vectors::elements]
  const T* deter0;       // [B, D] before the first step
  const T* first;        // [B, 2H] the first step's layers of deter | stoch before their norms
  const T* entered;      // [B, T, D] the actions' part of the core's hidden layer, with its bias
  const T* embedded;     // [B, T, H] the embeddings' part of the posterior's first layer, with its bias
  const int32_t* resets;  // [tiles, T + 1] bit m: row m of the tile forgets its state before this step
  const float* noise;    // [B, T, S] or null
  const int64_t* replayed;  // [B, T, S] draws to repeat, or null
  T *deter, *logit;      // [B, T, D], [B, T, S * C]
  int64_t* index;        // [B, T, S]
  // Kept for gradients: the layers of deter | stoch, the core's hidden one, the gates, and the posterior's, before norms
  // and functions, [B, T, 2H], [B, T, D], [B, T, 3D], [B, T, H]; and the features that norm and activation make of them.
  T *pre, *hidden, *gates, *post;
  T *pre_feat, *hidden_feat, *post_feat;
  float* roots;          // [B, T, 4] the norms' 1 / root mean square: deter, stoch, post, hidden
  float* squares;        // [tiles, 16, team] zeros, a workspace: each CTA's part of the hidden layer's sum of squares
  float* products;       // [tiles, blocks, 16, 2H] zeros, a workspace: each block's part of the products over all of deter
  int32_t* failed;       // set if a CTA was waited for in vain
  int64_t* clocks;       // null, or where the first CTA notes its clock before and after every phase
  int batch, length;
  float eps_state, eps_hidden, eps_post, unimix;
};

// All but the weights.
template <class S, typename T>
struct ForwardRest {
  using Weights = ForwardWeights<S>;
  alignas(16) T deter[kRows * S::block];       // left operands, by `left_offset`: the block's state,
  alignas(16) T state[kRows * 2 * S::hidden];  // the features of deter | stoch, before the norm and then after it,
  // and the core's hidden layer, later in the step the posterior's, likewise.
  alignas(16) T active[kRows * larger(S::block, S::hidden)];
  alignas(16) float partial[larger(larger(Weights::Gates::partial, Weights::Hidden::partial),
                                   larger(Weights::OfNext::partial, Weights::Logits::partial))];
  alignas(16) float vectors[Vectors<S>::elements];
  alignas(16) T entered[kRows * S::own];
  alignas(16) T embedded[kRows * S::own_hidden];
  alignas(16) float noise[kRows * S::own_stoch];
  alignas(16) float squares[3][S::ranks][kRows];  // each rank's part of sums of squares: deter, stoch, post
  float roots[3][kRows];
  float sums[kRows];
  alignas(16) T own_deter[kRows * S::own];
  alignas(16) float own_hidden[kRows * S::own];
  alignas(16) uint8_t index[kRows * S::stoch];  // [ranks, 16, own_stoch]
  alignas(4) int32_t resets[2];  // of even and of odd steps
};

template <class S, typename T>
struct ForwardShared : ForwardRest<S, T> {
  static constexpr int kept = ForwardWeights<S>::kept_beside(sizeof(ForwardRest<S, bf16>));
  alignas(16) T weights[kept];
};

}  // namespace fastdream::resident
