#pragma once

#include "cpu/cells.h"
#include "cpu/gradients.h"

// One step of a recurrent core, backward, and the gradients of its parameters. All cells, of which gru_backward.h has the
// third, have the same functions:
//
//   products           the transposed weights, to be packed once a call
//   lay_out_rows       memory for the gradients of so many rows
//   step               from the gradient of deter' to those of deter and stoch; leaves those of what the step computed
//   enter              the rest of it, which only the action and parameters need, for any number of rows
//   sum                gradients of parameters, of a piece of all rows
namespace fastdream::cpu::FD_ISA {

// The gradients that a step leaves, of what Trace has under these names before norms and activations.
template <typename T>
struct Slopes {
  Rows<T> action_pre;          // [H] block GRU
  Rows<T> pre;                 // block GRU [2H], others [H]
  Rows<T> hidden[kMaxLayers];  // block GRU [D], others [3D]
  Rows<T> gates;               // [3D] block GRU, plain GRU
  Rows<T> masked;              // [D] plain GRU that resets deter
};

template <typename T>
struct CoreGradient {
  LayerGradient<T> deter, stoch, action, hidden[kMaxLayers], gates;
};

// In the order of read_core.
template <typename T>
CoreGradient<T> read_gradient(Call& call, const Core<T>& core, int64_t& sums) {
  CoreGradient<T> gradient;
  if (core.is_block() || core.is_plain()) gradient.deter = read_gradient(call, core.deter, sums);
  gradient.stoch = read_gradient(call, core.stoch, sums);
  if (core.is_block()) gradient.action = read_gradient(call, core.action, sums);
  gradient.gates = read_gradient(call, core.gates, sums);
  for (int64_t i = 0; i < core.hidden.count; ++i) {
    gradient.hidden[i] = read_gradient(call, core.hidden.at[i], sums);
  }
  return gradient;
}

// d_out: in that of deter', out its direct part for deter. d_gates may be `gates` of another buffer, not trace's.
template <typename T>
void apply_gates_backward(Share rows, int64_t width, int64_t blocks, Rows<const T> deter, Rows<const T> gates,
                          Rows<T> d_gates, Rows<T> d_out) {
  const int64_t n = width / blocks;
  for (int64_t m = rows.first; m < rows.last; ++m) {
    for (int64_t block = 0; block < blocks; ++block) {
      const T *const of_block = gates.at(m) + block * 3 * n, *const old = deter.at(m) + block * n;
      T *const d_block = d_gates.at(m) + block * 3 * n, *const d = d_out.at(m) + block * n;
      over<T>(n, [=](auto at) {
        const Vec<T> reset = at.load(of_block), raw = at.load(of_block + n), update = at.load(of_block + 2 * n);
        const Vec<T> cand = tanh(reset * raw), grad = at.load(d);
        const Vec<T> d_raw = grad * update * (T(1) - cand * cand);
        at.store(d_block, d_raw * raw * reset * (T(1) - reset));
        at.store(d_block + n, d_raw * reset);
        at.store(d_block + 2 * n, grad * (cand - at.load(old)) * update * (T(1) - update));
        at.store(d, grad - grad * update);
      });
    }
  }
}

// The product with a dense layer's transposed weight, for `in` of its inputs, or with those of a block layer.
template <typename T>
Product<T> transposed_of(const Layer<T>& layer, int64_t first, int64_t in) {
  return {{layer.weight + first, layer.out, in, layer.in, 1}};
}
template <typename T>
Product<T> transposed_of(const Layer<T>& layer) {
  if (!layer.blocks) return transposed_of(layer, 0, layer.in);
  const int64_t in = layer.in / layer.blocks, out = layer.out / layer.blocks;
  return {{layer.weight, out, in, 1, out}, layer.blocks, in * out, out, in};
}

template <typename T>
struct BlockCellBackward {
  Core<T> core;
  CoreGradient<T> gradient;
  int64_t flat;  // S * C
  Product<T> of_deter, of_stoch, embed_action, own, of_feat, of_action, later[kMaxLayers], gates;

