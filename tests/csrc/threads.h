#pragma once

#include <thread>
#include <vector>

#include "cpu/team.h"

// The three entry points of an OpenMP library, made of std::thread, so that kernels run in threads without Python, and
// so that ThreadSanitizer, which does not know OpenMP's own barriers, sees who waits for whom.
namespace stand_in {

inline thread_local int rank = 0;
inline thread_local int size = 1;

inline void parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) {
    others.emplace_back([=] {
      rank = int(i);
      size = int(threads);
      body(data);
    });
  }
  rank = 0;
  size = int(threads);
  body(data);
  size = 1;
  for (std::thread& other : others) other.join();
}

inline int thread_num() { return rank; }
inline int num_threads() { return size; }

inline void use() {
  fastdream::cpu::use_openmp(uintptr_t(&parallel), uintptr_t(&thread_num), uintptr_t(&num_threads));
}

}  // namespace stand_in
