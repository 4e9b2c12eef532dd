#include "cpu/arena.h"
#include "cpu/instantiate.h"
#include "cpu/simd.h"
#include "cpu/team.h"

// Gradients of a convolution whose output goes through a 2x2 max-pool. One of four outputs has a gradient, so a quarter
// of a dense convolution's products is left: each is the kernel, or the image under it, times one number. Images are
// [images, height, width, inp], padding is SAME, the stride 1.
namespace fastdream::cpu::FD_ISA {
namespace {

constexpr int kRows = 5;                                  // of the kernel, whose sums are in registers at once
constexpr int kColumns = kVectorBytes >= 64 ? 5 : 2;      // vectors of each
constexpr int kLine = kVectorBytes >= 64 ? 10 : 6;        // vectors of the image that are in registers at once
constexpr int64_t kPlaceBytes = 16;                       // what rows of places are padded to

template <int N>
struct Count {
  static constexpr int value = N;
};
// Calls body with n, which is 1 ... N, as a constant.
template <int N, typename Body>
inline void with_count(int64_t n, Body body) {
  if constexpr (N > 1) {
    if (n < N) return with_count<N - 1>(n, body);
  }
  body(Count<N>{});
}

template <typename T>
struct Sizes {
  explicit Sizes(Call& call)
      : images(call.size()),
        height(call.size()),
        width(call.size()),
        inp(call.size()),
        out(call.size()),
        kernel(call.size()) {}
  const int64_t images, height, width, inp, out, kernel;
  const int64_t rows = height / 2, columns = width / 2;                // after the pool
  const int64_t before = (kernel - 1) / 2;                             // zeros above and to the left
  const int64_t line = (width + kernel - 1) * inp;                     // of an image with zeros around it
  const int64_t padded = (height + kernel - 1) * line + kLanes<T>;     // whole; the last vector may read beyond it
  const int64_t taps = kernel * inp;                                   // of one row of a kernel
  const int64_t vectors = (taps + kLanes<T> - 1) / kLanes<T>, stride = vectors * kLanes<T>;
  const int64_t places = (out + kPlaceBytes - 1) / kPlaceBytes * kPlaceBytes;

  // Where in a padded image the kernel begins for the output at one of the four places.
  int64_t corner(int64_t row, int64_t column, int place) const {
    return (2 * row + place / 2) * line + (2 * column + place % 2) * inp;
  }
};

// An image into the middle of zeros, or back out of it.
template <typename T>
void put(const Sizes<T>& s, const T* x, T* padded) {
  __builtin_memset(padded, 0, size_t(s.padded) * sizeof(T));
  for (int64_t y = 0; y < s.height; ++y) {
    T* line = padded + (y + s.before) * s.line + s.before * s.inp;
    __builtin_memcpy(line, x + y * s.width * s.inp, size_t(s.width * s.inp) * sizeof(T));
  }
}
template <typename T>
void take(const Sizes<T>& s, const T* padded, T* x) {
  for (int64_t y = 0; y < s.height; ++y) {
    const T* line = padded + (y + s.before) * s.line + s.before * s.inp;
    __builtin_memcpy(x + y * s.width * s.inp, line, size_t(s.width * s.inp) * sizeof(T));
  }
}

// d_weight[row][column] += sum over n outputs of d times what the image has there.
template <typename T, int Rows, int Columns>
inline void add_weights(int64_t n, const T* d, const int32_t* corner, const T* x, int64_t line, T* d_weight,
                        int64_t stride) {
  Vec<T> sums[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) sums[r][c] = load(d_weight + r * stride + c * kLanes<T>);
  }
  for (int64_t i = 0; i < n; ++i) {
    const T* at = x + corner[i];
    const Vec<T> each = splat(d[i]);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) sums[r][c] += each * load(at + r * line + c * kLanes<T>);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) store(d_weight + r * stride + c * kLanes<T>, sums[r][c]);
  }
}

// Gradients of an image in another order, each with what it belongs to.
template <typename T>
struct Sorted {
  T* d;            // [rows * columns * out], and one more that is written but not used
  int32_t* index;  // [the same]: a corner, or an output
  int32_t* first;  // [rows * columns * 4 + 1] of each pixel and place
};

