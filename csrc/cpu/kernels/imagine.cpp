#include "cpu/actor.h"
#include "cpu/gru.h"
#include "cpu/instantiate.h"

// `imagine` and `rollout` of fastdream/ops/reference/scan.py, forward. Each thread takes some rows at a time from the first
// to the last step, actor included, so that what they compute never leaves the cache.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kBlock = 64;      // rows at a time
constexpr int64_t kFewSteps = 128;  // rows * steps below which weights are used as they lie

template <typename T>
struct Inputs {
  const T *deter, *stoch;       // [N, D], [N, flat]
  const T* noise;               // [N, H, S] or null
  const int64_t* index;         // [N, H, S] to replay or null
  const T *action_noise, *action;  // [N, L, M], [N, L, A], one of them null
};

// With the start as state 0, L = H + 1 states and actions, else L = H states. Null where not wanted: action, index.
template <typename T>
struct Outputs {
  T *deter, *stoch, *logit, *action;  // [N, L, D], [N, L, flat], [N, H, logits], [N, L, A]
  int64_t* index;                     // [N, H, S]
};

struct Sizes {
  int64_t rows, length, start, width, action, elements;
  int64_t states() const { return length + start; }
};

// Memory of one thread.
template <typename T>
struct Workspace {
  Trace<T> cell;
  LatentTrace<T> prior;
  ActorTrace<T> actor;
  Rows<T> deter[2];
  Stoch<T>* stoch;
  int64_t* index;
  T* scratch;
};

template <typename T, typename Cell>
class Dream {
 public:
  Dream(const Sizes& sizes, const Inputs<T>& in, const Outputs<T>& out, const Latent<T>& latent, const Core<T>& core,
        const Layers<T>& prior, Actor<T>* actor, int64_t threads)
      : n_(sizes), in_(in), out_(out), latent_(latent), cell_(core, latent.stoch, latent.classes),
        prior_(prior, sizes.width, 0), actor_(actor), packed_(sizes.rows * sizes.length >= kFewSteps) {
    const int64_t share = div_up(sizes.rows, threads);
    height_ = share < kBlock ? share : kBlock;
    for (int pass = 0; pass < 2; ++pass) {
      if (packed_) {
        cell_.lay_out(arena_);
        prior_.lay_out(arena_);
        if (actor_) actor_->lay_out(arena_);
      }
      spaces_ = arena_.template take<Workspace<T>>(threads);
      for (int64_t i = 0; i < threads; ++i) {
        const Workspace<T> space = lay_out_rows(height_);
        if (pass) spaces_[i] = space;
      }
      if (pass == 0) arena_.allocate();
    }
  }

  void run(Team& team) {
    if (packed_) {
      cell_.pack(team);
      prior_.pack(team);
      if (actor_) actor_->pack(team);
      team.barrier();
    }
    const Share mine = share(team, n_.rows);
    const int64_t rows = mine.last - mine.first, blocks = div_up(rows, height_);
    for (int64_t i = 0; i < blocks; ++i) {
      dream(team, mine.first + i * rows / blocks, mine.first + (i + 1) * rows / blocks, spaces_[team.rank]);
    }
  }

 private:
  Workspace<T> lay_out_rows(int64_t rows) {
    Workspace<T> space;
    space.cell = cell_.lay_out_rows(arena_, rows);
    space.prior = prior_.lay_out_rows(arena_, rows);
    if (actor_) space.actor = actor_->lay_out_rows(arena_, rows);
    for (Rows<T>& deter : space.deter) {
      deter = {arena_.template take<T>(rows * padded(n_.width)), padded(n_.width)};
    }
    space.stoch = arena_.template take<Stoch<T>>(rows);
    space.index = arena_.template take<int64_t>(rows * latent_.stoch);
    space.scratch = arena_.template take<T>(latent_.scratch());
    return space;
  }

  // Rows first ... last - 1 from the start to the end.
  void dream(Team& team, int64_t first, int64_t last, Workspace<T>& space) const {
    const int64_t rows = last - first, flat = latent_.flat(), logits = latent_.logits();
    const Split split = split_rows(team, {0, rows});
    for (int64_t m = 0; m < rows; ++m) {
      const T *deter = in_.deter + (first + m) * n_.width, *stoch = in_.stoch + (first + m) * flat;
      std::memcpy(space.deter[0].at(m), deter, size_t(n_.width) * sizeof(T));
      space.stoch[m] = {nullptr, stoch};
      if (!n_.start) continue;
      std::memcpy(out_.deter + (first + m) * n_.states() * n_.width, deter, size_t(n_.width) * sizeof(T));
      std::memcpy(out_.stoch + (first + m) * n_.states() * flat, stoch, size_t(flat) * sizeof(T));
    }
    for (int64_t t = 0; t < n_.states(); ++t) {
      act(split, first, rows, t, space);
      if (t == n_.length) break;
      const Rows<T> next = space.deter[1];
      cell_.enter(rows, space.cell);
      cell_.step(split, space.deter[0], space.stoch, space.cell, next);
      LatentTrace<T> trace = space.prior;
      const Rows<T> logit = {out_.logit + (first * n_.length + t) * logits, n_.length * logits};
      trace.pre[prior_.layers.count - 1] = logit;
      prior_.step(split, next, trace);
      for (int64_t m = 0; m < rows; ++m) keep(first + m, t, logit.at(m), next.at(m), space, m);
      space.deter[1] = space.deter[0];
      space.deter[0] = next;
    }
  }

