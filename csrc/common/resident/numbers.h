#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/bf16.h"
#include "common/macros.h"

// A few neighbouring numbers, which a thread reads or writes at once.
namespace fastdream::resident {

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Numbers {
  T at[N];
};

#ifdef __CUDACC__
// What the hardware moves at once is one of its own types; nvcc takes structs and copies apart.
template <int N>
using Floats = std::conditional_t<N == 4, float4, std::conditional_t<N == 2, float2, float>>;
template <size_t bytes>
using Word = std::conditional_t<bytes == 16, uint4, std::conditional_t<bytes == 8, uint2, uint32_t>>;
#endif

template <int N, typename T>
FD_HD Numbers<T, N> load(const T* from) {
#ifdef __CUDA_ARCH__
  Numbers<T, N> numbers;
  if constexpr (std::is_same_v<T, float>) {
    const Floats<N> word = *reinterpret_cast<const Floats<N>*>(from);
    if constexpr (N == 1) numbers = {word};
    if constexpr (N == 2) numbers = {word.x, word.y};
    if constexpr (N == 4) numbers = {word.x, word.y, word.z, word.w};
  } else {
    const Word<N * sizeof(T)> word = *reinterpret_cast<const Word<N * sizeof(T)>*>(from);
    memcpy(&numbers, &word, sizeof(word));
  }
  return numbers;
#else
  return *reinterpret_cast<const Numbers<T, N>*>(from);
#endif
}

template <typename T, int N>
FD_HD void store(T* to, const Numbers<T, N>& numbers) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, float>) {
    const auto& x = numbers.at;
    if constexpr (N == 1) *to = x[0];
    if constexpr (N == 2) *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
    if constexpr (N == 4) *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    Word<N * sizeof(T)> word;
    memcpy(&word, &numbers, sizeof(word));
    *reinterpret_cast<Word<N * sizeof(T)>*>(to) = word;
  }
#else
  *reinterpret_cast<Numbers<T, N>*>(to) = numbers;
#endif
}

using fastdream::rounded, fastdream::widened;

// To float and back, two in an instruction where there is one.
template <typename T, int N>
FD_HD Numbers<float, N> widened(const Numbers<T, N>& x) {
  Numbers<float, N> out;
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, bf16>) {
    uint32_t words[N / 2];
    memcpy(words, &x, sizeof(words));
    FD_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      out.at[2 * i] = __uint_as_float(words[i] << 16);
      out.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else
#endif
  {
    FD_UNROLL
    for (int i = 0; i < N; ++i) out.at[i] = fastdream::widened(x.at[i]);
  }
  return out;
}

template <typename T, int N>
FD_HD Numbers<T, N> rounded(const Numbers<float, N>& x) {
  Numbers<T, N> out;
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, bf16>) {
    FD_UNROLL
    for (int i = 0; i < N; i += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x.at[i], x.at[i + 1]);
      memcpy(&out.at[i], &pair, sizeof(pair));
    }
  } else
#endif
  {
    FD_UNROLL
    for (int i = 0; i < N; ++i) out.at[i] = fastdream::rounded<T>(x.at[i]);
  }
  return out;
}

}  // namespace fastdream::resident
