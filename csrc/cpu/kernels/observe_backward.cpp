#include "cpu/gru_backward.h"
#include "cpu/instantiate.h"
#include "cpu/latent_net_backward.h"
#include "cpu/lookup_backward.h"
#include "cpu/observe.h"

// `observe` backward: one scan from the last step to the first. It stops every few hundred rows to add what these give to
// the gradients of the weights, while it is in a cache.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kPieceRows = 512;

template <typename T>
struct Given {
  const T *stoch, *action, *embed;       // inputs of the forward scan
  const bool* reset;
  const T* noise;                        // of normals
  const int64_t* index;                  // and its outputs
  const T* logit;
  const T *d_deter, *d_stoch, *d_logit;  // gradients of its outputs, null: zeros
};

template <typename T>
struct Wanted {
  CoreGradient<T> core;
  LayerGradient<T> post[kMaxLayers];
  T *deter, *stoch, *action, *embed;  // like the inputs, null where not wanted
  int64_t sums = 0;                   // size of a thread's sums of norms' parameters
};

template <typename T, template <typename> class Cell>
class BackwardScan {
 public:
  BackwardScan(const Model<T>& model, const Given<T>& given, const Wanted<T>& wanted, const Saved<T>& saved,
               int threads)
      : model_(model), given_(given), wanted_(wanted), saved_(saved), cell_(model.core, wanted_.core, model.latent.flat()),
        posterior_(model.posterior(), wanted_.post),
        of_stoch_{{model.core.stoch, model.latent.stoch, model.latent.classes}, wanted.core.stoch.weight},
        steps_(model.batch >= kPieceRows ? 1 : kPieceRows / model.batch) {
    if (steps_ > model.length) steps_ = model.length;
    for (int pass = 0; pass < 2; ++pass) {
      lay_out(threads);
      if (pass == 0) arena_.allocate();
    }
  }

  void run(Team& team) {
    const auto pack = [&](Product<T>& product) { product.pack(team); };
    cell_.products(pack);
    posterior_.products(pack);
    const Split shares = split(team, model_.batch);
    for (int64_t b = shares.rows.first; b < shares.rows.last; ++b) {
      std::memset(d_deter_.at(b), 0, size_t(model_.width()) * sizeof(T));
      std::memset(d_stoch_.at(b), 0, size_t(model_.latent.flat()) * sizeof(T));
    }
    of_stoch_.clear(team);
    std::memset(sums_ + team.rank * wanted_.sums, 0, size_t(wanted_.sums) * sizeof(T));
    team.barrier();
    for (int64_t end = model_.length; end > 0; end -= steps_) {
      const int64_t begin = end > steps_ ? end - steps_ : 0;
      over_blocks(shares, [&](const Split& part) {
        for (int64_t t = end - 1; t >= begin; --t) step(part, t, t - begin);
      });
      team.barrier();
      over_runs(model_.batch, model_.length, shares.rows, begin, end, [&](const Run& run) { enter(team, run, begin); });
      team.barrier();
      sum(team, begin, end);
      team.barrier();
    }
    finish(team, shares.rows);
  }

 private:
  int64_t at(int64_t b, int64_t t) const { return b * model_.length + t; }
  bool reset(int64_t b, int64_t t) const { return given_.reset && given_.reset[at(b, t)]; }
  T* scratch(const Team& team) const { return scratch_ + team.rank * scratch_size_; }

  void lay_out(int threads) {
    const auto lay = [&](Product<T>& product) { product.lay_out(arena_); };
    cell_.products(lay);
    posterior_.products(lay);
    const int64_t rows = steps_ * model_.batch, least = model_.latent.scratch();
    slopes_ = cell_.lay_out_rows(arena_, rows);
    for (int64_t i = 0; i < model_.post.count; ++i) latent_.pre[i] = take_rows<T>(arena_, rows, model_.post.at[i].out);
    d_deter_ = take_rows<T>(arena_, model_.batch, model_.width());
    d_stoch_ = take_rows<T>(arena_, model_.batch, model_.latent.flat());
    masked_ = take_rows<T>(arena_, model_.batch, model_.width());
    of_stoch_.lay_out(arena_);
    sums_ = arena_.template take<T>(threads * wanted_.sums);
    scratch_size_ = rows * kPanel<T> < least ? least : rows * kPanel<T>;
    scratch_ = arena_.template take<T>(threads * scratch_size_);
  }

