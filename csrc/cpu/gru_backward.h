#pragma once

#include "cpu/cells_backward.h"
#include "cpu/gru.h"

// One step of the plain GRU, backward, with the functions of cells_backward.h.
namespace fastdream::cpu::FD_ISA {

// In Slopes: hidden[0] is of x [3D], gates of h [3D]; both begin with the gradients of reset | update. Of GRUBlockCell
// masked is that of reset deter [D].
template <typename T>
struct GRUCellBackward {
  Core<T> core;
  CoreGradient<T> gradient;
  int64_t flat;
  Product<T> of_stoch, of_action, of_feat, of_gates, of_cand;

  GRUCellBackward(const Core<T>& core, const CoreGradient<T>& gradient, int64_t flat)
      : core(core), gradient(gradient), flat(flat) {
    of_stoch = transposed_of(core.stoch, 0, flat);
    of_action = transposed_of(core.stoch, flat, core.stoch.in - flat);
    of_feat = transposed_of(core.gates);
    of_gates = of_cand = transposed_of(core.deter);
    of_gates.b.depth = of_gates.b.group = 2 * core.width();
    of_cand.b.depth = of_cand.b.group = core.width();
    of_cand.b.data += 2 * core.width() * core.width();
  }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&of_stoch, &of_action, &of_feat, &of_gates, &of_cand};
    for (Product<T>* product : all) each(*product);
  }

  Slopes<T> lay_out_rows(Arena& arena, int64_t rows) const {
    const int64_t width = core.width();
    Slopes<T> slopes;
    slopes.pre = take_rows<T>(arena, rows, core.units());
    slopes.hidden[0] = take_rows<T>(arena, rows, 3 * width);
    slopes.gates = take_rows<T>(arena, rows, 3 * width);
    if (!core.resets_after()) slopes.masked = take_rows<T>(arena, rows, width);
    return slopes;
  }

  // d_deter: in the gradient of deter', out its direct part for deter; leaves all slopes of the gates, but for GRUBlockCell
  // those of the reset gate.
  void leave_gates(Share rows, Rows<const T> deter, const Trace<T>& trace, const Slopes<T>& slopes,
                   Rows<T> d_deter) const {
    const int64_t n = core.width();
    for (int64_t m = rows.first; m < rows.last; ++m) {
      const T *const gates = trace.gates.at(m), *const made = trace.hidden[0].at(m) + 2 * n, *const old = deter.at(m);
      T *const d_x = slopes.hidden[0].at(m), *const d_h = slopes.gates.at(m), *const d = d_deter.at(m);
      const bool after = core.resets_after();
      over<T>(n, [=](auto at) {
        const Vec<T> update = at.load(gates + n), cand = at.load(made), grad = at.load(d);
        const Vec<T> d_update = grad * (at.load(old) - cand) * update * (T(1) - update);
        const Vec<T> d_cand = grad * (T(1) - update) * (T(1) - cand * cand);
        at.store(d_x + n, d_update);
        at.store(d_h + n, d_update);
        at.store(d_x + 2 * n, d_cand);
        at.store(d, grad * update);
        if (!after) return at.store(d_h + 2 * n, d_cand);
        const Vec<T> reset = at.load(gates), d_reset = d_cand * at.load(gates + 2 * n) * reset * (T(1) - reset);
        at.store(d_h + 2 * n, d_cand * reset);
        at.store(d_x, d_reset);
        at.store(d_h, d_reset);
      });
    }
  }

  // The same of the reset gate of GRUBlockCell, and its part of d_deter.
  void leave_reset(Share rows, Rows<const T> deter, const Trace<T>& trace, const Slopes<T>& slopes,
                   Rows<T> d_deter) const {
    for (int64_t m = rows.first; m < rows.last; ++m) {
      over<T>(core.width(), [&](auto at) {
        const Vec<T> reset = at.load(trace.gates.at(m)), d_masked = at.load(slopes.masked.at(m));
        const Vec<T> d_reset = d_masked * at.load(deter.at(m)) * reset * (T(1) - reset);
        at.store(slopes.hidden[0].at(m), d_reset);
        at.store(slopes.gates.at(m), d_reset);
        at.store(d_deter.at(m), at.load(d_deter.at(m)) + d_masked * reset);
      });
    }
  }

  void step(const Split& split, Rows<const T> deter, const Trace<T>& trace, const Slopes<T>& slopes, T* sums,
            Rows<T> d_deter, Rows<T> d_stoch) const {
    const Share rows = split.rows;
    const Rows<T> d_cand = slopes.gates.from(0, 2 * core.width());
    leave_gates(rows, deter, trace, slopes, d_deter);
    split.sync();
    if (!core.resets_after()) {
      of_cand.multiply(split, d_cand, slopes.masked);
      split.sync();
      leave_reset(rows, deter, trace, slopes, d_deter);
      split.sync();
    } else {
      of_cand.multiply(split, d_cand, d_deter, Start::sum);
    }
    of_gates.multiply(split, slopes.gates, d_deter, Start::sum);
    of_feat.multiply(split, slopes.hidden[0], slopes.pre);
    split.sync();
    activate_rows_backward<T>(core.stoch, gradient.stoch, sums, rows, core.units(), trace.pre, slopes.pre);
    split.sync();
    of_stoch.multiply(split, slopes.pre, d_stoch);
  }

  void enter(int64_t rows, const Trace<T>&, const Slopes<T>& slopes, T*, Rows<const T>, Rows<T> d_action) const {
    if (d_action.data) of_action.multiply(rows, slopes.pre, d_action);
  }

  Rows<T> stoch_slopes(const Slopes<T>& slopes) const { return slopes.pre; }

  void sum(const Piece& piece, Rows<T> deter, const Trace<T>& trace, const Slopes<T>& slopes, T* scratch) const {
    const int64_t units = core.units(), width = core.width(), in = core.stoch.in;
    weight_gradient<T>(piece, slopes.hidden[0], 3 * width, operand(piece, trace.feat), units, gradient.gates.weight, units,
                       scratch);
    column_sums<T>(piece, 3 * width, slopes.hidden[0], gradient.gates.bias);
    T* const recurrent = gradient.deter.weight;
    const bool after = core.resets_after();
    weight_gradient<T>(piece, slopes.gates, (after ? 3 : 2) * width, operand(piece, deter), width, recurrent, width,
                       scratch, true);
    if (!after && recurrent) {
      weight_gradient<T>(piece, slopes.gates.from(0, 2 * width), width, operand(piece, trace.active[0]), width,
                         recurrent + 2 * width * width, width, scratch);
    }
    column_sums<T>(piece, 3 * width, slopes.gates, gradient.deter.bias);
    T* const of_inputs = gradient.stoch.weight;
    weight_gradient<T>(piece, slopes.pre, units, operand(piece, trace.action), in - flat,
                       of_inputs ? of_inputs + flat : nullptr, in, scratch);
    column_sums<T>(piece, units, slopes.pre, gradient.stoch.bias);
  }
};

}  // namespace fastdream::cpu::FD_ISA
