#include "cpu/dense.h"
#include "cpu/instantiate.h"
#include "cpu/onehots.h"

// Gradients of `mlp`. A slab of rows at a time: first every thread takes some of its rows from the last layer to the
// first, then the threads share the panels of all weight gradients, each of which is one product over the slab's rows.
// So there is one weight gradient, not one a thread, and it does not depend on their number.
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

template <typename T>
struct Backward {
  Mlp<T> net;  // its panels are of weight [out, in - hot] and [out, hot], for the gradients of the inputs
  int64_t rows = 0;
  const T* x = nullptr;
  const T* hot = nullptr;
  const T* grad = nullptr;
  T* d_x = nullptr;
  T* d_hot = nullptr;
  Gradients<T> gradients[kMaxLayers];
  Slab<T> slab[kMaxLayers];
  int lowest = 0;          // layer whose gradients are wanted
  T* sums = nullptr;       // [threads][2: all slabs, one slab][bias, scale, shift of every layer]
  T* panels = nullptr;     // [threads][kSlab, kPanel]: part of a layer's input
  int64_t vectors = 0;     // 3 * sum of out
  Entries<T> entries;      // of the slab's one-hots
  T* hot_sums = nullptr;   // [2: all, of the last few slabs][hot, ld]: the transposed gradient of their weights

  Packed<T> inputs(int i) const { return {net[i].panels, net[i].out, net[i].in - net[i].hot}; }
  Packed<T> hot_inputs() const { return {net[0].hot_panels, net[0].out, net[0].hot}; }

  void pack_weights(const Team& team) const {
    for (int i = d_x ? 0 : lowest + 1; i < net.count; ++i) {
      const Packed<T> to = inputs(i);
      const Share mine = share(team, to.panels());
      pack_panels(net[i].panels, net[i].weight, net[i].in, 1, to.depth, to.columns, mine.first, mine.last);
    }
    if (!d_hot) return;
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

  // Rows first ... last - 1 of the slab that starts at `start`.
  void rows_of_slab(int64_t start, int64_t first, int64_t last, T* part) const {
    const int64_t height = last - first;
    for (int64_t n = 0; n < vectors; ++n) part[n] = T(0);
    if (height <= 0) return;
    T* at = part + vectors;
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
        if (d_x) gemm(height, z, z_row, inputs(0), d_x + row * rest, rest);
        if (d_hot) gemm(height, z, z_row, hot_inputs(), d_hot + row * layer.hot, layer.hot);
        if (hot && wanted.weight) entries.from(first).find(height, hot + row * layer.hot);
      }
    }
  }

  // This thread's panels of the weight gradients over `height` rows of the slab that starts at `start`.
  void weights(int64_t start, int64_t height, const Team& team, T* panel) const {
    int64_t total = 0, done = 0;
    for (int i = lowest; i < net.count; ++i) {
      if (gradients[i].weight) total += div_up(net[i].in - net[i].hot, kPanel<T>) * net[i].out;
    }
    for (int i = lowest; i < net.count; ++i) {
      if (!gradients[i].weight) continue;
      const int64_t in = net[i].in - net[i].hot, out = net[i].out, input_row = i ? spaced(in) : in;
      const T* input = i ? slab[i - 1].y : x + start * in;
      int64_t z_row;
      const T* z = d_z(i, start, z_row);
      for (int64_t n = 0; n < in; n += kPanel<T>, done += out) {
        if (done * team.size / total != team.rank) continue;
        const Packed<T> packed = pack(panel, input + n, input_row, 1, height, in - n < kPanel<T> ? in - n : kPanel<T>);
        gemm_panels(out, z, 1, z_row, packed, gradients[i].weight + n, net[i].in, start ? Start::sum : Start::zero,
                    static_cast<const T*>(nullptr), 0, 1);
      }
    }
  }

  // This thread's columns of what the one-hots pass on to their weights.
  void hot_weights(int64_t start, int64_t height, const Team& team) const {
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
};

}  // namespace

