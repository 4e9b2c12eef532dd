#include "cpu/dense.h"
#include "cpu/instantiate.h"
#include "cpu/onehots.h"

// A chain of dense layers on x [rows, in - hot] and, beside it, one-hots [rows, hot]: blocks of rows run through all layers while they are in the cache.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kBlock = 64;  // rows that run through the layers together

}  // namespace

// pointers: x, hot (null if hot is 0), layers (read_mlp) | y, kept;  sizes: rows, layers;  scalars: layers
// kept: what mlp_backward needs, z [rows, out] of every layer but a linear last one, one after the other; null: not kept
template <typename T>
void mlp(Call& call) {
  const T* x = call.pointer<const T>();
  const T* hot = call.pointer<const T>();
  const int64_t rows = call.size();
  Mlp<T> net = read_mlp<T>(call);
  T* y = call.pointer<T>();
  T* kept = call.pointer<T>();
  call.done();
  const int threads = threads_for_rows(call.threads, rows, net.weights());
  const int64_t ld = spaced(net.widest());
  Arena arena;
  T* scratch = nullptr;  // [threads][2][kBlock, ld]
  Entries<T> entries;    // [threads][kBlock]
  entries.width = net[0].hot;
  for (int pass = 0; pass < 2; ++pass) {
    lay_out(net, arena);
    scratch = arena.take<T>(threads * 2 * kBlock * ld);
    entries.lay_out(arena, threads * kBlock);
    if (pass == 0) arena.allocate();
  }
  parallel(threads, [&](Team& team) {
    pack_weights(net, team);
    team.barrier();
    const Share mine = share(team, rows, kMaxRows);
    const Entries<T> found = entries.from(team.rank * kBlock);
    T* const buffers = scratch + team.rank * 2 * kBlock * ld;
    for (int64_t row = mine.first; row < mine.last; row += kBlock) {
      const int64_t height = mine.last - row < kBlock ? mine.last - row : kBlock;
      int64_t input_row = net.in() - net[0].hot;
      const T* input = x + row * input_row;
      T* keep = kept;
      for (int i = 0; i < net.count; ++i) {
        const Dense<T>& layer = net[i];
        const bool last = i + 1 == net.count;
        T* to = last ? y + row * layer.out : buffers + (i % 2) * kBlock * ld;
        const int64_t to_row = last ? layer.out : ld;
        const bool keeps = kept && !(last && layer.plain());
        T* z = keeps ? keep + row * layer.out : to;
        const int64_t z_row = keeps ? layer.out : to_row;
        layer.product(height, input, input_row, z, z_row);
        if (layer.hot) {
          found.find(height, hot + row * layer.hot);
          found.multiply(height, layer.of_hot(), z, z_row);
        }
        if (z != to || !layer.plain()) norm_act_rows(layer.f, height, layer.out, z, z_row, to, to_row);
        keep += rows * layer.out;
        input = to;
        input_row = to_row;
      }
    }
  });
}

FD_INSTANTIATE(mlp)

}  // namespace fastdream::cpu::FD_ISA
