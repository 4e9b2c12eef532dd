#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/macros.h"

// A few neighbouring numbers, which a thread reads or writes at once.
namespace fastdream::resident {

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Numbers {
  T at[N];
};

#ifdef __CUDACC__
// What the hardware moves at once is one of its own types; nvcc takes a struct apart.
template <size_t bytes>
using Word = std::conditional_t<bytes == 16, uint4, std::conditional_t<bytes == 8, uint2, uint32_t>>;
#endif

template <int N, typename T>
FD_HD Numbers<T, N> load(const T* from) {
#ifdef __CUDA_ARCH__
  using W = Word<N * sizeof(T)>;
  const W word = *reinterpret_cast<const W*>(from);
  Numbers<T, N> numbers;
  static_assert(sizeof(numbers) == sizeof(word), "4, 8 or 16 bytes at a time");
  memcpy(&numbers, &word, sizeof(word));
  return numbers;
#else
  return *reinterpret_cast<const Numbers<T, N>*>(from);
#endif
}

template <typename T, int N>
FD_HD void store(T* to, const Numbers<T, N>& numbers) {
#ifdef __CUDA_ARCH__
  using W = Word<N * sizeof(T)>;
  W word;
  static_assert(sizeof(numbers) == sizeof(word), "4, 8 or 16 bytes at a time");
  memcpy(&word, &numbers, sizeof(word));
  *reinterpret_cast<W*>(to) = word;
#else
  *reinterpret_cast<Numbers<T, N>*>(to) = numbers;
#endif
}

}  // namespace fastdream::resident
