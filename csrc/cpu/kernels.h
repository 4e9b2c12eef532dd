#pragma once

#include <cstdint>

#include "cpu/call.h"

// The kernels in each of their instruction sets, and which of these this processor has.
namespace fastdream::cpu {

#define FD_KERNEL(name) \
  template <typename T> \
  void name(Call& call);
namespace portable {
#include "cpu/kernels.inc"
}
#ifdef FD_X86
namespace avx2 {
#include "cpu/kernels.inc"
}
namespace avx512 {
#include "cpu/kernels.inc"
}
#endif
#undef FD_KERNEL

enum class Isa { portable, avx2, avx512 };

const char* name_of(Isa isa);
bool supported(Isa isa);
Isa isa();           // in use: the widest that is supported, or what was chosen
void use(Isa isa);   // for tests

}  // namespace fastdream::cpu
