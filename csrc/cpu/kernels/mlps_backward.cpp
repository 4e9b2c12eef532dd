#include "cpu/dense.h"
#include "cpu/instantiate.h"
#include "cpu/onehots.h"

// Gradients of `mlps`. A slab of rows at a time: for each net every thread takes some of its rows from the last layer to
// the first, then the threads share the panels of all weight gradients, each of which is one product over the slab's rows.
// So there is one weight gradient, not one a thread, and it does not depend on their number. The first layers come last:
// they share their input, each panel of which is packed once for all nets.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kSlab = 192;
constexpr int64_t kSlabs = 4;  // whose sums of the one-hots' gradients are taken together: keeps rounding small

template <typename T>
struct Gradients {  // of one layer; null where not wanted
  T* weight = nullptr;
  T* vectors[3] = {};  // bias, scale, shift
  bool any() const { return weight || vectors[0] || vectors[1] || vectors[2]; }
};

// What a slab leaves behind of one layer.
template <typename T>
struct Slab {
  T* d_z = nullptr;     // [rows, ld]
  T* y = nullptr;       // [rows, ld], not of the last layer
  Stats<T>* stats = nullptr;
  const T* kept = nullptr;  // z [all rows, out]; null where nothing was kept
};

// Columns n ... n + kPanel - 1 of x [height, width], packed.
template <typename T>
Packed<T> columns_of(const T* x, int64_t x_row, int64_t width, int64_t n, int64_t height, T* panel) {
  return pack(panel, x + n, x_row, 1, height, width - n < kPanel<T> ? width - n : kPanel<T>);
}

template <typename T>
struct Net {  // and all that belongs to its gradients
  Mlp<T> net;  // its panels are of weight [out, in - hot] and [out, hot], for the gradients of the inputs
  const T* grad = nullptr;
  Gradients<T> gradients[kMaxLayers];
  Slab<T> slab[kMaxLayers];
  int lowest = 0;         // layer whose gradients are wanted
  int64_t vectors = 0;    // 3 * sum of out
  T* sums = nullptr;      // [threads][2: all slabs, one slab][bias, scale, shift of every layer]
  T* hot_sums = nullptr;  // [2: all, of the last few slabs][hot, ld]: the transposed gradient of their weights

  Packed<T> inputs(int i) const { return {net[i].panels, net[i].out, net[i].in - net[i].hot}; }
  Packed<T> hot_inputs() const { return {net[0].hot_panels, net[0].out, net[0].hot}; }

  void lay_out(Arena& arena, int threads) {
    for (int i = 0; i < net.count; ++i) {
      slab[i].d_z = arena.take<T>(kSlab * spaced(net[i].out));
      slab[i].y = arena.take<T>(kSlab * spaced(net[i].out));
      slab[i].stats = arena.take<Stats<T>>(kSlab);
      net[i].panels = arena.take<T>(packed_size<T>(net[i].out, net[i].in - net[i].hot));
      net[i].hot_panels = arena.take<T>(packed_size<T>(net[i].out, net[i].hot));
    }
    hot_sums = arena.take<T>(2 * net[0].hot * spaced(net[0].out));
    sums = arena.take<T>(threads * 2 * vectors);
  }

  void pack_weights(const Team& team, bool of_x, bool of_hot) const {
    for (int i = of_x ? 0 : lowest + 1; i < net.count; ++i) {
      const Packed<T> to = inputs(i);
      const Share mine = share(team, to.panels());
      pack_panels(net[i].panels, net[i].weight, net[i].in, 1, to.depth, to.columns, mine.first, mine.last);
    }
    if (!of_hot) return;
    const Share mine = share(team, hot_inputs().panels());
    pack_panels(net[0].hot_panels, net[0].weight + net[0].in - net[0].hot, net[0].in, 1, net[0].out, net[0].hot,
                mine.first, mine.last);
  }

  // Gradient of layer i's z, as the slab from `start` on left it, and how far its rows are apart.
  const T* d_z(int i, int64_t start, int64_t& row) const {
    const bool given = i + 1 == net.count && net[i].plain();
    row = given ? net[i].out : spaced(net[i].out);
    return given ? grad + start * net[i].out : slab[i].d_z;
  }

