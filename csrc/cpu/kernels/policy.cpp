#include "cpu/actor.h"
#include "cpu/gru.h"
#include "cpu/instantiate.h"
#include "cpu/squish.h"

// `policy_step` of fastdream/ops/reference/policy.py. There are few rows, so that weights are used as they lie: one row is
// done when every weight has been read once.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kHeavy = 1 << 19;  // weights of the gates from which threads share the columns of one row

template <typename T>
struct Inputs {
  const T *deter, *stoch, *action, *features;  // [n, D], [n, flat], [n, A], [n, F]
  const bool* reset;                           // [n]
  const T* noise;                              // [n, S] or null
  const int64_t* index;                        // [n, S] to replay or null
  const T* action_noise;                       // [n, M] or null
};

template <typename T>
struct Outputs {
  T *deter, *stoch, *logit;  // [n, D], [n, flat], [n, logits]
  int64_t* index;            // [n, S] if there are classes
  T* action;                 // [n, A]
};

struct Sizes {
  int64_t rows, width, action, features, embed, elements;
  int64_t parts;          // of the features, where they come as the environment shows them
  const int64_t* widths;  // [parts]
};

// Memory of threads that work on the same rows.
template <typename T>
struct Workspace {
  LatentTrace<T> encoder, post;
  Trace<T> cell;
  ActorTrace<T> actor;
  Rows<T> deter, features;
  Stoch<T>* stoch;
  T* scratch;
};

template <typename T, typename Cell>
class Policy {
 public:
  Policy(const Sizes& sizes, const Inputs<T>& in, const Outputs<T>& out, const Latent<T>& latent,
         const Layers<T>& encoder, const Core<T>& core, const Layers<T>& post, bool absolute, const Actor<T>& actor,
         int64_t threads, bool columns)
      : n_(sizes), in_(in), out_(out), latent_(latent), encoder_(encoder, sizes.features, 0),
        cell_(core, latent.stoch, latent.classes), post_(post, absolute ? 0 : sizes.width, sizes.embed), actor_(actor),
        columns_(columns) {
    const int64_t spaces = columns ? 1 : threads, rows = columns ? sizes.rows : div_up(sizes.rows, threads);
    for (int pass = 0; pass < 2; ++pass) {
      spaces_ = arena_.template take<Workspace<T>>(spaces);
      for (int64_t i = 0; i < spaces; ++i) {
        const Workspace<T> space = lay_out_rows(rows);
        if (pass) spaces_[i] = space;
      }
      if (pass == 0) arena_.allocate();
    }
  }

  void run(Team& team, int64_t threads) const {
    if (columns_) {
      const Split split = {&team, team.size > 1, {0, n_.rows}, share(team, n_.rows)};
      return step(split, 0, n_.rows, spaces_[0]);
    }
    // As many parts as there are workspaces, also where fewer threads came.
    for (int64_t i = team.rank; i < threads; i += team.size) {
      const int64_t first = i * n_.rows / threads, rows = (i + 1) * n_.rows / threads - first;
      step(split_rows(team, {0, rows}), first, rows, spaces_[i]);
    }
  }

 private:
  Workspace<T> lay_out_rows(int64_t rows) {
    Workspace<T> space;
    space.encoder = encoder_.lay_out_rows(arena_, rows);
    space.post = post_.lay_out_rows(arena_, rows);
    space.cell = cell_.lay_out_rows(arena_, rows);
    space.actor = actor_.lay_out_rows(arena_, rows);
    space.deter = {arena_.template take<T>(rows * padded(n_.width)), padded(n_.width)};
    space.features = {arena_.template take<T>(n_.parts ? rows * n_.features : 0), n_.features};
    space.stoch = arena_.template take<Stoch<T>>(rows);
    space.scratch = arena_.template take<T>(latent_.scratch());
    return space;
  }

  // What only one thread of those that share the rows does.
  static bool alone(const Split& split) { return !split.columns || split.team->rank == 0; }

  // Rows first ... first + rows - 1, which are `rows` rows of the workspace.
  void step(const Split& split, int64_t first, int64_t rows, const Workspace<T>& space) const {
    if (alone(split)) begin(first, rows, space);
    const Rows<const T> embed = encode(split, first, space);
    if (alone(split)) cell_.enter(rows, space.cell);
    LatentTrace<T> trace = space.post;
    const Rows<T> deter = {out_.deter + first * n_.width, n_.width};
    const Rows<T> logit = {out_.logit + first * latent_.logits(), latent_.logits()};
    trace.pre[post_.layers.count - 1] = logit;
    if (!split.columns || split.team->rank == split.team->size - 1) post_.enter(rows, embed, trace);
    split.sync();
    cell_.step(split, space.deter, space.stoch, space.cell, deter);
    split.sync();
    post_.step(split, deter, trace);
    split.sync();
    if (alone(split)) draw(first, rows, space);
    split.sync();
    actor_.step(split, deter, space.stoch, space.actor);
    split.sync();
    if (!alone(split)) return;
    const Rows<const T> draws = {in_.action_noise ? in_.action_noise + first * n_.elements : nullptr, n_.elements};
    actor_.act(rows, draws, space.actor, {out_.action + first * n_.action, n_.action});
  }

