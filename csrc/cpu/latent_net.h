#pragma once

#include "cpu/params.h"

// The net that gives a latent's logits, forward: the posterior, of deter and an embedding, or the prior, of deter alone.
namespace fastdream::cpu::FD_ISA {

// Where it writes what it computes on the way. The last `pre` are the logits. For no gradient `feat` may be `pre`.
template <typename T>
struct LatentTrace {
  Rows<T> pre[kMaxLayers];   // before norm and activation
  Rows<T> feat[kMaxLayers];  // and after; none of the last layer
};

template <typename T>
struct LatentNet {
  Layers<T> layers;  // the last is linear
  int64_t deter = 0, embed = 0;  // inputs of the first layer, in this order; 0: does not see it
  Product<T> of_deter, of_embed, later[kMaxLayers];

  LatentNet(const Layers<T>& layers, int64_t deter, int64_t embed) : layers(layers), deter(deter), embed(embed) {
    if (layers.count == 0) return;
    of_deter = product_of(layers.at[0], 0, deter);
    of_embed = product_of(layers.at[0], deter, embed);
    for (int64_t i = 1; i < layers.count; ++i) later[i] = product_of(layers.at[i]);
  }

  template <typename Each>
  void products(Each each) {
    if (layers.count == 0) return;
    each(of_deter);
    each(of_embed);
    for (int64_t i = 1; i < layers.count; ++i) each(later[i]);
  }
  void lay_out(Arena& arena) {
    products([&](Product<T>& product) { product.lay_out(arena); });
  }
  void pack(Team& team) {
    products([&](Product<T>& product) { product.pack(team); });
  }

  // Memory for one step of so many rows, without gradient.
  LatentTrace<T> lay_out_rows(Arena& arena, int64_t rows) const {
    LatentTrace<T> trace;
    for (int64_t i = 0; i < layers.count; ++i) {
      const int64_t row = padded(layers.at[i].out);
      trace.pre[i] = trace.feat[i] = {arena.take<T>(rows * row), row};
    }
    return trace;
  }

  // The embedding's part of the first layer, for any number of rows.
  void enter(int64_t rows, Rows<const T> x, const LatentTrace<T>& trace) const {
    const T* bias = layers.at[0].bias;
    of_embed.multiply(rows, x, trace.pre[0], start_of(bias), bias);
  }

  // trace.pre[0] holds what `enter` gave, where there is an embedding. deter is whole before; the logits are whole after
  // the caller's next sync.
  void step(const Split& split, Rows<const T> x, const LatentTrace<T>& trace) const {
    const T* bias = layers.at[0].bias;
    if (deter || !embed) of_deter.multiply(split, x, trace.pre[0], embed ? Start::sum : start_of(bias), bias);
    for (int64_t i = 1; i < layers.count; ++i) {
      const Layer<T>&before = layers.at[i - 1], &layer = layers.at[i];
      split.sync();
      activate_rows(before.f, split.rows, before.out, trace.pre[i - 1], trace.feat[i - 1]);
      split.sync();
      later[i].multiply(split, trace.feat[i - 1], trace.pre[i], start_of(layer.bias), layer.bias);
    }
  }
};

}  // namespace fastdream::cpu::FD_ISA
