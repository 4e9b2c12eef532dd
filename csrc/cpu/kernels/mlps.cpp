#include "cpu/dense.h"
#include "cpu/instantiate.h"
#include "cpu/onehots.h"

// Chains of dense layers on the same x [rows, in - hot] and, beside it, one-hots [rows, hot]: blocks of rows run through all
// layers of one net after the other while they are in the cache, so that x comes from memory once for all nets.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kBlock = 64;  // rows that run through the layers together

// Where a net's results go.
template <typename T>
struct Results {
  T* y = nullptr;     // [rows, out]
  T* kept = nullptr;  // z [rows, out] of every layer but a linear last one, one after the other; null: not kept
};

template <typename T>
int64_t kept_width(const Mlp<T>& net) {
  int64_t width = 0;
  for (int i = 0; i < net.count; ++i) width += i + 1 == net.count && net[i].plain() ? 0 : net[i].out;
  return width;
}

// Rows row ... row + height - 1 of all `rows` through one net. `found`: their one-hots; buffers [2][kBlock, ld].
template <typename T>
void run_block(const Mlp<T>& net, Results<T> to, int64_t rows, int64_t row, int64_t height, const T* x,
               const Entries<T>& found, T* buffers, int64_t ld) {
  int64_t input_row = net.in() - net[0].hot;
  const T* input = x + row * input_row;
  T* keep = to.kept;
  for (int i = 0; i < net.count; ++i) {
    const Dense<T>& layer = net[i];
    const bool last = i + 1 == net.count;
    T* y = last ? to.y + row * layer.out : buffers + (i % 2) * kBlock * ld;
    const int64_t y_row = last ? layer.out : ld;
    const bool keeps = keep && !(last && layer.plain());
    T* z = keeps ? keep + row * layer.out : y;
    const int64_t z_row = keeps ? layer.out : y_row;
    layer.product(height, input, input_row, z, z_row);
    if (layer.hot) found.multiply(height, layer.of_hot(), z, z_row);
    if (z != y || !layer.plain()) norm_act_rows(layer.f, height, layer.out, z, z_row, y, y_row);
    if (keep) keep += rows * layer.out;
    input = y;
    input_row = y_row;
  }
}

}  // namespace

// pointers: x, hot (null if hot is 0), nets (read_mlps) | y of every net, kept of every net: what mlps_backward needs
// sizes: rows, nets;  scalars: nets
template <typename T>
void mlps(Call& call) {
  const T* x = call.pointer<const T>();
  const T* hot = call.pointer<const T>();
  const int64_t rows = call.size();
  Mlps<T> nets = read_mlps<T>(call);
  Results<T> results[kMaxNets];
  for (int n = 0; n < nets.count; ++n) results[n].y = call.pointer<T>();
  for (int n = 0; n < nets.count; ++n) results[n].kept = call.pointer<T>();
  call.done();
  for (int n = 0; n < nets.count; ++n) {
    if (T* const kept = results[n].kept) prefer_large_pages(kept, size_t(rows * kept_width(nets[n])) * sizeof(T));
  }
  const int threads = threads_for_rows(call.threads, rows, nets.weights());
  const int64_t ld = spaced(nets.widest());
  Arena arena;
  T* scratch = nullptr;  // [threads][2][kBlock, ld]
  Entries<T> entries;    // [threads][kBlock]
  entries.width = nets[0][0].hot;
  for (int pass = 0; pass < 2; ++pass) {
    for (int n = 0; n < nets.count; ++n) lay_out(nets[n], arena);
    scratch = arena.take<T>(threads * 2 * kBlock * ld);
    entries.lay_out(arena, threads * kBlock);
    if (pass == 0) arena.allocate();
  }
  parallel(threads, [&](Team& team) {
    for (int n = 0; n < nets.count; ++n) pack_weights(nets[n], team);
    team.barrier();
    const Share mine = share(team, rows, kMaxRows);
    const Entries<T> found = entries.from(team.rank * kBlock);
    T* const buffers = scratch + team.rank * 2 * kBlock * ld;
    for (int64_t row = mine.first; row < mine.last; row += kBlock) {
      const int64_t height = mine.last - row < kBlock ? mine.last - row : kBlock;
      if (found.width) found.find(height, hot + row * found.width);
      for (int n = 0; n < nets.count; ++n) run_block(nets[n], results[n], rows, row, height, x, found, buffers, ld);
    }
  });
}

FD_INSTANTIATE(mlps)

}  // namespace fastdream::cpu::FD_ISA
