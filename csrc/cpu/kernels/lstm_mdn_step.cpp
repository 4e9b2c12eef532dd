#include "cpu/categorical.h"
#include "cpu/instantiate.h"
#include "cpu/params.h"

// `lstm_mdn_step` of fastdream/ops/reference/mdn.py. Each thread takes some rows at a time through the whole step, so that
// their gates and mixtures never leave the cache.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kBlock = 64;    // rows at a time
constexpr int64_t kFewRows = 48;  // rows below which weights are used as they lie

template <typename T>
struct Inputs {
  const T *hidden, *cell, *latent, *action;  // [N, D], [N, D], [N, Z], [N, A]
  const bool* restart;                       // [N]
  const T *uniform, *normal;                 // [N, Z]
};

template <typename T>
struct Outputs {
  T *hidden, *cell, *latent, *ends;  // [N, D], [N, D], [N, Z], [N]
};

struct Sizes {
  int64_t rows, latent, action, flag, mixtures;  // flag: 1 if restart is the last input
};

// Memory of one thread.
template <typename T>
struct Workspace {
  Rows<T> x, hidden, gates, out;  // [Z + A + flag], [D], [4D], [end + 3 Z K]
  T *logit, *scratch;             // [Z K] of one row
  int64_t* index;                 // [Z] likewise
};

template <typename T>
class Memory {
 public:
  Memory(const Sizes& sizes, const Inputs<T>& in, const Outputs<T>& out, const Layer<T>& of_input, const Layer<T>& of_hidden,
         const Layer<T>& to_out, T temperature, int64_t threads)
      : n_(sizes), in_(in), out_(out), of_input_(of_input), to_out_(to_out), temperature_(temperature),
        input_(product_of(of_input)), recurrent_(product_of(of_hidden)), output_(product_of(to_out)),
        packed_(sizes.rows >= kFewRows) {
    const int64_t share = div_up(sizes.rows, threads);
    height_ = share < kBlock ? share : kBlock;
    for (int pass = 0; pass < 2; ++pass) {
      if (packed_) products([&](Product<T>& product) { product.lay_out(arena_); });
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
      products([&](Product<T>& product) { product.pack(team); });
      team.barrier();
    }
    const Share mine = share(team, n_.rows);
    const int64_t rows = mine.last - mine.first, blocks = div_up(rows, height_);
    for (int64_t i = 0; i < blocks; ++i) {
      step(mine.first + i * rows / blocks, mine.first + (i + 1) * rows / blocks, spaces_[team.rank]);
    }
  }

 private:
  int64_t width() const { return of_input_.out / 4; }
  int64_t drawn() const { return 3 * n_.latent * n_.mixtures; }

  template <typename Each>
  void products(Each each) {
    Product<T>* const all[] = {&input_, &recurrent_, &output_};
    for (Product<T>* product : all) each(*product);
  }

  Workspace<T> lay_out_rows(int64_t rows) {
    Workspace<T> space;
    space.x = take_rows<T>(arena_, rows, of_input_.in);
    space.hidden = take_rows<T>(arena_, rows, width());
    space.gates = take_rows<T>(arena_, rows, 4 * width());
    space.out = take_rows<T>(arena_, rows, to_out_.out);
    space.logit = arena_.template take<T>(n_.latent * n_.mixtures);
    space.scratch = arena_.template take<T>(categorical_scratch<T>(n_.mixtures));
    space.index = arena_.template take<int64_t>(n_.latent);
    return space;
  }

  // Rows first ... last - 1.
  void step(int64_t first, int64_t last, const Workspace<T>& space) const {
    const int64_t rows = last - first;
    for (int64_t m = 0; m < rows; ++m) enter(first + m, space.x.at(m), space.hidden.at(m));
    input_.multiply(rows, space.x, space.gates, start_of(of_input_.bias), of_input_.bias);
    recurrent_.multiply(rows, space.hidden, space.gates, Start::sum);
    for (int64_t m = 0; m < rows; ++m) remember(first + m, space.gates.at(m), space.hidden.at(m));
    output_.multiply(rows, space.hidden, space.out, start_of(to_out_.bias), to_out_.bias);
    for (int64_t m = 0; m < rows; ++m) draw(first + m, space.out.at(m), space);
  }

