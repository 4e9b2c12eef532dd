#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/simd.h"

namespace fastdream::cpu::FD_ISA {

constexpr size_t kLargePage = size_t(1) << 21;

// Asks for large pages where there are many small ones: each of those is a fault when it is first touched, and a system
// call's worth of time. Advice: what cannot be followed does not matter.
inline void prefer_large_pages(void* memory, size_t bytes) {
#ifdef __linux__
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Memory of one call: sized first, then taken piece by piece, given back at its end. Two passes over the same code,
//
//   lay_out(arena), arena.allocate(), lay_out(arena)
//
// so that sizes are written once: before `allocate` every piece is a null pointer and is only counted.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(base_); }

  // n elements, aligned to a cache line. Its contents are arbitrary.
  template <typename T>
  T* take(int64_t n) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (size_t(n) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<T*>(piece);
  }

  void allocate() {
    const size_t align = used_ < 2 * kLargePage ? kAlign : kLargePage;
    const size_t bytes = (used_ + align - 1) / align * align;
    base_ = static_cast<char*>(std::aligned_alloc(align, bytes ? bytes : align));
    if (!base_) throw std::bad_alloc();
    if (align == kLargePage) prefer_large_pages(base_, bytes);
    used_ = 0;
  }

 private:
  static constexpr size_t kAlign = 64;
  char* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace fastdream::cpu::FD_ISA
