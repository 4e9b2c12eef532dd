#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/simd.h"

namespace fastdream::cpu::FD_ISA {

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
    base_ = static_cast<char*>(std::aligned_alloc(kAlign, used_ ? used_ : kAlign));
    if (!base_) throw std::bad_alloc();
    used_ = 0;
  }

 private:
  static constexpr size_t kAlign = 64;
  char* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace fastdream::cpu::FD_ISA
