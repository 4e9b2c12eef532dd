#pragma once

#include "common/resident/plan.h"

// What the backward scan reads, writes and keeps in a CTA's shared memory. B rows of the batch, T steps.
namespace fastdream::resident {

// Tensors are contiguous; those of T are of the products' type. The caller owns all memory. What it writes are gradients
// at every step, from which flat products make those of the weights.
template <typename T>
struct BackwardArgs {
  const T* weights;      // [team, BackwardWeights::elements]
  const float* vectors;  // [team, Vectors::elements], as for the forward scan
  const T *deter0, *deter, *logit;  // the forward scan's, [B, D], [B, T, D], [B, T, S * C]
  const int32_t* resets;
  const T *pre, *hidden, *gates, *post;  // what it kept
  const float* roots;
  const T *d_deter, *d_stoch, *d_logit;  // gradients of its results, [B, T, ...] or null: zeros
  // Gradients at every step of the logits, by whatever way, and of what the forward scan kept, likewise shaped.
  T *logits, *d_pre, *d_hidden, *d_gates, *d_post;
  float* totals;  // [tiles, Totals::elements] sums over a tile's rows and steps
  float* carried;  // [B, D] of deter0, but for what comes through its features
  float* sums;     // [tiles, 16, team] zeros, a workspace: each CTA's part of sums over the hidden layer
  float* products;  // [tiles, blocks, 16, 2H] zeros, a workspace: each block's part of products over all of deter
  int32_t* failed;
  int64_t* clocks;
  int batch, length;
  float unimix;
};

// Gradients of biases and of norms' scales, one after the other.
template <class S>
struct Totals {
  static constexpr int logits_bias = 0;
  static constexpr int gates_bias = logits_bias + S::flat;
  static constexpr int pre_bias = gates_bias + 3 * S::deter;
  static constexpr int pre_scale = pre_bias + 2 * S::hidden;
  static constexpr int post_scale = pre_scale + 2 * S::hidden;
  static constexpr int hidden_scale = post_scale + S::hidden;
  static constexpr int elements = hidden_scale + S::deter;
};

// All but the weights.
template <class S, typename T>
struct BackwardRest {
  using Weights = BackwardWeights<S>;
  // Left operands, by `left_offset`.
  alignas(16) T pair[kRows * 2 * S::hidden];  // the posterior's layer | the next step's layer of deter
  // One after the other in a step: gradients of the logits, of the block's gates, of its hidden layer. What lies past the
  // logits' is, from the end of a step to the beginning of the one before, the next step's layer of stoch.
  alignas(16) T wide[kRows * larger(S::flat + S::hidden, 3 * S::block)];
  static constexpr int stoch = kRows * S::flat;
  static_assert(S::block <= S::flat, "the hidden layer's gradients leave that of stoch alone");
  alignas(16) float partial[larger(larger(Weights::OfState::partial + Weights::OfDeter::partial, Weights::Gates::partial),
                                   larger(larger(Weights::Logits::partial, Weights::Table::partial),
                                          Weights::ToDeter::partial))];
  alignas(16) float vectors[Vectors<S>::elements];
  // This CTA's columns of what the forward scan kept and of gradients from outside, [16, columns], a step ahead.
  alignas(16) T logit[kRows * S::own_flat];
  alignas(16) T d_logit[kRows * S::own_flat];
  alignas(16) T d_stoch[kRows * S::own_flat];
  alignas(16) T post[kRows * S::own_hidden];
  alignas(16) T pre[2][kRows * S::own_hidden];  // deter, stoch
  alignas(16) T d_deter[kRows * S::own];
  alignas(16) T gates[3][kRows * S::own];
  alignas(16) T before[kRows * S::own];  // deter before the step
  alignas(16) T hidden[kRows * S::own];
  alignas(16) float roots[2][kRows * 4];  // of even and of odd steps: deter, stoch, post, hidden
  alignas(16) float dots[3][S::ranks][kRows];  // each rank's part of the sums that norms' gradients need: deter, stoch, post
  // Of the normalised numbers: gradients of this CTA's columns.
  alignas(16) float slopes[2][kRows * S::own_hidden];  // the posterior's layer, later in the step those of deter and stoch
  alignas(16) float slope[kRows * S::own];
  alignas(16) float carry[kRows * S::own];  // what reaches deter from the step after, but for what comes through its features
  float sums[kRows];
  alignas(4) int32_t resets[2];
};

template <class S, typename T>
struct BackwardShared : BackwardRest<S, T> {
  static constexpr int kept = BackwardWeights<S>::kept_beside(sizeof(BackwardRest<S, bf16>));
  alignas(16) T weights[kept];
};

}  // namespace fastdream::resident
