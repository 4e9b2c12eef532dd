#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

// How the module's functions call kernels: for the type and the instruction set, with a status for what is refused.
namespace fastdream {

using Sizes = std::vector<int64_t>;
using Scalars = std::vector<double>;

constexpr int kBadItemsize = -1;
constexpr int kMisfit = -3;  // an argument is not what was said; nothing was done

// Calls run(T{}) with the floating-point type of that many bytes.
template <typename Run>
int with_type(int itemsize, Run run) {
  if (itemsize == sizeof(float)) return run(float{});
  if (itemsize == sizeof(double)) return run(double{});
  return kBadItemsize;
}

// Calls the kernel of that name in the instruction set in use; of double, which is for checks, there is one alone.
#ifdef FD_X86
#define FD_DISPATCH(name, T, call)                                                   \
  if constexpr (sizeof(T) == sizeof(double)) {                                       \
    cpu::portable::name<double>(call);                                               \
  } else {                                                                           \
    cpu::isa() == cpu::Isa::avx512 ? cpu::avx512::name<float>(call)                  \
                                   : cpu::isa() == cpu::Isa::avx2                    \
                                         ? cpu::avx2::name<float>(call)              \
                                         : cpu::portable::name<float>(call);         \
  }
#else
#define FD_DISPATCH(name, T, call) cpu::portable::name<T>(call)
#endif

}  // namespace fastdream
