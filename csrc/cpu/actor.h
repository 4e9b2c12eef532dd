#pragma once

#include "cpu/cells.h"
#include "cpu/latent.h"
#include "cpu/latent_net.h"
#include "cpu/trunc_normal.h"

// The policy, forward: fastdream/ops/reference/actor.py. From deter and stoch to the outputs of all heads and an action.
namespace fastdream::cpu::FD_ISA {

constexpr int64_t kMaxHeads = 32;  // MAX_HEADS of fastdream/ops/native/actor.py

enum class HeadKind : int64_t { categorical, bounded_normal, trunc_normal, tanh_normal };  // HEADS there

// The part of a layer on [deter, stoch] that is the latent's.
template <typename T>
Lookup<T> of_latent(Layer<T> layer, int64_t deter, const Latent<T>& latent) {
  layer.weight += deter;
  return {layer, latent.stoch, latent.classes};
}

template <typename T>
struct Head {
  HeadKind kind = HeadKind::categorical;
  int64_t elements = 0, classes = 0, outs = 0;
  T unimix = 0, min_std = 0, max_std = 0, shift = 0;
  Layer<T> out[2];        // logits; or mean and std
  Product<T> product[2];  // of the last hidden layer; without one of deter,
  Lookup<T> of_stoch[2];  // and these of the latent
  int64_t width() const { return out[0].out; }  // of its part of an action

  // Those of the normal, of raw outputs.
  Vec<T> mean(Vec<T> raw) const {
    return kind == HeadKind::tanh_normal ? T(5) * tanh(raw / T(5)) : tanh(raw);
  }
  Vec<T> std(Vec<T> raw) const {
    if (kind == HeadKind::bounded_normal) return (max_std - min_std) * sigmoid(raw + T(2)) + min_std;
    return gaussian_std<T>(kind == HeadKind::trunc_normal ? StdForm::sigmoid2 : StdForm::softplus, min_std, raw + shift);
  }
};

// sizes: kind, elements, classes, number of layers, then these;  scalars: unimix, min_std, max_std, init_std, then the layers'
template <typename T>
Head<T> read_head(Call& call) {
  Head<T> head;
  head.kind = HeadKind(call.size());
  head.elements = call.size();
  head.classes = call.size();
  head.outs = call.size();
  head.unimix = T(call.scalar());
  head.min_std = T(call.scalar());
  head.max_std = T(call.scalar());
  const double init_std = call.scalar();
  if (head.kind == HeadKind::tanh_normal) head.shift = T(init_std + __builtin_log(-__builtin_expm1(-init_std)));
  if (head.outs > 2) fail("too many layers of a head");
  for (int64_t k = 0; k < head.outs; ++k) {
    head.out[k] = read_layer<T>(call);
    head.product[k] = product_of(head.out[k]);
  }
  return head;
}

// Where it works: memory of one thread, or of a team that shares columns.
template <typename T>
struct ActorTrace {
  LatentTrace<T> trunk;
  Rows<T> y[kMaxHeads][2];   // the heads' outputs
  T* noise = nullptr;        // [rows, elements] of one head
  int64_t* index = nullptr;  // likewise
  T* scratch = nullptr;
};

template <typename T>
struct Actor {
  LatentNet<T> trunk;  // the layers that heads have in common, if there are any
  Lookup<T> of_stoch;  // of the first
  int64_t count = 0;
  Head<T> heads[kMaxHeads];

  // Reads the layers, the number of heads and each of them.
  Actor(Call& call, int64_t deter, const Latent<T>& latent) : trunk(read_layers<T>(call), deter, latent.flat()) {
    if (!direct()) of_stoch = of_latent(trunk.layers.at[0], deter, latent);
    count = call.size();
    if (count > kMaxHeads) fail("too many heads");
    for (int64_t i = 0; i < count; ++i) {
      heads[i] = read_head<T>(call);
      for (int64_t k = 0; direct() && k < heads[i].outs; ++k) {
        heads[i].product[k] = product_of(heads[i].out[k], 0, deter);
        heads[i].of_stoch[k] = of_latent(heads[i].out[k], deter, latent);
      }
    }
  }

  bool direct() const { return trunk.layers.count == 0; }  // heads see the state itself

