#include "cpu/instantiate.h"
#include "cpu/team.h"

// Windows of a ring of rows of bytes.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int64_t kGrain = 1 << 18;  // bytes below which a second thread costs more than it saves

}  // namespace

// out[b, l] = storage[(start[b] + l) mod rows]
// pointers: start [batch], storage, out;  sizes: batch, length, rows of the storage, bytes of a row
template <typename T>
void gather_sequences(Call& call) {
  const int64_t* start = call.pointer<const int64_t>();
  const char* storage = call.pointer<const char>();
  char* out = call.pointer<char>();
  const int64_t batch = call.size(), length = call.size(), rows = call.size(), bytes = call.size();
  call.done();
  if (bytes == 0) return;  // rows of nothing may lie nowhere, from where not even nothing may be copied
  parallel(batch * length * bytes < 2 * kGrain ? 1 : call.threads, [=](Team& team) {
    const Share mine = share(team, batch * length);
    for (int64_t to = mine.first; to < mine.last;) {
      const int64_t offset = to % length, turned = (start[to / length] + offset) % rows;
      const int64_t from = turned < 0 ? turned + rows : turned;
      // As many rows as lie next to each other, in the window, in the ring and in this thread's share.
      int64_t n = length - offset;
      n = n < rows - from ? n : rows - from;
      n = n < mine.last - to ? n : mine.last - to;
      __builtin_memcpy(out + to * bytes, storage + from * bytes, size_t(n * bytes));
      to += n;
    }
  });
}

FD_INSTANTIATE(gather_sequences)

}  // namespace fastdream::cpu::FD_ISA