  // The state before, zeroed at resets, and the features.
  void begin(int64_t first, int64_t rows, const Workspace<T>& space) const {
    for (int64_t m = 0; n_.parts && m < rows; ++m) {
      const T* from = in_.features + (first + m) * n_.features;
      T* to = space.features.at(m);
      for (int64_t i = 0; i < n_.parts; from += n_.widths[i], to += n_.widths[i], ++i) {
        squish_vector(n_.widths[i], from, to);
      }
    }
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t row = first + m;
      T *const deter = space.deter.at(m), *const action = space.cell.action.at(m);
      const size_t deter_bytes = size_t(n_.width) * sizeof(T), action_bytes = size_t(n_.action) * sizeof(T);
      if (in_.reset[row]) {
        space.stoch[m] = {};
        std::memset(deter, 0, deter_bytes);
        std::memset(action, 0, action_bytes);
      } else {
        space.stoch[m] = {nullptr, in_.stoch + row * latent_.flat()};
        std::memcpy(deter, in_.deter + row * n_.width, deter_bytes);
        std::memcpy(action, in_.action + row * n_.action, action_bytes);
      }
    }
  }

  Rows<const T> encode(const Split& split, int64_t first, const Workspace<T>& space) const {
    Rows<const T> features = {in_.features + first * n_.features, n_.features};
    if (n_.parts) {
      features = space.features;
      split.sync();
    }
    const int64_t last = encoder_.layers.count - 1;
    if (last < 0) {
      split.sync();
      return features;
    }
    const Rows<T> embed = space.encoder.pre[last];
    encoder_.step(split, features, space.encoder);
    split.sync();
    activate_rows(encoder_.layers.at[last].f, split.rows, n_.embed, embed, embed);
    split.sync();
    return embed;
  }

  // The latents of some rows, which the actor then sees.
  void draw(int64_t first, int64_t rows, const Workspace<T>& space) const {
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t row = first + m, drawn = row * latent_.stoch;
      T* const stoch = out_.stoch + row * latent_.flat();
      latent_.draw(out_.logit + row * latent_.logits(), offset(in_.noise, drawn), offset(in_.index, drawn),
                   offset(out_.index, drawn), stoch, space.scratch);
      space.stoch[m] = {nullptr, stoch};
    }
  }

  const Sizes n_;
  const Inputs<T> in_;
  const Outputs<T> out_;
  const Latent<T> latent_;
  Arena arena_;
  const LatentNet<T> encoder_;
  const Cell cell_;
  const LatentNet<T> post_;
  const Actor<T>& actor_;
  const bool columns_;
  Workspace<T>* spaces_;
};

}  // namespace

// pointers: deter, stoch, action, features, reset, noise, index, action_noise | deter, stoch, logit, index, action, then
// the encoder, the core, the posterior, the actor;  sizes: rows, deter, the latent's, action, features, embed, elements of an
// action's noise, 1 if the posterior does not see deter, number and widths of raw vectors;  scalars: the latent's
template <typename T>
void policy_step(Call& call) {
  Inputs<T> in;
  in.deter = call.pointer<const T>();
  in.stoch = call.pointer<const T>();
  in.action = call.pointer<const T>();
  in.features = call.pointer<const T>();
  in.reset = call.pointer<const bool>();
  in.noise = call.pointer<const T>();
  in.index = call.pointer<const int64_t>();
  in.action_noise = call.pointer<const T>();
  Outputs<T> out;
  out.deter = call.pointer<T>();
  out.stoch = call.pointer<T>();
  out.logit = call.pointer<T>();
  out.index = call.pointer<int64_t>();
  out.action = call.pointer<T>();
  Sizes sizes;
  sizes.rows = call.size();
  sizes.width = call.size();
  const Latent<T> latent = read_latent<T>(call);
  sizes.action = call.size();
  sizes.features = call.size();
  sizes.embed = call.size();
  sizes.elements = call.size();
  const bool absolute = call.size();
  sizes.parts = call.size();
  sizes.widths = call.sizes(sizes.parts);
  const Layers<T> encoder = read_layers<T>(call);
  const Core<T> core = read_core<T>(call);
  if (sizes.width != core.width()) fail("policy_step called with another width");
  const Layers<T> post = read_layers<T>(call);
  const Actor<T> actor(call, sizes.width, latent);
  call.done();
  if (sizes.rows == 0) return;
  const int64_t most = sizes.rows / kMaxRows, threads = call.threads < most ? call.threads : most;
  const bool columns = threads < 2 && core.gate_weights() >= kHeavy;
  const int64_t team = columns ? call.threads : threads < 1 ? 1 : threads;
  with_cell(core, [&](auto tag) {
    const Policy<T, typename decltype(tag)::Cell> policy(sizes, in, out, latent, encoder, core, post, absolute, actor,
                                                         team, columns);
    parallel(int(team), [&](Team& members) { policy.run(members, team); });
  });
}

FD_INSTANTIATE(policy_step)

}  // namespace fastdream::cpu::FD_ISA
