#pragma once

#include "cpu/gru.h"
#include "cpu/latent.h"
#include "cpu/latent_net.h"

// What observing forward and backward share: the model, the sizes, and where the forward scan leaves what the backward
// one reads. Rows of these workspaces are ordered by time: row t * batch + b.
namespace fastdream::cpu::FD_ISA {

template <typename T>
struct Model {
  Core<T> core;
  Layers<T> post;  // none: the core alone
  int64_t batch = 0, length = 0;
  int64_t action = 0, embed = 0;  // widths
  Latent<T> latent;
  bool absolute = false;  // the posterior does not see deter

  int64_t width() const { return core.width(); }
  LatentNet<T> posterior() const { return {post, absolute ? 0 : width(), embed}; }
};

// The core, the posterior's layers;  sizes: batch, length, action, embed, the latent, absolute
template <typename T>
Model<T> read_model(Call& call) {
  Model<T> model;
  model.core = read_core<T>(call);
  model.post = read_layers<T>(call);
  model.batch = call.size();
  model.length = call.size();
  model.action = call.size();
  model.embed = call.size();
  model.latent = read_latent<T>(call);
  model.absolute = call.size();
  return model;
}

// Pieces of one flat tensor, or, for a null base, only their size.
template <typename T>
struct Pieces {
  T* base = nullptr;
  int64_t used = 0;
  Rows<T> take(int64_t rows, int64_t width) {
    const Rows<T> piece = {base ? base + used : nullptr, padded(width)};
    used += rows * piece.row;
    return piece;
  }
};

template <typename T>
struct Saved {
  Rows<T> deter;  // [(length + 1) * batch, D] before each step, not zeroed at resets but at the first, and after the last
  Trace<T> trace;
  LatentTrace<T> latent;  // without the logits, which are an output

  // Its rows' width is `_saved_width` of fastdream/ops/native/scan.py.
  Saved(const Model<T>& model, Pieces<T> pieces) {
    const int64_t rows = model.length * model.batch, width = model.width(), units = model.core.units();
    const bool block = model.core.is_block();
    deter = pieces.take(rows + model.batch, width);
    trace.action = pieces.take(rows, model.action);
    if (!model.latent.classes) trace.stoch = pieces.take(rows, model.latent.stoch);
    trace.gates = pieces.take(rows, 3 * width);
    trace.pre = pieces.take(rows, block ? 2 * units : units);
    trace.feat = pieces.take(rows, block ? 2 * units : units);
    if (block) {
      trace.action_pre = pieces.take(rows, units);
      trace.action_feat = pieces.take(rows, units);
      for (int64_t i = 0; i < model.core.hidden.count; ++i) {
        trace.hidden[i] = pieces.take(rows, width);
        trace.active[i] = pieces.take(rows, width);
      }
    } else {
      trace.hidden[0] = pieces.take(rows, 3 * width);
      if (model.core.kind == CoreKind::gru_block_cell) trace.active[0] = pieces.take(rows, width);
    }
    for (int64_t i = 0; i + 1 < model.post.count; ++i) {
      latent.pre[i] = pieces.take(rows, model.post.at[i].out);
      latent.feat[i] = pieces.take(rows, model.post.at[i].out);
    }
    size = pieces.used;
  }
  int64_t size;
};

// A run of rows of the time-ordered workspaces, the first and each n-th after it, that lie one after another in tensors
// [batch, length, ...], from row `outer` there: the time steps of one sequence, or for one step the whole batch.
struct Run {
  int64_t first, every, count, outer;
};

// Calls body(Run) for steps `from` ... `to` - 1 of sequences rows.first ... rows.last - 1.
template <typename Body>
void over_runs(int64_t batch, int64_t length, Share rows, int64_t from, int64_t to, Body body) {
  if (length == 1) return body(Run{rows.first, 1, rows.last - rows.first, rows.first});
  for (int64_t b = rows.first; b < rows.last; ++b) body(Run{from * batch + b, batch, to - from, b * length + from});
}

// Calls body(Split) for some of a thread's rows at a time, so that what they compute stays in the cache; for all of them
// where threads share columns, and wait for each other.
template <typename Body>
void over_blocks(const Split& split, Body body) {
  constexpr int64_t kBlock = 64;
  if (split.columns) return body(split);
  for (int64_t m = split.rows.first; m < split.rows.last; m += kBlock) {
    body(split_rows(*split.team, {m, m + kBlock < split.rows.last ? m + kBlock : split.rows.last}));
  }
}

template <typename T>
Rows<T> view(Rows<T> x, const Run& run) {
  return x.data ? x.from(run.first).every(run.every) : x;
}

template <typename T>
Trace<T> view(Trace<T> trace, const Run& run) {
  Rows<T>* const all[] = {&trace.action, &trace.stoch, &trace.action_pre, &trace.action_feat,
                          &trace.pre,    &trace.feat,  &trace.gates};
  for (Rows<T>* x : all) *x = view(*x, run);
  for (int64_t i = 0; i < kMaxLayers; ++i) {
    trace.hidden[i] = view(trace.hidden[i], run);
    trace.active[i] = view(trace.active[i], run);
  }
  return trace;
}

// logit: those of the run's rows.
template <typename T>
LatentTrace<T> view(LatentTrace<T> trace, const Run& run, int64_t count, Rows<T> logit) {
  for (int64_t i = 0; i + 1 < count; ++i) {
    trace.pre[i] = view(trace.pre[i], run);
    trace.feat[i] = view(trace.feat[i], run);
  }
  if (count) trace.pre[count - 1] = logit;
  return trace;
}

// `deter` before a step for a thread's rows, or a copy of it in `copy` where one of rows `all` is zeroed at a reset.
// reset: [batch, length] from this step on, or null.
template <typename T>
Rows<T> zeroed(const Model<T>& model, const bool* reset, Share all, Share rows, Rows<T> deter, Rows<T> copy) {
  bool any = false;
  for (int64_t b = all.first; reset && b < all.last; ++b) any |= reset[b * model.length];
  if (!any) return deter;
  const size_t bytes = size_t(model.width()) * sizeof(T);
  for (int64_t b = rows.first; b < rows.last; ++b) {
    reset[b * model.length] ? std::memset(copy.at(b), 0, bytes) : std::memcpy(copy.at(b), deter.at(b), bytes);
  }
  return copy;
}

}  // namespace fastdream::cpu::FD_ISA