// pointers: x, hot, layers, grad, kept | d_x, d_hot, then d_weight, d_bias, d_scale, d_shift of every layer; null where not wanted
// sizes: rows, layers;  scalars: layers
template <typename T>
void mlp_backward(Call& call) {
  Backward<T> job;
  Mlp<T>& net = job.net;
  job.x = call.pointer<const T>();
  job.hot = call.pointer<const T>();
  job.rows = call.size();
  net = read_mlp<T>(call);
  job.grad = call.pointer<const T>();
  const T* kept = call.pointer<const T>();
  job.d_x = call.pointer<T>();
  job.d_hot = call.pointer<T>();
  job.lowest = job.d_x || job.d_hot ? 0 : net.count;
  for (int i = 0; i < net.count; ++i) {
    Gradients<T>& wanted = job.gradients[i];
    wanted.weight = call.pointer<T>();
    for (T*& vector : wanted.vectors) vector = call.pointer<T>();
    if (wanted.any() && i < job.lowest) job.lowest = i;
    if (i + 1 < net.count || !net[i].plain()) job.slab[i].kept = kept;
    kept += job.rows * net[i].out;
    job.vectors += 3 * net[i].out;
  }
  call.done();
  const int threads = threads_for_rows(call.threads, job.rows, net.weights());
  Arena arena;
  job.entries.width = net[0].hot;
  for (int pass = 0; pass < 2; ++pass) {
    for (int i = 0; i < net.count; ++i) {
      Slab<T>& slab = job.slab[i];
      slab.d_z = arena.take<T>(kSlab * spaced(net[i].out));
      slab.y = arena.take<T>(kSlab * spaced(net[i].out));
      slab.stats = arena.take<Stats<T>>(kSlab);
      net[i].panels = arena.take<T>(packed_size<T>(net[i].out, net[i].in - net[i].hot));
      net[i].hot_panels = arena.take<T>(packed_size<T>(net[i].out, net[i].hot));
    }
    job.entries.lay_out(arena, kSlab);
    job.hot_sums = arena.take<T>(2 * net[0].hot * spaced(net[0].out));
    job.sums = arena.take<T>(threads * 2 * job.vectors);
    job.panels = arena.take<T>(threads * kSlab * kPanel<T>);
    if (pass == 0) arena.allocate();
  }
  parallel(threads, [&](Team& team) {
    T *all = job.sums + team.rank * 2 * job.vectors, *part = all + job.vectors;
    for (int64_t n = 0; n < job.vectors; ++n) all[n] = T(0);
    job.pack_weights(team);
    team.barrier();
    // No rows are one slab of none, which makes the weight gradients zero.
    for (int64_t start = 0; start == 0 || start < job.rows; start += kSlab) {
      const int64_t height = job.rows - start < kSlab ? job.rows - start : kSlab;
      const Share mine = share(team, height, kMaxRows);
      job.rows_of_slab(start, mine.first, mine.last, part);
      for (int64_t n = 0; n < job.vectors; ++n) all[n] += part[n];
      team.barrier();
      job.weights(start, height, team, job.panels + team.rank * kSlab * kPanel<T>);
      if (net[0].hot && job.gradients[0].weight) job.hot_weights(start, height, team);
      team.barrier();
    }
    if (team.rank > 0) return;
    int64_t at = 0;
    for (int i = 0; i < net.count; ++i) {
      for (T* vector : job.gradients[i].vectors) {
        for (int64_t n = 0; vector && n < net[i].out; ++n) {
          vector[n] = T(0);
          for (int thread = 0; thread < team.size; ++thread) vector[n] += job.sums[thread * 2 * job.vectors + at + n];
        }
        at += net[i].out;
      }
    }
  });
}

FD_INSTANTIATE(mlp_backward)

}  // namespace fastdream::cpu::FD_ISA