  // Gradients from row n of a piece on.
  Slopes<T> slopes(const Run& run) const {
    Slopes<T> x = slopes_;
    x.action_pre = view(x.action_pre, run);
    x.pre = view(x.pre, run);
    x.gates = view(x.gates, run);
    x.masked = view(x.masked, run);
    for (int64_t i = 0; i < kMaxLayers; ++i) x.hidden[i] = view(x.hidden[i], run);
    return x;
  }
  LatentSlopes<T> latent_slopes(const Run& run) const {
    LatentSlopes<T> x = latent_;
    for (int64_t i = 0; i < model_.post.count; ++i) x.pre[i] = view(x.pre[i], run);
    return x;
  }

  // deter before step t; what the first step sees was zeroed when it was saved.
  Rows<T> before(const Split& split, int64_t t) const {
    const bool* reset = given_.reset && t > 0 ? given_.reset + t : nullptr;
    return zeroed(model_, reset, split.rows, split.rows, saved_.deter.from(t * model_.batch), masked_);
  }

  void step(const Split& split, int64_t t, int64_t n) {
    const Share rows = split.rows;
    const Run run = {t * model_.batch, 1, model_.batch, 0}, in_piece = {n * model_.batch, 1, model_.batch, 0};
    T* const sums = sums_ + split.team->rank * wanted_.sums;
    if (given_.d_deter) {
      for (int64_t b = rows.first; b < rows.last; ++b) {
        add(model_.width(), given_.d_deter + at(b, t) * model_.width(), d_deter_.at(b));
      }
    }
    if (model_.post.count) {
      const LatentSlopes<T> latent = latent_slopes(in_piece);
      for (int64_t b = rows.first; b < rows.last; ++b) {
        draw_backward(at(b, t), d_stoch_.at(b), latent.pre[model_.post.count - 1].at(b), scratch(*split.team));
      }
      split.sync();
      posterior_.step(split, view(saved_.latent, run, model_.post.count, {}), latent, sums, d_deter_);
      split.sync();
    }
    cell_.step(split, before(split, t), view(saved_.trace, run), slopes(in_piece), sums, d_deter_, d_stoch_);
    split.sync();
    for (int64_t b = rows.first; b < rows.last; ++b) {
      if (!reset(b, t)) continue;
      std::memset(d_deter_.at(b), 0, size_t(model_.width()) * sizeof(T));
      std::memset(d_stoch_.at(b), 0, size_t(model_.latent.flat()) * sizeof(T));
    }
  }

  static void add(int64_t n, const T* x, T* to) {
    over<T>(n, [=](auto i) { i.store(to, i.load(to) + i.load(x)); });
  }

  void draw_backward(int64_t row, T* d_stoch, T* d_logit, T* scratch) const {
    const Latent<T>& latent = model_.latent;
    const int64_t from = row * latent.logits();
    if (given_.d_stoch) add(latent.flat(), given_.d_stoch + row * latent.flat(), d_stoch);
    latent.draw_backward(given_.logit + from, given_.noise ? given_.noise + row * latent.stoch : nullptr, d_stoch,
                         given_.d_logit ? given_.d_logit + from : nullptr, d_logit, scratch);
  }

  void enter(const Team& team, const Run& run, int64_t begin) {
    Run in_piece = run;
    in_piece.first -= begin * model_.batch;
    T* const to = wanted_.action ? wanted_.action + run.outer * model_.action : nullptr;
    const Rows<const T> action = {given_.action + run.outer * model_.action, model_.action};
    cell_.enter(run.count, view(saved_.trace, run), slopes(in_piece), sums_ + team.rank * wanted_.sums, action,
                {to, model_.action});
    for (int64_t m = 0; to && given_.reset && m < run.count; ++m) {
      if (given_.reset[run.outer + m]) std::memset(to + m * model_.action, 0, size_t(model_.action) * sizeof(T));
    }
    if (model_.post.count && wanted_.embed) {
      const Rows<T> d_embed = {wanted_.embed + run.outer * model_.embed, model_.embed};
      posterior_.enter(run.count, latent_slopes(in_piece), d_embed);
    }
  }

  void sum(const Team& team, int64_t begin, int64_t end) {
    const int64_t batch = model_.batch;
    const Run run = {begin * batch, 1, (end - begin) * batch, 0};
    const bool* reset = given_.reset ? given_.reset + begin : nullptr;
    const Piece piece = {team, batch, end - begin, end == model_.length, reset, model_.length};
    cell_.sum(piece, saved_.deter.from(begin * batch), view(saved_.trace, run), slopes_, scratch(team));
    const auto of = [&](int64_t m) { return stoch_before(m % batch, begin + m / batch); };
    of_stoch_.sum(piece, cell_.stoch_slopes(slopes_), of, saved_.trace.stoch.from(begin * batch), scratch(team));
    if (!model_.post.count) return;
    const Operand<T> embed = {given_.embed + begin * model_.embed, model_.length * model_.embed, model_.embed};
    const LatentTrace<T> trace = view(saved_.latent, run, model_.post.count, {});
    posterior_.sum(piece, saved_.deter.from((begin + 1) * batch), embed, trace, latent_, scratch(team));
  }

