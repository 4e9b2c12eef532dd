#pragma once

#include "cpu/call.h"
#include "cpu/norm_act.h"
#include "cpu/product.h"

// Parameters of a world model as fastdream/ops/native/params.py flattens them.
namespace fastdream::cpu::FD_ISA {

constexpr int64_t kMaxLayers = 8;  // MAX_LAYERS there

template <typename T>
struct Layer {
  const T* weight = nullptr;  // [out, in], or for a block-diagonal map [blocks, in / blocks, out / blocks]
  const T* bias = nullptr;    // [out] or null
  int64_t in = 0, out = 0, blocks = 0;
  NormAct<T> f;
};

// pointers: weight, bias, scale, shift;  sizes: in, out, blocks (0: dense), norm, act;  scalars: eps
template <typename T>
Layer<T> read_layer(Call& call) {
  Layer<T> layer;
  layer.weight = call.pointer<const T>();
  layer.bias = call.pointer<const T>();
  layer.in = call.size();
  layer.out = call.size();
  layer.blocks = call.size();
  layer.f = read_norm_act<T>(call);
  return layer;
}

template <typename T>
struct Layers {
  int64_t count = 0;
  Layer<T> at[kMaxLayers];
};

// sizes: number of layers, then each layer
template <typename T>
Layers<T> read_layers(Call& call) {
  Layers<T> layers;
  layers.count = call.size();
  if (layers.count > kMaxLayers) fail("too many layers");
  for (int64_t i = 0; i < layers.count; ++i) layers.at[i] = read_layer<T>(call);
  return layers;
}

enum class CoreKind : int64_t { block_gru, layernorm_gru, gru, gru_block_cell };  // CORES in params.py

template <typename T>
struct Core {
  CoreKind kind;
  Layer<T> deter;    // of the block GRU; of the plain GRU its recurrent product, D -> 3D
  Layer<T> action;   // of the block GRU
  Layer<T> stoch;    // of the others the one layer for [stoch, action]
  Layers<T> hidden;  // of the block GRU
  Layer<T> gates;    // of the plain GRU the product of the input, H -> 3D
  bool is_block() const { return kind == CoreKind::block_gru; }
  bool is_plain() const { return kind == CoreKind::gru || kind == CoreKind::gru_block_cell; }
  bool resets_after() const { return kind == CoreKind::gru; }
  int64_t width() const { return gates.out / 3; }   // of deter
  int64_t units() const { return stoch.out; }       // of what the inputs are projected to
  int64_t gate_weights() const {
    const int64_t recurrent = is_plain() ? deter.in * deter.out : 0;
    return recurrent + gates.in * gates.out / (gates.blocks ? gates.blocks : 1);
  }
};

// sizes: kind;  then layers  block GRU: deter, stoch, action, gates, count and hidden;  LayerNorm GRU: inputs, gates;  plain
// GRU: recurrent product, inputs, product of the input
template <typename T>
Core<T> read_core(Call& call) {
  Core<T> core;
  core.kind = CoreKind(call.size());
  if (core.is_block() || core.is_plain()) core.deter = read_layer<T>(call);
  core.stoch = read_layer<T>(call);
  if (core.is_block()) core.action = read_layer<T>(call);
  core.gates = read_layer<T>(call);
  if (core.is_block()) core.hidden = read_layers<T>(call);
  return core;
}

// y = act(norm(x)) of some rows; y may be x.
template <typename T>
void activate_rows(const NormAct<T>& f, Share rows, int64_t n, Rows<T> x, Rows<T> y) {
  norm_act_rows(f, rows.last - rows.first, n, x.at(rows.first), x.row, y.at(rows.first), y.row);
}

// y = x w^T of a dense layer's weight, or what its blocks give.
template <typename T>
Product<T> product_of(const Layer<T>& layer) {
  if (!layer.blocks) return {{layer.weight, layer.in, layer.out, 1, layer.in}};
  const int64_t in = layer.in / layer.blocks, out = layer.out / layer.blocks;
  return {{layer.weight, in, out, out, 1}, layer.blocks, in * out, in, out};
}

// Columns first ... first + in - 1 of a dense layer's weight: the part for some of its inputs.
template <typename T>
Product<T> product_of(const Layer<T>& layer, int64_t first, int64_t in) {
  return {{layer.weight + first, in, layer.out, 1, layer.in}};
}

}  // namespace fastdream::cpu::FD_ISA