  // The actions at step t, into the cell's memory.
  void act(const Split& split, int64_t first, int64_t rows, int64_t t, const Workspace<T>& space) const {
    const int64_t steps = n_.states(), at = first * steps + t;
    const Rows<T> action = space.cell.action;
    if (in_.action) {
      for (int64_t m = 0; m < rows; ++m) {
        std::memcpy(action.at(m), in_.action + (at + m * steps) * n_.action, size_t(n_.action) * sizeof(T));
      }
    } else {
      actor_->step(split, space.deter[0], space.stoch, space.actor);
      actor_->act(rows, {in_.action_noise + at * n_.elements, steps * n_.elements}, space.actor, action);
    }
    for (int64_t m = 0; out_.action && m < rows; ++m) {
      std::memcpy(out_.action + (at + m * steps) * n_.action, action.at(m), size_t(n_.action) * sizeof(T));
    }
  }

  // Draws a row's latent and writes the state that step t led to.
  void keep(int64_t row, int64_t t, const T* logit, const T* deter, Workspace<T>& space, int64_t m) const {
    const int64_t count = latent_.stoch, drawn = (row * n_.length + t) * count;
    const int64_t state = row * n_.states() + t + n_.start;
    int64_t* const index = space.index + m * count;
    T* const stoch = out_.stoch + state * latent_.flat();
    latent_.draw(logit, offset(in_.noise, drawn), offset(in_.index, drawn), index, stoch, space.scratch);
    std::memcpy(out_.deter + state * n_.width, deter, size_t(n_.width) * sizeof(T));
    if (out_.index) std::memcpy(out_.index + drawn, index, size_t(count) * sizeof(int64_t));
    space.stoch[m] = packed_ && latent_.classes ? Stoch<T>{index, nullptr} : Stoch<T>{nullptr, stoch};
  }

  const Sizes n_;
  const Inputs<T> in_;
  const Outputs<T> out_;
  const Latent<T> latent_;
  Arena arena_;
  Cell cell_;
  LatentNet<T> prior_;
  Actor<T>* const actor_;
  const bool packed_;
  int64_t height_;  // rows at a time
  Workspace<T>* spaces_;
};

}  // namespace

// pointers: deter, stoch, noise, index, action_noise, action | deter, stoch, logit, action, index, then the core, the
// prior and, if there is one, the actor;  sizes: rows, length, 1 if the start is state 0, the latent's, action, elements of
// an action's noise, 1 if there is an actor;  scalars: the latent's
template <typename T>
void imagine(Call& call) {
  Inputs<T> in;
  in.deter = call.pointer<const T>();
  in.stoch = call.pointer<const T>();
  in.noise = call.pointer<const T>();
  in.index = call.pointer<const int64_t>();
  in.action_noise = call.pointer<const T>();
  in.action = call.pointer<const T>();
  Outputs<T> out;
  out.deter = call.pointer<T>();
  out.stoch = call.pointer<T>();
  out.logit = call.pointer<T>();
  out.action = call.pointer<T>();
  out.index = call.pointer<int64_t>();
  Sizes sizes;
  sizes.rows = call.size();
  sizes.length = call.size();
  sizes.start = call.size();
  const Latent<T> latent = read_latent<T>(call);
  sizes.action = call.size();
  sizes.elements = call.size();
  const bool acts = call.size();
  const Core<T> core = read_core<T>(call);
  sizes.width = core.width();
  const Layers<T> prior = read_layers<T>(call);
  const int64_t most = div_up(sizes.rows, kMaxRows), threads = call.threads < most ? call.threads : most;
  const auto run_with = [&](Actor<T>* actor) {
    call.done();
    if (sizes.rows == 0) return;
    with_cell(core, [&](auto tag) {
      Dream<T, typename decltype(tag)::Cell> dream(sizes, in, out, latent, core, prior, actor, threads);
      parallel(int(threads), [&](Team& team) { dream.run(team); });
    });
  };
  if (!acts) return run_with(nullptr);
  Actor<T> actor(call, sizes.width, latent);
  run_with(&actor);
}

FD_INSTANTIATE(imagine)

}  // namespace fastdream::cpu::FD_ISA
