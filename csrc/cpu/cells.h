#pragma once

#include "cpu/lookup.h"

// One step of a recurrent core, forward: fastdream/ops/reference/cells.py. All cells, of which gru.h has the
// third, have the same functions:
//
//   lay_out, pack     the weights, once a call; every thread of the team packs its share, then there is a barrier
//   enter             what depends on the action alone, for any number of rows (of all time steps, where known)
//   step              the rest, from deter and stoch to deter'
namespace fastdream::cpu::FD_ISA {

// Where one step of a cell writes what it computes on the way; a gradient reads it again. Row 0 is the step's first row.
// For no gradient `active` may be `hidden`, and `feat` may be `pre`.
template <typename T>
struct Trace {
  Rows<T> action;                // [A] as the cell uses it: within -1 ... 1 in the block GRU
  Rows<T> stoch;                 // [S] where states are numbers: as the cell uses them
  Rows<T> action_pre;            // [H] block GRU: the projected action before norm and activation
  Rows<T> action_feat;           // [H] and after
  Rows<T> pre;                   // before norm and activation: block GRU [2H] of deter | stoch, others [H]
  Rows<T> feat;                  // and after
  Rows<T> hidden[kMaxLayers];    // block GRU [D]: hidden layers before norm and activation; others: gates [3D]
  Rows<T> active[kMaxLayers];    // block GRU [D]: and after
  Rows<T> gates;                 // [3D] a block's reset | cand | update: sigmoid(reset), cand, sigmoid(update - 1)
};

// gates become sigmoid(reset) | cand | sigmoid(update - 1) of every block;  out = deter + update (tanh(reset cand) - deter)
template <typename T>
void apply_gates(Share rows, int64_t width, int64_t blocks, Rows<const T> deter, Rows<T> gates, Rows<T> out) {
  const int64_t n = width / blocks;
  for (int64_t m = rows.first; m < rows.last; ++m) {
    for (int64_t block = 0; block < blocks; ++block) {
      T* const of_block = gates.at(m) + block * 3 * n;
      const T* const old = deter.at(m) + block * n;
      T* const to = out.at(m) + block * n;
      over<T>(n, [=](auto at) {
        const Vec<T> reset = sigmoid(at.load(of_block)), update = sigmoid(at.load(of_block + 2 * n) - T(1));
        const Vec<T> from = at.load(old);
        at.store(of_block, reset);
        at.store(of_block + 2 * n, update);
        at.store(to, from + update * (tanh(reset * at.load(of_block + n)) - from));
      });
    }
  }
}

// DreamerV3's block GRU.
template <typename T>
struct BlockCell {
  Core<T> core;
  Lookup<T> of_stoch;
  Product<T> of_deter, embed_action, own, of_feat, of_action, later[kMaxLayers], gates;

  BlockCell(const Core<T>& core, int64_t stoch, int64_t classes) : core(core), of_stoch{core.stoch, stoch, classes} {
    const Layer<T>& first = core.hidden.at[0];
    const int64_t blocks = first.blocks, out = width() / blocks, in = first.in / blocks, jump = in * out;
    of_deter = product_of(core.deter);
    embed_action = product_of(core.action);
    // A block sees its own part of deter, then features that all blocks share.
    own = {{first.weight, out, out, out, 1}, blocks, jump, out, out};
    of_feat = {{first.weight + out * out, 2 * units(), out, out, 1}, blocks, jump, 0, out};
    of_action = {{first.weight + out * (out + 2 * units()), units(), out, out, 1}, blocks, jump, 0, out};
    for (int64_t i = 1; i < core.hidden.count; ++i) later[i] = product_of(core.hidden.at[i]);
    gates = product_of(core.gates);
  }

