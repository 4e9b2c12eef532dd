#pragma once

#include "cpu/gradients.h"
#include "cpu/latent_net.h"

// The net that gives a latent's logits, backward, in the parts of cells_backward.h.
namespace fastdream::cpu::FD_ISA {

// Gradients of what LatentTrace has under this name; the last ones, of the logits, are given.
template <typename T>
struct LatentSlopes {
  Rows<T> pre[kMaxLayers];
};

template <typename T>
struct LatentNetBackward {
  Layers<T> layers;
  const LayerGradient<T>* gradient = nullptr;  // of each
  int64_t deter = 0, embed = 0;
  Product<T> of_deter, of_embed, later[kMaxLayers];

  LatentNetBackward(const LatentNet<T>& net, const LayerGradient<T>* gradient)
      : layers(net.layers), gradient(gradient), deter(net.deter), embed(net.embed) {
    if (layers.count == 0) return;
    of_deter = transposed_of(layers.at[0], 0, deter);
    of_embed = transposed_of(layers.at[0], deter, embed);
    for (int64_t i = 1; i < layers.count; ++i) later[i] = transposed_of(layers.at[i]);
  }

  template <typename Each>
  void products(Each each) {
    if (layers.count == 0) return;
    each(of_deter);
    each(of_embed);
    for (int64_t i = 1; i < layers.count; ++i) each(later[i]);
  }

  // Adds to d_deter. The logits' gradients are whole before; d_deter is after the caller's next sync.
  void step(const Split& split, const LatentTrace<T>& trace, const LatentSlopes<T>& slopes, T* sums,
            Rows<T> d_deter) const {
    for (int64_t i = layers.count - 1; i > 0; --i) {
      const Layer<T>& before = layers.at[i - 1];
      later[i].multiply(split, slopes.pre[i], slopes.pre[i - 1]);
      split.sync();
      activate_rows_backward<T>(before, gradient[i - 1], sums, split.rows, before.out, trace.pre[i - 1],
                                slopes.pre[i - 1]);
      split.sync();
    }
    if (deter) of_deter.multiply(split, slopes.pre[0], d_deter, Start::sum);
  }

  // d_embed of any number of rows.
  void enter(int64_t rows, const LatentSlopes<T>& slopes, Rows<T> d_embed) const {
    if (d_embed.data) of_embed.multiply(rows, slopes.pre[0], d_embed);
  }

  // x: the deter that each step saw. trace and slopes from the piece's first row on.
  void sum(const Piece& piece, Rows<T> x, Operand<T> embedding, const LatentTrace<T>& trace,
           const LatentSlopes<T>& slopes, T* scratch) const {
    for (int64_t i = 0; i < layers.count; ++i) {
      const Layer<T>& layer = layers.at[i];
      const Rows<T> d_y = slopes.pre[i];
      column_sums<T>(piece, layer.out, d_y, gradient[i].bias);
      if (i > 0) {
        weight_gradient<T>(piece, d_y, layer.out, operand(piece, trace.feat[i - 1]), layer.in, gradient[i].weight,
                           layer.in, scratch);
      } else if (gradient[0].weight) {
        T* const c = gradient[0].weight;
        if (deter) weight_gradient<T>(piece, d_y, layer.out, operand(piece, x), deter, c, layer.in, scratch);
        weight_gradient<T>(piece, d_y, layer.out, embedding, embed, c + deter, layer.in, scratch);
      }
    }
  }
};

}  // namespace fastdream::cpu::FD_ISA
