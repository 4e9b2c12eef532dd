#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/simd.h"

// Threads for kernels. They are torch's own: its OpenMP library starts them (`use_openmp` is told where it is), so that
// kernels and torch never compete for the cores with two pools. Without it everything runs in the calling thread, and so
// it does in a process that was forked: threads do not survive that, whoever started them, and to ask for them waits
// forever.
namespace fastdream::cpu {

// Threads that run one function together.
class Team {
 public:
  Team(int rank, int size, std::atomic<int64_t>* arrived) : rank(rank), size(size), arrived_(arrived) {}

  const int rank;
  const int size;

  // Waits until every thread of the team is here; what they wrote before is seen after. A few microseconds at most
  // are spent waiting, so it spins, and gives the core away only if the others do not come.
  void barrier();

 private:
  std::atomic<int64_t>* arrived_;
  int64_t passed_ = 0;
};

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the OpenMP library to use.
void use_openmp(uintptr_t parallel, uintptr_t thread_num, uintptr_t num_threads);

// Runs body(Team&, data) in at most `threads` threads, the calling one among them.
void run_team(int threads, void (*body)(Team&, void*), void* data);

namespace FD_ISA {

// Runs body(team) in at most `threads` threads. body must not throw, and every thread must reach every barrier.
template <typename Body>
void parallel(int threads, Body body) {
  run_team(
      threads, [](Team& team, void* data) { (*static_cast<Body*>(data))(team); }, &body);
}

// This thread's share of 0 ... n - 1, in whole multiples of `grain`.
struct Share {
  int64_t first, last;
};
inline Share share(const Team& team, int64_t n, int64_t grain = 1) {
  const int64_t pieces = (n + grain - 1) / grain;
  const int64_t first = pieces * team.rank / team.size * grain, last = pieces * (team.rank + 1) / team.size * grain;
  return {first < n ? first : n, last < n ? last : n};
}

}  // namespace FD_ISA
}  // namespace fastdream::cpu