  // Rows first ... last - 1 of the slab that starts at `start`, added to this thread's sums. Those of the inputs' gradients
  // d_x and d_hot, null where not wanted, start from zero or are added to.
  void rows_of_slab(int64_t start, int64_t first, int64_t last, int rank, T* d_x, T* d_hot, Start begin) const {
    const int64_t height = last - first;
    T *all = sums + rank * 2 * vectors, *part = all + vectors, *at = part + vectors;
    for (int64_t n = 0; n < vectors; ++n) part[n] = T(0);
    if (height <= 0) return;
    for (int i = net.count - 1; i >= lowest; --i) {
      const Dense<T>& layer = net[i];
      const Gradients<T>& wanted = gradients[i];
      const int64_t ld = spaced(layer.out), row = start + first;
      at -= 3 * layer.out;
      if (!layer.plain()) {
        const bool top = i + 1 == net.count;
        T* to = slab[i].d_z + first * ld;
        norm_act_rows_backward(layer.f, height, layer.out, slab[i].kept + row * layer.out, layer.out,
                               top ? grad + row * layer.out : to, top ? layer.out : ld, to, ld,
                               wanted.vectors[1] ? at + layer.out : nullptr,
                               wanted.vectors[2] ? at + 2 * layer.out : nullptr,
                               top ? nullptr : slab[i].stats + first);
      }
      int64_t z_row;
      const T* z = d_z(i, start, z_row) + first * z_row;
      if (wanted.vectors[0]) {
        for (int64_t m = 0; m < height; ++m) {
          over<T>(layer.out, [&](auto n) { n.store(at, n.load(at) + n.load(z + m * z_row)); });
        }
      }
      if (i > 0 && (wanted.weight || i > lowest)) {
        const Dense<T>& before = net[i - 1];
        norm_act_rows(before.f, height, before.out, slab[i - 1].kept + row * before.out, before.out,
                      slab[i - 1].y + first * spaced(before.out), spaced(before.out), slab[i - 1].stats + first);
      }
      if (i > lowest) {
        gemm(height, z, z_row, inputs(i), slab[i - 1].d_z + first * spaced(layer.in), spaced(layer.in));
      } else if (i == 0) {
        const int64_t rest = layer.in - layer.hot;
        if (d_x) gemm(height, z, z_row, inputs(0), d_x + row * rest, rest, begin);
        if (d_hot) gemm(height, z, z_row, hot_inputs(), d_hot + row * layer.hot, layer.hot, begin);
      }
    }
    for (int64_t n = 0; n < vectors; ++n) all[n] += part[n];
  }

  // The gradient of layer i's weights from packed columns `n` on of its input.
  void weight_panel(int i, int64_t start, int64_t n, Packed<T> input) const {
    int64_t z_row;
    const T* z = d_z(i, start, z_row);
    gemm_panels(net[i].out, z, 1, z_row, input, gradients[i].weight + n, net[i].in, start ? Start::sum : Start::zero,
                static_cast<const T*>(nullptr), 0, 1);
  }

  // This thread's panels of the weight gradients of all layers but the first over `height` rows of a slab.
  void weights(int64_t start, int64_t height, const Team& team, T* panel) const {
    int64_t total = 0, done = 0;
    for (int i = lowest < 1 ? 1 : lowest; i < net.count; ++i) {
      if (gradients[i].weight) total += div_up(net[i].in, kPanel<T>) * net[i].out;
    }
    for (int i = lowest < 1 ? 1 : lowest; i < net.count; ++i) {
      if (!gradients[i].weight) continue;
      for (int64_t n = 0; n < net[i].in; n += kPanel<T>, done += net[i].out) {
        if (done * team.size / total != team.rank) continue;
        weight_panel(i, start, n, columns_of(slab[i - 1].y, spaced(net[i].in), net[i].in, n, height, panel));
      }
    }
  }

  // This thread's columns of what the one-hots pass on to their weights, of `rows` rows in all.
  void hot_weights(int64_t start, int64_t height, int64_t rows, const Entries<T>& entries, const Team& team) const {
    const int64_t out = net[0].out, ld = spaced(out), number = start / kSlab;
    const Share mine = share(team, out, kPanel<T>);
    T *all = hot_sums, *part = hot_sums + net[0].hot * ld;
    int64_t z_row;
    const T* z = d_z(0, start, z_row);
    const bool last = start + height >= rows;
    for (int64_t k = 0; k < net[0].hot && number % kSlabs == 0; ++k) {
      for (int64_t n = mine.first; n < mine.last; ++n) part[k * ld + n] = T(0);
    }
    entries.multiply_transposed(height, z, z_row, mine, part, ld);
    if (number % kSlabs + 1 < kSlabs && !last) return;
    for (int64_t k = 0; k < net[0].hot; ++k) {
      for (int64_t n = mine.first; n < mine.last; ++n) {
        T& sum = all[k * ld + n];
        sum = number < kSlabs ? part[k * ld + n] : sum + part[k * ld + n];
        if (last) gradients[0].weight[n * net[0].in + net[0].in - net[0].hot + k] = sum;
      }
    }
  }

  // The vectors' gradients, from the sums of all threads.
  void collect(int threads) const {
    int64_t at = 0;
    for (int i = 0; i < net.count; ++i) {
      for (T* vector : gradients[i].vectors) {
        for (int64_t n = 0; vector && n < net[i].out; ++n) {
          vector[n] = T(0);
          for (int thread = 0; thread < threads; ++thread) vector[n] += sums[thread * 2 * vectors + at + n];
        }
        at += net[i].out;
      }
    }
  }
};

