#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"
#ifdef __CUDACC__
#include <cuda_bf16.h>
#endif

// bfloat16 as storage that host and device read alike; all arithmetic is in float. `rounded<float>` rounds nothing, so
// that one program runs in either precision.
namespace fastdream {

struct bf16 {
  uint16_t bits;
};

FD_HD float widened(float x) { return x; }
FD_HD float widened(bf16 x) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(uint32_t(x.bits) << 16);
#else
  const uint32_t word = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &word, sizeof(out));
  return out;
#endif
}

template <typename T>
FD_HD T rounded(float x);

template <>
FD_HD float rounded<float>(float x) {
  return x;
}

// To nearest, ties to even, as the hardware does; any NaN becomes the quiet one.
template <>
FD_HD bf16 rounded<bf16>(float x) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  if (x != x) return {0x7fff};
  uint32_t word;
  std::memcpy(&word, &x, sizeof(word));
  return {uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16)};
#endif
}

}  // namespace fastdream
