#include "cpu/observe.h"

#include "cpu/instantiate.h"

// `observe` of fastdream/ops/reference/scan.py, forward, and, for no posterior layers, one step of a core.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kAhead = kMaxRows;  // steps whose actions and embeddings enter at a time: one tile, still in the cache

template <typename T>
struct Inputs {
  const T *deter, *stoch, *action, *embed;  // [B, D], [B, flat] or null: zeros, [B, T, A], [B, T, E] or null
  const bool* reset;                        // [B, T] or null
  const T* noise;                           // [B, T, S] or null
  const int64_t* index;                     // [B, T, S] to replay or null
};

template <typename T>
struct Outputs {
  T *deter, *stoch, *logit;  // [B, T, D], [B, T, flat], [B, T, logits]
  int64_t* index;            // [B, T, S] if there are classes
};

template <typename T, typename Cell>
class Scan {
 public:
  Scan(const Model<T>& model, const Inputs<T>& in, const Outputs<T>& out, const Saved<T>& saved, int threads)
      : model_(model), in_(in), out_(out), saved_(saved), cell_(model.core, model.latent.stoch, model.latent.classes),
        posterior_(model.posterior()) {
    for (int pass = 0; pass < 2; ++pass) {
      cell_.lay_out(arena_);
      posterior_.lay_out(arena_);
      stoch_ = arena_.template take<Stoch<T>>(model.batch);
      masked_ = take_rows<T>(arena_, model.batch, model.width());
      scratch_ = arena_.template take<T>(threads * model.latent.scratch());
      if (pass == 0) arena_.allocate();
    }
  }

  void run(Team& team) {
    cell_.pack(team);
    posterior_.pack(team);
    const Split shares = split(team, model_.batch);
    begin(shares.rows);
    team.barrier();
    over_blocks(shares, [&](const Split& part) {
      for (int64_t t = 0; t < model_.length; ++t) {
        const int64_t end = t + kAhead < model_.length ? t + kAhead : model_.length;
        if (t % kAhead == 0) {
          over_runs(model_.batch, model_.length, part.rows, t, end, [&](const Run& run) { enter(run); });
        }
        step(part, t);
      }
    });
  }

 private:
  int64_t at(int64_t b, int64_t t) const { return b * model_.length + t; }
  bool reset(int64_t b, int64_t t) const { return in_.reset && in_.reset[at(b, t)]; }

  void begin(Share rows) {
    const int64_t width = model_.width();
    for (int64_t b = rows.first; b < rows.last; ++b) {
      T* const to = saved_.deter.at(b);
      if (reset(b, 0)) {
        std::memset(to, 0, size_t(width) * sizeof(T));
      } else {
        std::memcpy(to, in_.deter + b * width, size_t(width) * sizeof(T));
      }
    }
  }

  void enter(const Run& run) {
    const Trace<T> trace = view(saved_.trace, run);
    for (int64_t m = 0; m < run.count; ++m) {
      const int64_t from = run.outer + m, width = model_.action;
      if (in_.reset && in_.reset[from]) {
        std::memset(trace.action.at(m), 0, size_t(width) * sizeof(T));
      } else {
        std::memcpy(trace.action.at(m), in_.action + from * width, size_t(width) * sizeof(T));
      }
    }
    cell_.enter(run.count, trace);
    if (!model_.post.count) return;
    const int64_t logits = model_.latent.logits();
    const Rows<T> logit = {out_.logit + run.outer * logits, logits};
    const Rows<const T> embed = {in_.embed + run.outer * model_.embed, model_.embed};
    posterior_.enter(run.count, embed, view(saved_.latent, run, model_.post.count, logit));
  }

  // deter before step t; what the first step sees was zeroed when it was saved.
  Rows<T> before(const Split& split, int64_t t) const {
    const bool* reset = in_.reset && t > 0 ? in_.reset + t : nullptr;
    return zeroed(model_, reset, split.products, split.rows, saved_.deter.from(t * model_.batch), masked_);
  }