// Adds one image's part to d_weight [out][kernel][stride] and d_bias [out].
template <typename T>
void weights_of_image(const Sizes<T>& s, const T* padded, const T* d_top, const uint8_t* place, T* d_weight, T* d_bias,
                      Sorted<T> room) {
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t j = 0; j < s.columns; ++j) {
      const int64_t pixel = row * s.columns + j;
      for (int64_t o = 0; o < s.out; ++o) {
        room.d[o * s.columns + j] = d_top[pixel * s.out + o];
        room.index[o * s.columns + j] = int32_t(s.corner(row, j, place[pixel * s.places + o]));
        d_bias[o] += d_top[pixel * s.out + o];
      }
    }
    for (int64_t c = 0; c < s.vectors; c += kColumns) {
      for (int64_t r = 0; r < s.kernel;) {
        const bool many = s.kernel - r >= kRows;
        with_count<kColumns>(s.vectors - c, [&](auto columns) {
          for (int64_t o = 0; o < s.out; ++o) {
            constexpr int kWide = decltype(columns)::value;
            const auto add = many ? add_weights<T, kRows, kWide> : add_weights<T, 1, kWide>;
            const int64_t first = o * s.columns;
            add(s.columns, room.d + first, room.index + first, padded + r * s.line + c * kLanes<T>, s.line,
                d_weight + (o * s.kernel + r) * s.stride + c * kLanes<T>, s.stride);
          }
        });
        r += many ? kRows : 1;
      }
    }
  }
}

// For every pixel and place the outputs that were found there, with their gradients.
template <typename T>
void sort(const Sizes<T>& s, const T* d_top, const uint8_t* place, Sorted<T> sorted) {
  int64_t at = 0;
  for (int64_t pixel = 0; pixel < s.rows * s.columns; ++pixel) {
    for (int p = 0; p < 4; ++p) {
      sorted.first[pixel * 4 + p] = int32_t(at);
      for (int64_t o = 0; o < s.out; ++o) {
        sorted.d[at] = d_top[pixel * s.out + o];  // stays only if it belongs here
        sorted.index[at] = int32_t(o);
        at += place[pixel * s.places + o] == p;
      }
    }
  }
  sorted.first[s.rows * s.columns * 4] = int32_t(at);
}

// packed: [row of the kernel][kLine vectors of it][out][those vectors], zero where there is no tap.
template <typename T>
void pack(const Sizes<T>& s, const T* weight, T* packed) {
  for (int64_t r = 0; r < s.kernel; ++r) {
    for (int64_t c = 0; c < s.vectors; c += kLine) {
      const int64_t wide = (s.vectors - c < kLine ? s.vectors - c : kLine) * kLanes<T>;
      for (int64_t o = 0; o < s.out; ++o) {
        for (int64_t i = 0; i < wide; ++i, ++packed) {
          const int64_t tap = c * kLanes<T> + i, inp = tap % s.inp, column = tap / s.inp;
          *packed = tap < s.taps ? weight[((o * s.inp + inp) * s.kernel + r) * s.kernel + column] : T(0);
        }
      }
    }
  }
}

template <typename T>
void inputs_of_image(const Sizes<T>& s, const T* packed, Sorted<T> sorted, T* padded) {
  for (int64_t r = 0; r < s.kernel; ++r) {
    for (int64_t c = 0; c < s.vectors; c += kLine) {
      with_count<kLine>(s.vectors - c, [&](auto count) {
        constexpr int kWide = decltype(count)::value;
        for (int64_t pixel = 0; pixel < s.rows * s.columns; ++pixel) {
          for (int p = 0; p < 4; ++p) {
            T* x = padded + s.corner(pixel / s.columns, pixel % s.columns, p) + r * s.line + c * kLanes<T>;
            Vec<T> sums[kWide];
#pragma GCC unroll 16
            for (int v = 0; v < kWide; ++v) sums[v] = load(x + v * kLanes<T>);
            for (int64_t i = sorted.first[pixel * 4 + p]; i < sorted.first[pixel * 4 + p + 1]; ++i) {
              const T* taps = packed + sorted.index[i] * kWide * kLanes<T>;
              const Vec<T> each = splat(sorted.d[i]);
#pragma GCC unroll 16
              for (int v = 0; v < kWide; ++v) sums[v] += each * load(taps + v * kLanes<T>);
            }
#pragma GCC unroll 16
            for (int v = 0; v < kWide; ++v) store(x + v * kLanes<T>, sums[v]);
          }
        }
        packed += s.out * kWide * kLanes<T>;
      });
    }
  }
}

}  // namespace