  // One-hots before step t: drawn before, or what was given.
  Stoch<T> stoch_before(int64_t b, int64_t t) const {
    if (reset(b, t)) return {};
    if (t > 0) return {given_.index + at(b, t - 1) * model_.latent.stoch, nullptr};
    return {nullptr, given_.stoch ? given_.stoch + b * model_.latent.flat() : nullptr};
  }

  void finish(const Team& team, Share rows) {
    for (int64_t b = rows.first; b < rows.last; ++b) {
      const int64_t width = model_.width(), flat = model_.latent.flat();
      if (wanted_.deter) std::memcpy(wanted_.deter + b * width, d_deter_.at(b), size_t(width) * sizeof(T));
      if (wanted_.stoch) std::memcpy(wanted_.stoch + b * flat, d_stoch_.at(b), size_t(flat) * sizeof(T));
    }
    of_stoch_.finish(team);
    const auto collected = [&](const Layer<T>& layer, const LayerGradient<T>& gradient) {
      collect(team, sums_, wanted_.sums, layer, gradient);
    };
    collected(model_.core.deter, wanted_.core.deter);
    collected(model_.core.stoch, wanted_.core.stoch);
    collected(model_.core.action, wanted_.core.action);
    collected(model_.core.gates, wanted_.core.gates);
    for (int64_t i = 0; i < model_.core.hidden.count; ++i) collected(model_.core.hidden.at[i], wanted_.core.hidden[i]);
    for (int64_t i = 0; i < model_.post.count; ++i) collected(model_.post.at[i], wanted_.post[i]);
  }

  const Model<T> model_;
  const Given<T> given_;
  const Wanted<T> wanted_;
  const Saved<T> saved_;
  Arena arena_;
  Cell<T> cell_;
  LatentNetBackward<T> posterior_;
  LookupGradient<T> of_stoch_;
  int64_t steps_;  // of a piece
  Slopes<T> slopes_;
  LatentSlopes<T> latent_;
  Rows<T> d_deter_, d_stoch_, masked_;
  T *sums_, *scratch_;
  int64_t scratch_size_;
};

template <typename T, template <typename> class Cell>
void scan(const Model<T>& model, const Given<T>& given, const Wanted<T>& wanted, const Saved<T>& saved, int threads) {
  BackwardScan<T, Cell> scan(model, given, wanted, saved, threads);
  parallel(threads, [&](Team& team) { scan.run(team); });
}

}  // namespace

// pointers: parameters, stoch, action, embed, reset, noise, index, logit, saved, d_deter, d_stoch, d_logit
//           | d_parameters, d_deter, d_stoch, d_action, d_embed (null where not wanted)
// sizes and scalars: the model's, then elements of saved
template <typename T>
void observe_backward(Call& call) {
  const Model<T> model = read_model<T>(call);
  Given<T> given;
  given.stoch = call.pointer<const T>();
  given.action = call.pointer<const T>();
  given.embed = call.pointer<const T>();
  given.reset = call.pointer<const bool>();
  given.noise = call.pointer<const T>();
  given.index = call.pointer<const int64_t>();
  given.logit = call.pointer<const T>();
  const Saved<T> saved(model, {call.pointer<T>()});
  given.d_deter = call.pointer<const T>();
  given.d_stoch = call.pointer<const T>();
  given.d_logit = call.pointer<const T>();
  Wanted<T> wanted;
  wanted.core = read_gradient(call, model.core, wanted.sums);
  for (int64_t i = 0; i < model.post.count; ++i) {
    wanted.post[i] = read_gradient(call, model.post.at[i], wanted.sums);
  }
  wanted.deter = call.pointer<T>();
  wanted.stoch = call.pointer<T>();
  wanted.action = call.pointer<T>();
  wanted.embed = call.pointer<T>();
  if (call.size() != saved.size) fail("observe_backward: what was saved has another size than expected");
  call.done();
  if (model.batch == 0 || model.length == 0) return;
  const int threads = model.batch < 2 ? 1 : call.threads;
  if (model.core.is_block()) return scan<T, BlockCellBackward>(model, given, wanted, saved, threads);
  if (model.core.is_plain()) return scan<T, GRUCellBackward>(model, given, wanted, saved, threads);
  scan<T, LayerNormCellBackward>(model, given, wanted, saved, threads);
}

FD_INSTANTIATE(observe_backward)

}  // namespace fastdream::cpu::FD_ISA