  BlockCellBackward(const Core<T>& core, const CoreGradient<T>& gradient, int64_t flat)
      : core(core), gradient(gradient), flat(flat) {
    const Layer<T>& first = core.hidden.at[0];
    const int64_t blocks = first.blocks, out = core.width() / blocks, jump = first.in / blocks * out;
    const int64_t units = core.units();
    of_deter = transposed_of(core.deter);
    of_stoch = transposed_of(core.stoch);
    embed_action = transposed_of(core.action);
    own = {{first.weight, out, out, 1, out}, blocks, jump, out, out};
    of_feat = {{first.weight + out * out, core.width(), 2 * units, 1, out, out, jump}};
    of_action = {{first.weight + out * (out + 2 * units), core.width(), units, 1, out, out, jump}};
    for (int64_t i = 1; i < core.hidden.count; ++i) later[i] = transposed_of(core.hidden.at[i]);
    gates = transposed_of(core.gates);
  }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&of_deter, &of_stoch, &embed_action, &own, &of_feat, &of_action, &gates};
    for (Product<T>* product : all) each(*product);
    for (int64_t i = 1; i < core.hidden.count; ++i) each(later[i]);
  }

  Slopes<T> lay_out_rows(Arena& arena, int64_t rows) const {
    const auto take = [&](int64_t width) { return take_rows<T>(arena, rows, width); };
    Slopes<T> slopes;
    slopes.action_pre = take(core.units());
    slopes.pre = take(2 * core.units());
    slopes.gates = take(3 * core.width());
    for (int64_t i = 0; i < core.hidden.count; ++i) slopes.hidden[i] = take(core.width());
    return slopes;
  }

  // d_deter: in the gradient of deter', out that of deter. d_stoch is overwritten. Both whole before, and after the
  // caller's next sync.
  void step(const Split& split, Rows<const T> deter, const Trace<T>& trace, const Slopes<T>& slopes, T* sums,
            Rows<T> d_deter, Rows<T> d_stoch) const {
    const Share rows = split.rows;
    const int64_t width = core.width(), units = core.units(), last = core.hidden.count - 1;
    apply_gates_backward<T>(rows, width, core.gates.blocks, deter, trace.gates, slopes.gates, d_deter);
    split.sync();
    gates.multiply(split, slopes.gates, slopes.hidden[last]);
    for (int64_t i = last; i >= 0; --i) {
      split.sync();
      activate_rows_backward<T>(core.hidden.at[i], gradient.hidden[i], sums, rows, width, trace.hidden[i],
                                slopes.hidden[i]);
      split.sync();
      if (i > 0) later[i].multiply(split, slopes.hidden[i], slopes.hidden[i - 1]);
    }
    own.multiply(split, slopes.hidden[0], d_deter, Start::sum);
    of_feat.multiply(split, slopes.hidden[0], slopes.pre);
    split.sync();
    const Rows<T> of_stoch_pre = slopes.pre.from(0, units);
    activate_rows_backward<T>(core.deter, gradient.deter, sums, rows, units, trace.pre, slopes.pre);
    activate_rows_backward<T>(core.stoch, gradient.stoch, sums, rows, units, trace.pre.from(0, units), of_stoch_pre);
    split.sync();
    of_deter.multiply(split, slopes.pre, d_deter, Start::sum);
    of_stoch.multiply(split, of_stoch_pre, d_stoch);
  }

  // d_action [A] of the action as it was given, whose rows are `action`; null where not wanted.
  void enter(int64_t rows, const Trace<T>& trace, const Slopes<T>& slopes, T* sums, Rows<const T> action,
             Rows<T> d_action) const {
    of_action.multiply(rows, slopes.hidden[0], slopes.action_pre);
    activate_rows_backward<T>(core.action, gradient.action, sums, {0, rows}, core.units(), trace.action_pre,
                              slopes.action_pre);
    if (!d_action.data) return;
    embed_action.multiply(rows, slopes.action_pre, d_action);
    for (int64_t m = 0; m < rows; ++m) {
      over<T>(core.action.in, [&](auto at) {
        const Vec<T> size = max_of(abs(at.load(action.at(m))), splat(T(1)));
        at.store(d_action.at(m), at.load(d_action.at(m)) / size);
      });
    }
  }

  Rows<T> stoch_slopes(const Slopes<T>& slopes) const { return slopes.pre.from(0, core.units()); }

  // trace and slopes from the piece's first row on, deter before its first step.
  void sum(const Piece& piece, Rows<T> deter, const Trace<T>& trace, const Slopes<T>& slopes, T* scratch) const {
    const int64_t units = core.units(), width = core.width(), last = core.hidden.count - 1;
    block_gradient<T>(piece, core.gates, trace.active[last], slopes.gates, gradient.gates.weight, scratch);
    column_sums<T>(piece, 3 * width, slopes.gates, gradient.gates.bias);
    for (int64_t i = 0; i <= last; ++i) {
      column_sums<T>(piece, width, slopes.hidden[i], gradient.hidden[i].bias);
      if (i > 0) {
        block_gradient<T>(piece, core.hidden.at[i], trace.active[i - 1], slopes.hidden[i], gradient.hidden[i].weight,
                          scratch);
      }
    }
    if (gradient.hidden[0].weight) sum_first(piece, deter, trace, slopes.hidden[0], scratch);
    weight_gradient<T>(piece, slopes.pre, units, operand(piece, deter), width, gradient.deter.weight, width, scratch,
                       true);
    weight_gradient<T>(piece, slopes.action_pre, units, operand(piece, trace.action), core.action.in,
                       gradient.action.weight, core.action.in, scratch);
    column_sums<T>(piece, units, slopes.pre, gradient.deter.bias);
    column_sums<T>(piece, units, slopes.pre.from(0, units), gradient.stoch.bias);
    column_sums<T>(piece, units, slopes.action_pre, gradient.action.bias);
  }

  // Every block's rows of the first hidden weight: own part of deter, features of deter and stoch, of the action.
  void sum_first(const Piece& piece, Rows<const T> deter, const Trace<T>& trace, Rows<T> d_y, T* scratch) const {
    const Layer<T>& layer = core.hidden.at[0];
    const int64_t in = layer.in / layer.blocks, out = layer.out / layer.blocks, per = div_up(out, kPanel<T>);
    const int64_t units = core.units();
    const Share panels = share(piece.team, layer.blocks * per);
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t block = panel / per, n = panel % per * kPanel<T>;
      T* const c = gradient.hidden[0].weight + block * in * out + n;
      const Packed<T> packed = pack_operand(piece, operand(piece, d_y, block * out), n, out, scratch);
      add_product<T>(piece, trace.feat, 2 * units, packed, c + out * out, out);
      add_product<T>(piece, trace.action_feat, units, packed, c + (out + 2 * units) * out, out);
      drop_resets(piece, scratch);
      add_product<T>(piece, deter.from(0, block * out), out, packed, c, out);
    }
  }
};