  void enter(int64_t row, T* x, T* hidden) const {
    std::memcpy(x, in_.latent + row * n_.latent, size_t(n_.latent) * sizeof(T));
    std::memcpy(x + n_.latent, in_.action + row * n_.action, size_t(n_.action) * sizeof(T));
    if (n_.flag) x[n_.latent + n_.action] = T(in_.restart[row]);
    const size_t bytes = size_t(width()) * sizeof(T);
    in_.restart[row] ? std::memset(hidden, 0, bytes) : std::memcpy(hidden, in_.hidden + row * width(), bytes);
  }

  // From the gates in | cand | forget | out to the states, of which `hidden` is a copy.
  void remember(int64_t row, const T* gates, T* hidden) const {
    const int64_t n = width(), from = row * n;
    const bool restart = in_.restart[row];
    over<T>(n, [&](auto at) {
      Vec<T> cell = sigmoid(at.load(gates)) * tanh(at.load(gates + n));
      if (!restart) cell += sigmoid(at.load(gates + 2 * n) + T(1)) * at.load(in_.cell + from);
      const Vec<T> shown = sigmoid(at.load(gates + 3 * n)) * tanh(cell);
      at.store(out_.cell + from, cell);
      at.store(out_.hidden + from, shown);
      at.store(hidden, shown);
    });
  }

  // A latent from its mixtures, each of K logits, K means and K logarithms of standard deviations.
  void draw(int64_t row, const T* out, const Workspace<T>& space) const {
    const int64_t count = n_.mixtures, from = row * n_.latent;
    out_.ends[row] = to_out_.out > drawn() ? out[0] : -T(__builtin_inf());
    const T* const mixtures = out + (to_out_.out - drawn());
    for (int64_t z = 0; z < n_.latent; ++z) {
      for (int64_t k = 0; k < count; ++k) space.logit[z * count + k] = mixtures[z * 3 * count + k] / temperature_;
    }
    sample_categorical(n_.latent, count, space.logit, in_.uniform + from, T(0), space.index, space.scratch);
    T* const latent = out_.latent + from;
    for (int64_t z = 0; z < n_.latent; ++z) {
      const T* const chosen = mixtures + z * 3 * count + space.index[z];
      latent[z] = chosen[count];
      space.logit[z] = chosen[2 * count];
    }
    const T spread = T(__builtin_sqrt(temperature_));
    over<T>(n_.latent, [&](auto at) {
      const Vec<T> std = exp(at.load(space.logit)) * spread;
      at.store(latent, at.load(latent) + std * at.load(in_.normal + from));
    });
  }

  const Sizes n_;
  const Inputs<T> in_;
  const Outputs<T> out_;
  const Layer<T> of_input_, to_out_;
  const T temperature_;
  Arena arena_;
  Product<T> input_, recurrent_, output_;
  const bool packed_;
  int64_t height_;  // rows at a time
  Workspace<T>* spaces_;
};

}  // namespace

// pointers: hidden, cell, latent, action, restart, uniform, normal | hidden, cell, latent, ends, then the layers of the
// input, of hidden and of the output;  sizes: rows, latent, action, 1 if restart is an input, mixtures, then the layers'
// scalars: temperature, then the layers'
template <typename T>
void lstm_mdn_step(Call& call) {
  Inputs<T> in;
  in.hidden = call.pointer<const T>();
  in.cell = call.pointer<const T>();
  in.latent = call.pointer<const T>();
  in.action = call.pointer<const T>();
  in.restart = call.pointer<const bool>();
  in.uniform = call.pointer<const T>();
  in.normal = call.pointer<const T>();
  Outputs<T> out;
  out.hidden = call.pointer<T>();
  out.cell = call.pointer<T>();
  out.latent = call.pointer<T>();
  out.ends = call.pointer<T>();
  Sizes sizes;
  sizes.rows = call.size();
  sizes.latent = call.size();
  sizes.action = call.size();
  sizes.flag = call.size();
  sizes.mixtures = call.size();
  const T temperature = T(call.scalar());
  const Layer<T> of_input = read_layer<T>(call), of_hidden = read_layer<T>(call), to_out = read_layer<T>(call);
  call.done();
  if (sizes.rows == 0) return;
  const int64_t most = div_up(sizes.rows, kMaxRows), threads = call.threads < most ? call.threads : most;
  Memory<T> memory(sizes, in, out, of_input, of_hidden, to_out, temperature, threads);
  parallel(int(threads), [&](Team& team) { memory.run(team); });
}

FD_INSTANTIATE(lstm_mdn_step)

}  // namespace fastdream::cpu::FD_ISA
