#include "cpu/categorical.h"
#include "cpu/cells_backward.h"
#include "cpu/instantiate.h"
#include "cpu/latent_net_backward.h"
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
      : model_(model), given_(given), wanted_(wanted), saved_(saved), cell_(model.core, wanted_.core, model.flat()),
        posterior_(model.posterior(), wanted_.post),
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
      std::memset(d_stoch_.at(b), 0, size_t(model_.flat()) * sizeof(T));
    }
    const Share variables = share(team, model_.stoch);
    std::memset(table_ + variables.first * model_.classes * model_.core.units(), 0,
                size_t((variables.last - variables.first) * model_.classes * model_.core.units()) * sizeof(T));
    std::memset(sums_ + team.rank * wanted_.sums, 0, size_t(wanted_.sums) * sizeof(T));
    team.barrier();
    for (int64_t end = model_.length; end > 0; end -= steps_) {
      const int64_t begin = end > steps_ ? end - steps_ : 0;
      for (int64_t t = end - 1; t >= begin; --t) step(shares, t, t - begin);
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

  Rows<T> take(int64_t rows, int64_t width) {
    return {arena_.template take<T>(rows * padded(width)), padded(width)};
  }

  void lay_out(int threads) {
    const auto lay = [&](Product<T>& product) { product.lay_out(arena_); };
    cell_.products(lay);
    posterior_.products(lay);
    const Core<T>& core = model_.core;
    const int64_t rows = steps_ * model_.batch, width = model_.width(), units = core.units();
    const bool block = core.kind == CoreKind::block_gru;
    slopes_.pre = take(rows, block ? 2 * units : units);
    if (block) {
      slopes_.action_pre = take(rows, units);
      slopes_.gates = take(rows, 3 * width);
      for (int64_t i = 0; i < core.hidden.count; ++i) slopes_.hidden[i] = take(rows, width);
    } else {
      slopes_.hidden[0] = take(rows, 3 * width);
    }
    for (int64_t i = 0; i < model_.post.count; ++i) latent_.pre[i] = take(rows, model_.post.at[i].out);
    d_deter_ = take(model_.batch, width);
    d_stoch_ = take(model_.batch, model_.flat());
    masked_ = take(model_.batch, width);
    table_ = arena_.template take<T>(model_.flat() * units);
    sums_ = arena_.template take<T>(threads * wanted_.sums);
    scratch_size_ = rows * kPanel<T>;
    const int64_t least = categorical_scratch<T>(model_.classes);
    if (scratch_size_ < least) scratch_size_ = least;
    scratch_ = arena_.template take<T>(threads * scratch_size_);
  }

  // Gradients from row n of a piece on.
  Slopes<T> slopes(const Run& run) const {
    Slopes<T> x = slopes_;
    x.action_pre = view(x.action_pre, run);
    x.pre = view(x.pre, run);
    x.gates = view(x.gates, run);
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
      std::memset(d_stoch_.at(b), 0, size_t(model_.flat()) * sizeof(T));
    }
  }

  static void add(int64_t n, const T* x, T* to) {
    over<T>(n, [=](auto i) { i.store(to, i.load(to) + i.load(x)); });
  }

  void draw_backward(int64_t row, T* d_stoch, T* d_logit, T* scratch) const {
    const int64_t from = row * model_.flat();
    if (given_.d_stoch) add(model_.flat(), given_.d_stoch + from, d_stoch);
    straight_through<T>(model_.stoch, model_.classes, given_.logit + from, d_stoch,
                        given_.d_logit ? given_.d_logit + from : nullptr, model_.unimix, d_logit, scratch);
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
    if (wanted_.core.stoch.weight) sum_stoch(piece, begin);
    if (!model_.post.count) return;
    const Operand<T> embed = {given_.embed + begin * model_.embed, model_.length * model_.embed, model_.embed};
    posterior_.sum(piece, saved_.deter.from((begin + 1) * batch), embed, view(saved_.latent, run, model_.post.count, {}), latent_,
                   scratch(team));
  }

  // The gradient of the weight's rows that were looked up; each thread has variables of its own.
  void sum_stoch(const Piece& piece, int64_t begin) {
    const Share mine = share(piece.team, model_.stoch);
    const int64_t units = model_.core.units(), classes = model_.classes;
    const Rows<T> slopes = cell_.stoch_slopes(slopes_);
    for (int64_t m = 0; m < piece.rows(); ++m) {
      const int64_t t = begin + m / model_.batch, b = m % model_.batch;
      const T* const d = slopes.at(m);
      if (reset(b, t)) continue;
      if (t > 0) {
        const int64_t* const index = given_.index + at(b, t - 1) * model_.stoch;
        for (int64_t s = mine.first; s < mine.last; ++s) add(units, d, table_ + (s * classes + index[s]) * units);
      } else if (given_.stoch) {
        for (int64_t k = mine.first * classes; k < mine.last * classes; ++k) {
          const T x = given_.stoch[b * model_.flat() + k];
          T* const to = table_ + k * units;
          if (x != T(0)) over<T>(units, [=](auto i) { i.store(to, i.load(to) + x * i.load(d)); });
        }
      }
    }
  }

  void finish(const Team& team, Share rows) {
    for (int64_t b = rows.first; b < rows.last; ++b) {
      const int64_t width = model_.width(), flat = model_.flat();
      if (wanted_.deter) std::memcpy(wanted_.deter + b * width, d_deter_.at(b), size_t(width) * sizeof(T));
      if (wanted_.stoch) std::memcpy(wanted_.stoch + b * flat, d_stoch_.at(b), size_t(flat) * sizeof(T));
    }
    if (T* const to = wanted_.core.stoch.weight) {
      const Share mine = share(team, model_.core.units());
      const int64_t in = model_.core.stoch.in, units = model_.core.units();
      for (int64_t n = mine.first; n < mine.last; ++n) {
        for (int64_t k = 0; k < model_.flat(); ++k) to[n * in + k] = table_[k * units + n];
      }
    }
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
  int64_t steps_;  // of a piece
  Slopes<T> slopes_;
  LatentSlopes<T> latent_;
  Rows<T> d_deter_, d_stoch_, masked_;
  T *table_, *sums_, *scratch_;
  int64_t scratch_size_;
};

}  // namespace

// pointers: parameters, stoch, action, embed, reset, index, logit, saved, d_deter, d_stoch, d_logit
//           | d_parameters, d_deter, d_stoch, d_action, d_embed (null where not wanted)
// sizes: the model's, then elements of saved
template <typename T>
void observe_backward(Call& call) {
  const Model<T> model = read_model<T>(call);
  Given<T> given;
  given.stoch = call.pointer<const T>();
  given.action = call.pointer<const T>();
  given.embed = call.pointer<const T>();
  given.reset = call.pointer<const bool>();
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
  if (model.core.kind == CoreKind::block_gru) {
    BackwardScan<T, BlockCellBackward> scan(model, given, wanted, saved, threads);
    parallel(threads, [&](Team& team) { scan.run(team); });
  } else {
    BackwardScan<T, LayerNormCellBackward> scan(model, given, wanted, saved, threads);
    parallel(threads, [&](Team& team) { scan.run(team); });
  }
}

FD_INSTANTIATE(observe_backward)

}  // namespace fastdream::cpu::FD_ISA