template <typename T>
struct LayerNormCellBackward {
  Core<T> core;
  CoreGradient<T> gradient;
  int64_t flat;
  Product<T> of_stoch, of_action, of_feat, of_deter;

  LayerNormCellBackward(const Core<T>& core, const CoreGradient<T>& gradient, int64_t flat)
      : core(core), gradient(gradient), flat(flat) {
    of_stoch = transposed_of(core.stoch, 0, flat);
    of_action = transposed_of(core.stoch, flat, core.stoch.in - flat);
    of_feat = transposed_of(core.gates, 0, core.units());
    of_deter = transposed_of(core.gates, core.units(), core.width());
  }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&of_stoch, &of_action, &of_feat, &of_deter};
    for (Product<T>* product : all) each(*product);
  }

  Slopes<T> lay_out_rows(Arena& arena, int64_t rows) const {
    Slopes<T> slopes;
    slopes.pre = take_rows<T>(arena, rows, core.units());
    slopes.hidden[0] = take_rows<T>(arena, rows, 3 * core.width());
    return slopes;
  }

  void step(const Split& split, Rows<const T> deter, const Trace<T>& trace, const Slopes<T>& slopes, T* sums,
            Rows<T> d_deter, Rows<T> d_stoch) const {
    const Share rows = split.rows;
    const Rows<T> d_gates = slopes.hidden[0];
    apply_gates_backward<T>(rows, core.width(), 1, deter, trace.gates, d_gates, d_deter);
    activate_rows_backward<T>(core.gates, gradient.gates, sums, rows, 3 * core.width(), trace.hidden[0], d_gates);
    split.sync();
    of_feat.multiply(split, d_gates, slopes.pre);
    of_deter.multiply(split, d_gates, d_deter, Start::sum);
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
    const Rows<T> d_gates = slopes.hidden[0];
    T* const of_gates = gradient.gates.weight;
    weight_gradient<T>(piece, d_gates, 3 * width, operand(piece, trace.feat), units, of_gates, units + width, scratch);
    weight_gradient<T>(piece, d_gates, 3 * width, operand(piece, deter), width, of_gates ? of_gates + units : nullptr,
                       units + width, scratch, true);
    T* const of_inputs = gradient.stoch.weight;
    weight_gradient<T>(piece, slopes.pre, units, operand(piece, trace.action), in - flat,
                       of_inputs ? of_inputs + flat : nullptr, in, scratch);
    column_sums<T>(piece, 3 * width, d_gates, gradient.gates.bias);
    column_sums<T>(piece, units, slopes.pre, gradient.stoch.bias);
  }
};

}  // namespace fastdream::cpu::FD_ISA
