#include "cpu/team.h"

#include <pthread.h>
#include <sched.h>

#include <stdexcept>

#include "cpu/call.h"

namespace fastdream::cpu {
namespace {

// The entry points that gcc's OpenMP code calls; LLVM's and Intel's libraries have them too.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Query = int (*)();

Parallel openmp_parallel = nullptr;
Query openmp_thread_num = nullptr;
Query openmp_num_threads = nullptr;
std::atomic<bool> threads_lost{false};

struct Shared {
  void (*body)(Team&, void*);
  void* data;
  std::atomic<int64_t> arrived{0};
};

void enter(void* data) {
  Shared& shared = *static_cast<Shared*>(data);
  // Inside another parallel region OpenMP gives fewer threads than were asked for.
  Team team(openmp_thread_num(), openmp_num_threads(), &shared.arrived);
  shared.body(team, shared.data);
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void fail(const char* message) { throw std::logic_error(message); }

void Team::barrier() {
  if (size == 1) return;
  passed_ += size;
  if (arrived_->fetch_add(1, std::memory_order_acq_rel) + 1 == passed_) return;
  for (int spins = 0; arrived_->load(std::memory_order_acquire) < passed_; ++spins) {
    if (spins < 20000) {
      pause();
    } else {
      sched_yield();
    }
  }
}

void use_openmp(uintptr_t parallel, uintptr_t thread_num, uintptr_t num_threads) {
  openmp_parallel = reinterpret_cast<Parallel>(parallel);
  openmp_thread_num = reinterpret_cast<Query>(thread_num);
  openmp_num_threads = reinterpret_cast<Query>(num_threads);
  static const int registered = pthread_atfork(nullptr, nullptr, [] { threads_lost = true; });
  (void)registered;
}

void run_team(int threads, void (*body)(Team&, void*), void* data) {
  if (threads <= 1 || !openmp_parallel || threads_lost) {
    Team alone(0, 1, nullptr);
    return body(alone, data);
  }
  Shared shared{body, data};
  openmp_parallel(enter, &shared, unsigned(threads), 0);
}

}  // namespace fastdream::cpu
