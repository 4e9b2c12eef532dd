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
  T *pre_terms, *hidden_terms, *post_terms;  // what sums over rows to the gradients of the norms' scales
  float* carried;  // [B, D] of deter0, but for what comes through its features
  float* sums;     // [tiles, team, 16] a workspace: each CTA's part of sums over the hidden layer
  float* products;  // [tiles, blocks, 16, 2H] a workspace: each block's part of products over all of deter
  int32_t* barrier;
  int32_t* failed;
  int64_t* clocks;
  int batch, length;
  float unimix;
};

template <class S, typename T>
struct BackwardShared {
  using Weights = BackwardWeights<S>;
  alignas(16) T weights[Weights::kept];
  // Left operands, by `left_offset`. First the gradient of what a layer's norm gave, as its rank computed it; then, in
  // place, that of what the norm took.
  alignas(16) T pair[kRows * 2 * S::hidden];  // the posterior's layer | the next step's layer of deter
  // One after the other in a step: gradients of the logits, of the block's gates, of its hidden layer. What lies past the
  // logits' is, from the end of a step to the beginning of the one before, the next step's layer of stoch.
  alignas(16) T wide[kRows * larger(S::flat + S::hidden, 3 * S::block)];
  static constexpr int stoch = kRows * S::flat;
  static_assert(S::block <= S::flat, "the hidden layer's gradients leave that of stoch alone");
  // Partial products, and after those of the samples' gradients the logits and the samples' gradients.
  static constexpr int logits = Weights::Table::partial;
  alignas(16) float partial[larger(larger(Weights::OfState::partial + Weights::OfDeter::partial, Weights::Gates::partial),
                                   larger(larger(Weights::Logits::partial, logits + 2 * kRows * S::own_flat),
                                          Weights::ToDeter::partial))];
  alignas(16) float vectors[Vectors<S>::elements];
  float dots[3][S::ranks][kRows];  // each rank's part of the sums that norms' gradients need: deter, stoch, post
  float terms[2][kRows * S::own_hidden];  // of which a rank adds them: one layer's, or deter's and stoch's
  float means[3][kRows];
  float roots[4][kRows];  // of this step: deter, stoch, post, hidden
  float sums[kRows * kWarps];
  float carry[kRows * S::own];   // what reaches deter from the step after, but for what comes through its features
  float slope[kRows * S::own];   // of the hidden layer's normalised numbers, and these
  float normal[kRows * S::own];
  int32_t resets[2];
};

}  // namespace fastdream::resident