  // Numbers are kept as they are used, since a gradient multiplies them.
  Stoch<T> stoch_before(int64_t b, int64_t t) const {
    const int64_t flat = model_.latent.flat();
    if (!model_.latent.classes) {
      T* const kept = saved_.trace.stoch.at(t * model_.batch + b);
      const T* const from = t > 0 ? out_.stoch + at(b, t - 1) * flat : in_.stoch ? in_.stoch + b * flat : nullptr;
      const bool zeros = !from || reset(b, t);
      zeros ? std::memset(kept, 0, size_t(flat) * sizeof(T)) : std::memcpy(kept, from, size_t(flat) * sizeof(T));
      return {nullptr, kept};
    }
    if (reset(b, t)) return {};
    if (t > 0) return {out_.index + at(b, t - 1) * model_.latent.stoch, nullptr};
    return {nullptr, in_.stoch ? in_.stoch + b * flat : nullptr};
  }

  void step(const Split& split, int64_t t) {
    const Share rows = split.rows;
    const Run run = {t * model_.batch, 1, model_.batch, 0};
    for (int64_t b = rows.first; b < rows.last; ++b) stoch_[b] = stoch_before(b, t);
    const Rows<T> deter = before(split, t), next = saved_.deter.from((t + 1) * model_.batch);
    split.sync();
    cell_.step(split, deter, stoch_, view(saved_.trace, run), next);
    for (int64_t b = rows.first; b < rows.last; ++b) {
      std::memcpy(out_.deter + at(b, t) * model_.width(), next.at(b), size_t(model_.width()) * sizeof(T));
    }
    split.sync();
    if (!model_.post.count) return;
    const int64_t logits = model_.latent.logits();
    const Rows<T> logit = {out_.logit + t * logits, model_.length * logits};
    posterior_.step(split, next, view(saved_.latent, run, model_.post.count, logit));
    split.sync();
    for (int64_t b = rows.first; b < rows.last; ++b) draw(at(b, t), split.team->rank);
  }

  void draw(int64_t row, int rank) const {
    const Latent<T>& latent = model_.latent;
    const int64_t drawn = row * latent.stoch;
    latent.draw(out_.logit + row * latent.logits(), offset(in_.noise, drawn), offset(in_.index, drawn),
                latent.classes ? out_.index + drawn : nullptr, out_.stoch + row * latent.flat(),
                scratch_ + rank * latent.scratch());
  }

  const Model<T> model_;
  const Inputs<T> in_;
  const Outputs<T> out_;
  const Saved<T> saved_;
  Arena arena_;
  Cell cell_;
  LatentNet<T> posterior_;
  Stoch<T>* stoch_;
  Rows<T> masked_;
  T* scratch_;
};

}  // namespace

// pointers: parameters, deter, stoch, action, embed, reset, noise, index | deter, stoch, logit, index, saved
// sizes and scalars: the model's, then elements of saved
template <typename T>
void observe(Call& call) {
  const Model<T> model = read_model<T>(call);
  Inputs<T> in;
  in.deter = call.pointer<const T>();
  in.stoch = call.pointer<const T>();
  in.action = call.pointer<const T>();
  in.embed = call.pointer<const T>();
  in.reset = call.pointer<const bool>();
  in.noise = call.pointer<const T>();
  in.index = call.pointer<const int64_t>();
  Outputs<T> out;
  out.deter = call.pointer<T>();
  out.stoch = call.pointer<T>();
  out.logit = call.pointer<T>();
  out.index = call.pointer<int64_t>();
  const Saved<T> saved(model, {call.pointer<T>()});
  if (call.size() != saved.size) fail("observe: what is saved has another size than expected");
  call.done();
  if (model.batch == 0 || model.length == 0) return;
  prefer_large_pages(saved.deter.data, size_t(saved.size) * sizeof(T));
  const int threads = model.batch < 2 ? 1 : call.threads;
  with_cell(model.core, [&](auto tag) {
    Scan<T, typename decltype(tag)::Cell> scan(model, in, out, saved, threads);
    parallel(threads, [&](Team& team) { scan.run(team); });
  });
}

FD_INSTANTIATE(observe)

}  // namespace fastdream::cpu::FD_ISA
