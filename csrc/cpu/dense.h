#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/norm_act.h"
#include "cpu/team.h"

// Dense layers, one after the other: what the kernels for MLPs share.
namespace fastdream::cpu::FD_ISA {

constexpr int kMaxLayers = 16;  // MAX_LAYERS and MAX_NETS of fastdream/ops/native/dense.py
constexpr int kMaxNets = 8;

// y = norm_act(x weight^T + bias)
template <typename T>
struct Dense {
  int64_t in = 0;
  int64_t out = 0;
  const T* weight = nullptr;  // [out, in]
  const T* bias = nullptr;    // [out] or null
  NormAct<T> f;
  int64_t hot = 0;  // of the inputs, the last ones, which come as one-hots
  T* panels = nullptr;      // weight^T [in - hot, out] for `product`
  T* hot_panels = nullptr;  // weight^T [hot, out]

  Packed<T> packed() const { return {panels, in - hot, out}; }
  Packed<T> of_hot() const { return {hot_panels, hot, out}; }
  bool plain() const { return f.norm == Norm::none && f.act == Act::none; }

  // z[rows, out] = x weight^T + bias of the inputs that are not one-hots; after pack_weights.
  void product(int64_t rows, const T* x, int64_t x_row, T* z, int64_t z_row) const {
    gemm(rows, x, x_row, packed(), z, z_row, bias ? Start::bias : Start::zero, bias);
  }
};

template <typename T>
struct Mlp {
  int count = 0;
  Dense<T> layers[kMaxLayers];

  const Dense<T>& operator[](int i) const { return layers[i]; }
  Dense<T>& operator[](int i) { return layers[i]; }
  int64_t in() const { return layers[0].in; }
  int64_t out() const { return layers[count - 1].out; }
  int64_t widest() const {
    int64_t width = 0;
    for (int i = 0; i < count; ++i) width = layers[i].out > width ? layers[i].out : width;
    return width;
  }
  int64_t weights() const {
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += layers[i].in * layers[i].out;
    return total;
  }
};

// Several on the same input.
template <typename T>
struct Mlps {
  int count = 0;
  Mlp<T> nets[kMaxNets];

  const Mlp<T>& operator[](int n) const { return nets[n]; }
  Mlp<T>& operator[](int n) { return nets[n]; }
  int64_t widest() const {
    int64_t width = 0;
    for (int n = 0; n < count; ++n) width = nets[n].widest() > width ? nets[n].widest() : width;
    return width;
  }
  int64_t weights() const {
    int64_t total = 0;
    for (int n = 0; n < count; ++n) total += nets[n].weights();
    return total;
  }
};

// Reads pointers weight, bias, scale, shift of every layer of every net; sizes hot, in, nets, then of every net the count
// of its layers and out, norm, act of each; and scalars eps of every layer.
template <typename T>
Mlps<T> read_mlps(Call& call) {
  Mlps<T> mlps;
  const int64_t hot = call.size(), in = call.size(), nets = call.size();
  if (nets < 1 || nets > kMaxNets) fail("1 to 8 MLPs share an input");
  mlps.count = int(nets);
  for (int n = 0; n < mlps.count; ++n) {
    Mlp<T>& mlp = mlps[n];
    const int64_t count = call.size();
    if (count < 1 || count > kMaxLayers) fail("an MLP has 1 to 16 layers");
    mlp.count = int(count);
    mlp[0].hot = hot;
    int64_t width = in;
    for (int i = 0; i < mlp.count; ++i) {
      Dense<T>& layer = mlp[i];
      layer.in = width;
      layer.out = width = call.size();
      layer.weight = call.pointer<const T>();
      layer.bias = call.pointer<const T>();
      layer.f = read_norm_act<T>(call);
    }
  }
  return mlps;
}

// Rows of a workspace are this far apart: one more cache line than needed, so that neighbours in a column do not share
// a cache set.
inline int64_t spaced(int64_t width) { return round_up(width, 16) + 16; }

// Threads that are worth their start for so many rows of a product with so many weights.
inline int threads_for_rows(int threads, int64_t rows, int64_t weights) {
  const int64_t most = rows / kMaxRows < 1 ? 1 : rows / kMaxRows;
  return rows * weights < 500000 ? 1 : most < threads ? int(most) : threads;
}

template <typename T>
void lay_out(Mlp<T>& mlp, Arena& arena) {
  for (int i = 0; i < mlp.count; ++i) {
    mlp[i].panels = arena.take<T>(packed_size<T>(mlp[i].in - mlp[i].hot, mlp[i].out));
    mlp[i].hot_panels = arena.take<T>(packed_size<T>(mlp[i].hot, mlp[i].out));
  }
}

// Packs weight^T of every layer, the panels shared among the team; a barrier must follow.
template <typename T>
void pack_weights(const Mlp<T>& mlp, const Team& team) {
  for (int i = 0; i < mlp.count; ++i) {
    const Dense<T>& layer = mlp[i];
    const Share mine = share(team, layer.packed().panels());
    const int64_t rest = layer.in - layer.hot;
    pack_panels(layer.panels, layer.weight, 1, layer.in, rest, layer.out, mine.first, mine.last);
    if (!layer.hot) continue;
    pack_panels(layer.hot_panels, layer.weight + rest, 1, layer.in, layer.hot, layer.out, mine.first, mine.last);
  }
}

}  // namespace fastdream::cpu::FD_ISA