// pointers: x, weight [out, inp, kernel, kernel], place (rows padded), d_top [images, rows, columns, out] |
//   d_x (null where not wanted), d_weight [out, kernel, kernel, inp], d_bias
// sizes: images, height, width, inp, out, kernel
template <typename T>
void conv_pool_backward(Call& call) {
  const T *x = call.pointer<const T>(), *weight = call.pointer<const T>();
  const uint8_t* place = call.pointer<const uint8_t>();
  const T* d_top = call.pointer<const T>();
  T *d_x = call.pointer<T>(), *d_weight = call.pointer<T>(), *d_bias = call.pointer<T>();
  const Sizes<T> s(call);
  call.done();
  const int threads = s.images < call.threads ? 1 : call.threads;
  const int64_t weights = s.out * s.kernel * s.stride, sums = weights + s.out;  // d_weight, then d_bias
  const int64_t pixels = s.rows * s.columns, outputs = pixels * s.out + 1;
  Arena arena;
  T *packed = nullptr, *all_sums = nullptr, *all_padded = nullptr, *all_d = nullptr;
  int32_t *all_outputs = nullptr, *all_first = nullptr;
  for (int pass = 0; pass < 2; ++pass) {
    packed = arena.take<T>(d_x ? weights : 0);
    all_sums = arena.take<T>(threads * 2 * sums);
    all_padded = arena.take<T>(threads * s.padded);
    all_d = arena.take<T>(threads * outputs);
    all_outputs = arena.take<int32_t>(threads * outputs);
    all_first = arena.take<int32_t>(threads * (pixels * 4 + 1));
    if (pass == 0) arena.allocate();
  }
  if (d_x) pack(s, weight, packed);
  parallel(threads, [=](Team& team) {
    const Share mine = share(team, s.images);
    T *total = all_sums + team.rank * 2 * sums, *part = total + sums, *padded = all_padded + team.rank * s.padded;
    const Sorted<T> room{all_d + team.rank * outputs, all_outputs + team.rank * outputs,
                         all_first + team.rank * (pixels * 4 + 1)};
    __builtin_memset(total, 0, size_t(sums) * sizeof(T));
    for (int64_t i = mine.first; i < mine.last; ++i) {
      const T* d = d_top + i * pixels * s.out;
      const uint8_t* found = place + i * pixels * s.places;
      // Sums of an image before those of all: this keeps rounding small.
      __builtin_memset(part, 0, size_t(sums) * sizeof(T));
      put(s, x + i * s.height * s.width * s.inp, padded);
      weights_of_image(s, padded, d, found, part, part + weights, room);
      for (int64_t k = 0; k < sums; ++k) total[k] += part[k];
      if (!d_x) continue;
      sort(s, d, found, room);
      __builtin_memset(padded, 0, size_t(s.padded) * sizeof(T));
      inputs_of_image(s, packed, room, padded);
      take(s, padded, d_x + i * s.height * s.width * s.inp);
    }
    team.barrier();
    const Share outs = share(team, s.out);
    for (int64_t o = outs.first; o < outs.last; ++o) {
      for (int64_t r = 0; r < s.kernel; ++r) {
        for (int64_t tap = 0; tap < s.taps; ++tap) {
          T sum = T(0);
          for (int thread = 0; thread < team.size; ++thread) {
            sum += all_sums[thread * 2 * sums + (o * s.kernel + r) * s.stride + tap];
          }
          d_weight[(o * s.kernel + r) * s.taps + tap] = sum;
        }
      }
      T sum = T(0);
      for (int thread = 0; thread < team.size; ++thread) sum += all_sums[thread * 2 * sums + weights + o];
      d_bias[o] = sum;
    }
  });
}

FD_INSTANTIATE(conv_pool_backward)

}  // namespace fastdream::cpu::FD_ISA
