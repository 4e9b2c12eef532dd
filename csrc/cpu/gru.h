#pragma once

#include "cpu/cells.h"

// One step of the plain GRU, forward, with the functions of cells.h. Its gates come in PyTorch's order:
//
//   reset = sigmoid(x_r + h_r), update = sigmoid(x_u + h_u), cand = tanh(x_c + c), deter' = update deter + (1 - update) cand
//
// of x = w_ih feat + b_ih [3D] and h = w_hh deter + b_hh, where c is reset h_c (Keras, torch.nn.GRUCell) or the third of
// w_hh (reset deter) + b_hh (TensorFlow's GRUBlockCell).
namespace fastdream::cpu::FD_ISA {

// In a Trace: hidden[0] is x_r | x_u | cand, gates is reset | update | the recurrent part of cand without the reset, and of
// GRUBlockCell active[0] is reset deter [D].
template <typename T>
struct GRUCell {
  Core<T> core;
  Lookup<T> of_stoch;
  Product<T> of_action, of_feat, to_gates, to_cand;

  GRUCell(const Core<T>& core, int64_t stoch, int64_t classes) : core(core), of_stoch{core.stoch, stoch, classes} {
    of_action = product_of(core.stoch, of_stoch.width(), core.stoch.in - of_stoch.width());
    of_feat = product_of(core.gates);
    to_gates = to_cand = product_of(core.deter);
    to_gates.b.columns = 2 * width();
    to_cand.b.columns = width();
    to_cand.b.data += 2 * width() * width();
  }

  int64_t width() const { return core.width(); }
  int64_t units() const { return core.units(); }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&of_action, &of_feat, &to_gates, &to_cand};
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
    trace.hidden[0] = take(3 * width());
    trace.gates = take(3 * width());
    if (!core.resets_after()) trace.active[0] = take(width());
    return trace;
  }

  void enter(int64_t rows, const Trace<T>& trace) const {
    of_action.multiply(rows, trace.action, trace.pre, start_of(core.stoch.bias), core.stoch.bias);
  }

  // trace.pre holds what `enter` gave; otherwise as BlockCell::step.
  void step(const Split& split, Rows<const T> deter, const Stoch<T>* stoch, const Trace<T>& trace, Rows<T> out) const {
    const Share rows = split.rows;
    const int64_t n = width();
    const T *const bias = core.deter.bias, *const of_cand = bias ? bias + 2 * n : nullptr;
    const Rows<T> recurrent = trace.gates.from(0, 2 * n);
    to_gates.multiply(split, deter, trace.gates, start_of(bias), bias);
    if (core.resets_after()) to_cand.multiply(split, deter, recurrent, start_of(bias), of_cand);
    of_stoch.multiply(rows, stoch, trace.pre, Start::sum);
    activate_rows(core.stoch.f, rows, units(), trace.pre, trace.feat);
    split.sync();
    of_feat.multiply(split, trace.feat, trace.hidden[0], start_of(core.gates.bias), core.gates.bias);
    split.sync();
    for (int64_t m = rows.first; m < rows.last; ++m) {
      const T* const x = trace.hidden[0].at(m);
      T* const h = trace.gates.at(m);
      over<T>(2 * n, [=](auto at) { at.store(h, sigmoid(at.load(x) + at.load(h))); });
    }
    if (!core.resets_after()) {
      for (int64_t m = rows.first; m < rows.last; ++m) {
        over<T>(n, [&](auto at) {
          at.store(trace.active[0].at(m), at.load(trace.gates.at(m)) * at.load(deter.at(m)));
        });
      }
      split.sync();
      to_cand.multiply(split, trace.active[0], recurrent, start_of(bias), of_cand);
      split.sync();
    }
    for (int64_t m = rows.first; m < rows.last; ++m) {
      T* const x = trace.hidden[0].at(m) + 2 * n;
      over<T>(n, [&](auto at) {
        const Vec<T> h = at.load(recurrent.at(m)), update = at.load(trace.gates.at(m) + n);
        const Vec<T> c = core.resets_after() ? at.load(trace.gates.at(m)) * h : h;
        const Vec<T> cand = tanh(at.load(x) + c);
        at.store(x, cand);
        at.store(out.at(m), cand + update * (at.load(deter.at(m)) - cand));
      });
    }
  }
};

template <typename C>
struct CellTag {
  using Cell = C;
};

// Calls body(tag) with the cell of a core as a type, tag.Cell.
template <typename T, typename Body>
void with_cell(const Core<T>& core, Body body) {
  if (core.is_block()) return body(CellTag<BlockCell<T>>{});
  if (core.is_plain()) return body(CellTag<GRUCell<T>>{});
  body(CellTag<LayerNormCell<T>>{});
}

}  // namespace fastdream::cpu::FD_ISA