  // Calls body(head, index, layer of it) for every output layer of every head.
  template <typename Body>
  void outputs(Body body) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < heads[i].outs; ++k) body(heads[i], i, k);
    }
  }

  // Everything that multiplies, products and look-ups.
  template <typename Each>
  void factors(Each each) {
    if (!direct()) {
      each(trunk.of_deter);
      each(of_stoch);
    }
    for (int64_t i = 1; i < trunk.layers.count; ++i) each(trunk.later[i]);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < heads[i].outs; ++k) {
        each(heads[i].product[k]);
        if (direct()) each(heads[i].of_stoch[k]);
      }
    }
  }
  void lay_out(Arena& arena) {
    factors([&](auto& factor) { factor.lay_out(arena); });
  }
  void pack(Team& team) {
    factors([&](auto& factor) { factor.pack(team); });
  }

  ActorTrace<T> lay_out_rows(Arena& arena, int64_t rows) const {
    ActorTrace<T> trace;
    trace.trunk = trunk.lay_out_rows(arena, rows);
    int64_t elements = 1, classes = 1;
    for (int64_t i = 0; i < count; ++i) {
      const Head<T>& head = heads[i];
      for (int64_t k = 0; k < head.outs; ++k) trace.y[i][k] = {arena.take<T>(rows * head.width()), head.width()};
      elements = head.elements > elements ? head.elements : elements;
      classes = head.classes > classes ? head.classes : classes;
    }
    trace.noise = arena.take<T>(rows * elements);
    trace.index = arena.take<int64_t>(rows * elements);
    trace.scratch = arena.take<T>(categorical_scratch<T>(classes));
    return trace;
  }

  // The heads' outputs. deter is whole before; they are whole after the caller's next sync.
  void step(const Split& split, Rows<const T> deter, const Stoch<T>* stoch, const ActorTrace<T>& trace) const {
    if (direct()) {
      outputs([&](const Head<T>& head, int64_t i, int64_t k) {
        head.of_stoch[k].multiply(split.rows, stoch, trace.y[i][k], start_of(head.out[k].bias));
      });
      split.sync();
      outputs([&](const Head<T>& head, int64_t i, int64_t k) {
        head.product[k].multiply(split, deter, trace.y[i][k], Start::sum);
      });
      return;
    }
    const Layer<T>&first = trunk.layers.at[0], &last = trunk.layers.at[trunk.layers.count - 1];
    const Rows<T> feat = trace.trunk.pre[trunk.layers.count - 1];
    of_stoch.multiply(split.rows, stoch, trace.trunk.pre[0], start_of(first.bias));
    split.sync();
    trunk.step(split, deter, trace.trunk);
    split.sync();
    activate_rows(last.f, split.rows, last.out, feat, feat);
    split.sync();
    outputs([&](const Head<T>& head, int64_t i, int64_t k) {
      head.product[k].multiply(split, feat, trace.y[i][k], start_of(head.out[k].bias), head.out[k].bias);
    });
  }

  // The actions [A] of all rows from the outputs, in one thread. draws [M] as in the reference; null: the most likely.
  void act(int64_t rows, Rows<const T> draws, const ActorTrace<T>& trace, Rows<T> action) const {
    for (int64_t i = 0; i < count; ++i) {
      const Head<T>& head = heads[i];
      for (int64_t k = 0; k < head.outs; ++k) {
        activate_rows(head.out[k].f, {0, rows}, head.width(), trace.y[i][k], trace.y[i][k]);
      }
      head.kind == HeadKind::categorical ? choose(head, rows, trace.y[i][0], draws, trace, action)
                                         : move(head, rows, trace.y[i][0], trace.y[i][1], draws, action);
      action.data += head.width();
      if (draws.data) draws.data += head.elements;
    }
  }

  void choose(const Head<T>& head, int64_t rows, Rows<const T> logit, Rows<const T> draws, const ActorTrace<T>& trace,
              Rows<T> action) const {
    const int64_t n = head.elements, classes = head.classes;
    if (draws.data) {
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t i = 0; i < n; ++i) trace.noise[m * n + i] = draws.at(m)[i];
      }
      sample_categorical(rows * n, classes, logit.data, trace.noise, head.unimix, trace.index, trace.scratch);
    } else {
      for (int64_t g = 0; g < rows * n; ++g) {
        const T* const of_group = logit.data + g * classes;
        int64_t best = 0;
        for (int64_t c = 1; c < classes; ++c) best = of_group[c] > of_group[best] ? c : best;
        trace.index[g] = best;
      }
    }
    for (int64_t m = 0; m < rows; ++m) write_onehot(n, classes, trace.index + m * n, action.at(m));
  }

  // raw: of the standard deviations, which are written there where they are used.
  void move(const Head<T>& head, int64_t rows, Rows<const T> mean, Rows<T> raw, Rows<const T> draws,
            Rows<T> action) const {
    for (int64_t m = 0; m < rows; ++m) {
      T *const to = action.at(m), *const std = raw.at(m);
      over<T>(head.elements, [&](auto at) { at.store(to, head.mean(at.load(mean.at(m)))); });
      if (!draws.data) continue;
      const T* const noise = draws.at(m);
      over<T>(head.elements, [&](auto at) { at.store(std, head.std(at.load(std))); });
      if (head.kind == HeadKind::trunc_normal) {
        for (int64_t i = 0; i < head.elements; ++i) to[i] = sample_trunc_normal(to[i], std[i], noise[i]);
        continue;
      }
      over<T>(head.elements, [&](auto at) {
        const Vec<T> drawn = at.load(to) + at.load(std) * at.load(noise);
        at.store(to, head.kind == HeadKind::tanh_normal ? tanh(drawn) : drawn);
      });
    }
  }
};

}  // namespace fastdream::cpu::FD_ISA
