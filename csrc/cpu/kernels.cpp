#include "cpu/kernels.h"

#include <initializer_list>

namespace fastdream::cpu {
namespace {

Isa widest() {
  for (Isa candidate : {Isa::avx512, Isa::avx2}) {
    if (supported(candidate)) return candidate;
  }
  return Isa::portable;
}

Isa chosen = widest();

}  // namespace

const char* name_of(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

bool supported(Isa isa) {
#ifdef FD_X86
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::portable;
}

Isa isa() { return chosen; }

void use(Isa isa) {
  if (!supported(isa)) fail("this processor or build does not have that instruction set");
  chosen = isa;
}

}  // namespace fastdream::cpu