template <typename T>
struct Backward {
  int count = 0;
  Net<T> nets[kMaxNets];
  int64_t rows = 0, in = 0, hot_width = 0;
  const T* x = nullptr;    // [rows, in]
  const T* hot = nullptr;  // [rows, hot_width]
  T* d_x = nullptr;
  T* d_hot = nullptr;
  T* panels = nullptr;  // [threads][kSlab, kPanel]: part of a layer's input
  Entries<T> entries;   // of the slab's one-hots
  bool firsts = false;  // whether the gradient of any first layer's weights is wanted

  void lay_out(Arena& arena, int threads) {
    for (int n = 0; n < count; ++n) nets[n].lay_out(arena, threads);
    entries.lay_out(arena, kSlab);
    panels = arena.take<T>(threads * kSlab * kPanel<T>);
  }

  // `height` rows from `start` on.
  void slab(int64_t start, int64_t height, Team& team) const {
    const Share mine = share(team, height, kMaxRows);
    T* const panel = panels + team.rank * kSlab * kPanel<T>;
    if (hot_width && firsts && mine.last > mine.first) {
      entries.from(mine.first).find(mine.last - mine.first, hot + (start + mine.first) * hot_width);
    }
    for (int n = 0; n < count; ++n) {
      nets[n].rows_of_slab(start, mine.first, mine.last, team.rank, d_x, d_hot, n ? Start::sum : Start::zero);
      team.barrier();
      nets[n].weights(start, height, team, panel);
    }
    if (firsts) first_weights(start, height, team, panel);
    team.barrier();
  }

  void first_weights(int64_t start, int64_t height, const Team& team, T* panel) const {
    const Share mine = share(team, div_up(in, kPanel<T>));
    for (int64_t k = mine.first; k < mine.last; ++k) {
      const Packed<T> columns = columns_of(x + start * in, in, in, k * kPanel<T>, height, panel);
      for (int n = 0; n < count; ++n) {
        if (nets[n].gradients[0].weight) nets[n].weight_panel(0, start, k * kPanel<T>, columns);
      }
    }
    for (int n = 0; hot_width && n < count; ++n) {
      if (nets[n].gradients[0].weight) nets[n].hot_weights(start, height, rows, entries, team);
    }
  }
};

}  // namespace

// pointers: x, hot, nets, grad of every net, kept of every net | d_x, d_hot, then d_weight, d_bias, d_scale, d_shift of every
// layer; null where not wanted.  sizes: rows, nets;  scalars: nets
template <typename T>
void mlps_backward(Call& call) {
  Backward<T> job;
  job.x = call.pointer<const T>();
  job.hot = call.pointer<const T>();
  job.rows = call.size();
  const Mlps<T> nets = read_mlps<T>(call);
  job.count = nets.count;
  job.hot_width = job.entries.width = nets[0][0].hot;
  job.in = nets[0].in() - job.hot_width;
  for (int n = 0; n < job.count; ++n) job.nets[n].grad = call.pointer<const T>();
  const T* kept[kMaxNets];
  for (int n = 0; n < job.count; ++n) kept[n] = call.pointer<const T>();
  job.d_x = call.pointer<T>();
  job.d_hot = call.pointer<T>();
  for (int n = 0; n < job.count; ++n) {
    Net<T>& to = job.nets[n];
    to.net = nets[n];
    to.lowest = job.d_x || job.d_hot ? 0 : to.net.count;
    for (int i = 0; i < to.net.count; ++i) {
      Gradients<T>& wanted = to.gradients[i];
      wanted.weight = call.pointer<T>();
      for (T*& vector : wanted.vectors) vector = call.pointer<T>();
      if (wanted.any() && i < to.lowest) to.lowest = i;
      if (i + 1 < to.net.count || !to.net[i].plain()) to.slab[i].kept = kept[n];
      kept[n] += job.rows * to.net[i].out;
      to.vectors += 3 * to.net[i].out;
    }
    job.firsts |= to.gradients[0].weight != nullptr;
  }
  call.done();
  const int threads = threads_for_rows(call.threads, job.rows, nets.weights());
  Arena arena;
  for (int pass = 0; pass < 2; ++pass) {
    job.lay_out(arena, threads);
    if (pass == 0) arena.allocate();
  }
  parallel(threads, [&](Team& team) {
    for (int n = 0; n < job.count; ++n) {
      const Net<T>& net = job.nets[n];
      T* const sums = net.sums + team.rank * 2 * net.vectors;
      for (int64_t i = 0; i < net.vectors; ++i) sums[i] = T(0);
      net.pack_weights(team, job.d_x, job.d_hot);
    }
    team.barrier();
    // No rows are one slab of none, which makes the weight gradients zero.
    for (int64_t start = 0; start == 0 || start < job.rows; start += kSlab) {
      job.slab(start, job.rows - start < kSlab ? job.rows - start : kSlab, team);
    }
    for (int n = 0; team.rank == 0 && n < job.count; ++n) job.nets[n].collect(team.size);
  });
}

FD_INSTANTIATE(mlps_backward)

}  // namespace fastdream::cpu::FD_ISA