  int64_t width() const { return core.width(); }
  int64_t units() const { return core.units(); }
  int64_t blocks() const { return core.gates.blocks; }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&of_deter, &embed_action, &own, &of_feat, &of_action, &gates};
    for (Product<T>* product : all) each(*product);
    for (int64_t i = 1; i < core.hidden.count; ++i) each(later[i]);
  }
  void lay_out(Arena& arena) {
    products([&](Product<T>& product) { product.lay_out(arena); });
    of_stoch.lay_out(arena);
  }
  void pack(Team& team) {
    products([&](Product<T>& product) { product.pack(team); });
    of_stoch.pack(team);
  }

  // Memory for one step of so many rows, without gradient.
  Trace<T> lay_out_rows(Arena& arena, int64_t rows) const {
    const auto take = [&](int64_t width) { return take_rows<T>(arena, rows, width); };
    Trace<T> trace;
    trace.action = take(core.action.in);
    trace.action_pre = trace.action_feat = take(units());
    trace.pre = trace.feat = take(2 * units());
    for (int64_t i = 0; i < core.hidden.count; ++i) trace.hidden[i] = trace.active[i] = take(width());
    trace.gates = take(3 * width());
    return trace;
  }

  // From the actions in trace.action, which are clipped in place, to the part of the first hidden layer that they give.
  void enter(int64_t rows, const Trace<T>& trace) const {
    const int64_t n = core.action.in;
    for (int64_t m = 0; m < rows; ++m) {
      T* const x = trace.action.at(m);
      over<T>(n, [=](auto at) {
        const Vec<T> a = at.load(x);
        at.store(x, a / max_of(abs(a), splat(T(1))));
      });
    }
    embed_action.multiply(rows, trace.action, trace.action_pre, start_of(core.action.bias), core.action.bias);
    activate_rows(core.action.f, {0, rows}, units(), trace.action_pre, trace.action_feat);
    const T* bias = core.hidden.at[0].bias;
    of_action.multiply(rows, trace.action_feat, trace.hidden[0], start_of(bias), bias);
  }

  // trace.hidden[0] holds what `enter` gave. deter is whole before; out is whole after the caller's next sync.
  void step(const Split& split, Rows<const T> deter, const Stoch<T>* stoch, const Trace<T>& trace, Rows<T> out) const {
    const Share rows = split.rows;
    of_deter.multiply(split, deter, trace.pre, start_of(core.deter.bias), core.deter.bias);
    own.multiply(split, deter, trace.hidden[0], Start::sum);
    of_stoch.multiply(rows, stoch, trace.pre.from(0, units()), start_of(core.stoch.bias));
    split.sync();
    activate_rows(core.deter.f, rows, units(), trace.pre, trace.feat);
    activate_rows(core.stoch.f, rows, units(), trace.pre.from(0, units()), trace.feat.from(0, units()));
    split.sync();
    of_feat.multiply(split, trace.feat, trace.hidden[0], Start::sum);
    split.sync();
    activate_rows(core.hidden.at[0].f, rows, width(), trace.hidden[0], trace.active[0]);
    const int64_t count = core.hidden.count;
    for (int64_t i = 1; i < count; ++i) {
      const Layer<T>& layer = core.hidden.at[i];
      split.sync();
      later[i].multiply(split, trace.active[i - 1], trace.hidden[i], start_of(layer.bias), layer.bias);
      split.sync();
      activate_rows(layer.f, rows, width(), trace.hidden[i], trace.active[i]);
    }
    split.sync();
    gates.multiply(split, trace.active[count - 1], trace.gates, start_of(core.gates.bias), core.gates.bias);
    split.sync();
    apply_gates(rows, width(), blocks(), deter, trace.gates, out);
  }
};

// DreamerV2's LayerNorm GRU.
template <typename T>
struct LayerNormCell {
  Core<T> core;
  Lookup<T> of_stoch;
  Product<T> of_action, of_feat, of_deter;

  LayerNormCell(const Core<T>& core, int64_t stoch, int64_t classes)
      : core(core), of_stoch{core.stoch, stoch, classes} {
    const int64_t flat = of_stoch.width();
    of_action = product_of(core.stoch, flat, core.stoch.in - flat);
    of_feat = product_of(core.gates, 0, units());
    of_deter = product_of(core.gates, units(), width());
  }

  int64_t width() const { return core.width(); }
  int64_t units() const { return core.units(); }
  int64_t blocks() const { return 1; }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&of_action, &of_feat, &of_deter};
    for (Product<T>* product : all) each(*product);
  }
  void lay_out(Arena& arena) {
    products([&](Product<T>& product) { product.lay_out(arena); });
    of_stoch.lay_out(arena);
  }
  void pack(Team& team) {
    products([&](Product<T>& product) { product.pack(team); });
    of_stoch.pack(team);
  }

  // As BlockCell::lay_out_rows.
  Trace<T> lay_out_rows(Arena& arena, int64_t rows) const {
    const auto take = [&](int64_t width) { return take_rows<T>(arena, rows, width); };
    Trace<T> trace;
    trace.action = take(of_action.b.depth);
    trace.pre = trace.feat = take(units());
    trace.hidden[0] = trace.gates = take(3 * width());
    return trace;
  }

  void enter(int64_t rows, const Trace<T>& trace) const {
    of_action.multiply(rows, trace.action, trace.pre, start_of(core.stoch.bias), core.stoch.bias);
  }

  // trace.pre holds what `enter` gave; otherwise as BlockCell::step.
  void step(const Split& split, Rows<const T> deter, const Stoch<T>* stoch, const Trace<T>& trace, Rows<T> out) const {
    const Share rows = split.rows;
    of_deter.multiply(split, deter, trace.hidden[0], start_of(core.gates.bias), core.gates.bias);
    of_stoch.multiply(rows, stoch, trace.pre, Start::sum);
    activate_rows(core.stoch.f, rows, units(), trace.pre, trace.feat);
    split.sync();
    of_feat.multiply(split, trace.feat, trace.hidden[0], Start::sum);
    split.sync();
    activate_rows(core.gates.f, rows, 3 * width(), trace.hidden[0], trace.gates);
    apply_gates(rows, width(), 1, deter, trace.gates, out);
  }
};

}  // namespace fastdream::cpu::FD_ISA
