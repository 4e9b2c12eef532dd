// Teams of threads: every share is taken once, barriers hold, and without a library for threads the caller does it all.
#include <cstdio>
#include <vector>

#include "threads.h"

namespace {

using namespace fastdream::cpu;
using namespace fastdream::cpu::portable;

int failures = 0;

void check(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::printf("failed: %s\n", what);
}

void test_shares(int threads) {
  for (int64_t grain : {1, 4, 16}) {
    for (int64_t n : {0, 1, 3, 16, 17, 100}) {
      std::vector<int> taken(size_t(n), 0);  // each element by one thread, hence no race
      parallel(threads, [&](Team& team) {
        const Share mine = share(team, n, grain);
        if (mine.first % grain && mine.first != n) check(false, "a share starts at a multiple of the grain");
        for (int64_t i = mine.first; i < mine.last; ++i) ++taken[size_t(i)];
      });
      for (int count : taken) check(count == 1, "every element is taken once");
    }
  }
}

// In every round each thread writes its own number and reads those of the others: a barrier that lets one through early
// is a wrong sum, and a data race.
void test_barrier(int threads) {
  std::vector<int64_t> numbers(size_t(threads), 0);
  std::vector<int> wrong(size_t(threads), 0);
  int size = 0;
  parallel(threads, [&](Team& team) {
    if (team.rank == 0) size = team.size;
    for (int64_t round = 0; round < 500; ++round) {
      numbers[size_t(team.rank)] = round;
      team.barrier();
      for (int other = 0; other < team.size; ++other) wrong[size_t(team.rank)] += numbers[size_t(other)] != round;
      team.barrier();
    }
  });
  check(size == threads, "as many threads as were asked for");
  for (int count : wrong) check(count == 0, "a barrier holds");
}

void test_alone() {
  int calls = 0;
  parallel(4, [&](Team& team) {
    ++calls;
    team.barrier();
    check(team.rank == 0 && team.size == 1, "a team of one");
  });
  check(calls == 1, "one call");
}

}  // namespace

int main() {
  test_alone();
  stand_in::use();
  for (int threads : {1, 2, 5}) {
    test_shares(threads);
    test_barrier(threads);
  }
  if (failures == 0) std::printf("team: ok\n");
  return failures != 0;
}
