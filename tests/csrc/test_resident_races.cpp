// Observing played by many threads at once: every CTA by several, with barriers only where the program has them, and with
// copies that arrive as late as they may. The results must be those of the player with one thread; under ThreadSanitizer
// (tests/csrc/sanitize.sh) a missing barrier or exchange is an error by itself.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "common/resident/backward.h"
#include "common/resident/call.h"
#include "common/resident/forward.h"
#include "cpu/resident.h"
#include "cpu/resident_run.h"

using namespace fastdream;
using namespace fastdream::resident;

namespace {

constexpr int kPlayers = 3;  // threads of a CTA, no divisor of its real number: neighbours in a loop are never the same

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int round = round_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++round_;
      return all_.notify_all();
    }
    all_.wait(lock, [&] { return round_ != round; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  const int count_;
  int arrived_ = 0, round_ = 0;
};

template <class Shared>
struct ThreadCta : HostProducts {
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };

  Shared& mine;
  Shared* team;
  int block, rank, tile, ranks, player;
  Barrier& barrier;
  std::vector<Copy> copies = {};

  ThreadCta(Shared& mine, Shared* team, int block, int rank, int tile, int ranks, int player, Barrier& barrier)
      : HostProducts{player, kPlayers}, mine(mine), team(team), block(block), rank(rank), tile(tile), ranks(ranks),
        player(player), barrier(barrier) {}

  template <class F>
  void each(int n, F f) {
    for (int i = 0; i < n; ++i) {
      if (i % kThreads % kPlayers == player) f(i);
    }
  }
  template <int L, class State, class F>
  void groups(int n, F f) {
    for (int i = player; i < n; i += kPlayers) {
      HostGroup<L, State> group;
      f(i, group);
    }
  }
  void sync() { barrier.wait(); }
  template <int N, typename U>
  void send(int other, U* place, const Numbers<U, N>& numbers) {
    const size_t offset = size_t(reinterpret_cast<char*>(place) - reinterpret_cast<char*>(&mine));
    store(reinterpret_cast<U*>(reinterpret_cast<char*>(&team[block * ranks + other]) + offset), numbers);
  }
  void expect(int) {}
  template <int bytes, typename U>
  void fetch(U* to, const U* from) {
    copies.push_back({to, from, bytes});
  }
  void fetched() {
    for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    copies.clear();
  }
  template <int N>
  void give(float* p, const Numbers<float, N>& numbers, int) {
    store(p, numbers);
  }
  template <int N, int Count>
  void fresh(Numbers<float, N> (&parts)[Count], const float* first, int apart, int) {
    for (int k = 0; k < Count; ++k) parts[k] = load<N>(first + k * apart);
  }
};

template <class S, class Cta, class Phases, class Args>
struct ThreadRun {
  Cta& cta;
  const Args& args;
  Barrier &cluster, &all;
  typename Phases::Held held = {};

  template <class F>
  void phase(F f) {
    Phases phases{{cta, args, held}};
    f(phases);
  }
  void begun() { cluster.wait(); }
  void narrow() { cluster.wait(); }
  void wide() { all.wait(); }
};

template <class S, class Shared, template <class, typename, class> class Direction, class Args, class Scan>
void play_at_once(const Args& args, Scan scan) {
  using Cta = ThreadCta<Shared>;
  std::vector<Shared> team(S::team);
  std::memset(static_cast<void*>(team.data()), 0xff, sizeof(Shared) * team.size());
  std::vector<Barrier*> ctas, clusters;
  Barrier all(S::team * kPlayers);
  for (int i = 0; i < S::team; ++i) ctas.push_back(new Barrier(kPlayers));
  for (int i = 0; i < S::blocks; ++i) clusters.push_back(new Barrier(S::ranks * kPlayers));
  std::vector<std::thread> threads;
  for (int i = 0; i < S::team * kPlayers; ++i) {
    threads.emplace_back([&, i] {
      const int n = i / kPlayers, block = n / S::ranks;
      Cta cta(team[n], team.data(), block, n % S::ranks, 0, S::ranks, i % kPlayers, *ctas[n]);
      ThreadRun<S, Cta, Direction<S, float, Cta>, Args> run{cta, args, *clusters[block], all};
      scan(run);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (Barrier* barrier : ctas) delete barrier;
  for (Barrier* barrier : clusters) delete barrier;
}

// Tensors of a call, one after the other, with random numbers; results are those from `outputs` on.
struct Tensors {
  std::vector<std::vector<float>> floats;
  std::vector<uintptr_t> pointers;

  void add(int64_t size, float scale) {
    floats.emplace_back(size_t(size));
    for (float& x : floats.back()) x = scale * float(std::rand() % 2001 - 1000) / 1000.0f;
    pointers.push_back(reinterpret_cast<uintptr_t>(floats.back().data()));
  }
  void add_ints(std::vector<int64_t>& ints) { pointers.push_back(reinterpret_cast<uintptr_t>(ints.data())); }
  void add_words(std::vector<int32_t>& words) { pointers.push_back(reinterpret_cast<uintptr_t>(words.data())); }
};

// Equal, or both NaN, which rows past the batch are in workspaces.
bool same(const Tensors& x, const Tensors& y) {
  for (size_t i = 0; i < x.floats.size(); ++i) {
    for (size_t k = 0; k < x.floats[i].size(); ++k) {
      const float a = x.floats[i][k], b = y.floats[i][k];
      if (a != b && (a == a || b == b)) return std::printf("tensor %zu at %zu: %g, %g\n", i, k, a, b), false;
    }
  }
  return true;
}

constexpr int kBatch = 5, kLength = 3;

template <class S>
Call forward_call(Tensors& t, std::vector<int64_t>& index, std::vector<int32_t>& resets, std::vector<int32_t>& zeros) {
  std::srand(1);
  const int64_t rows = kBatch * kLength;
  t.add(S::team * ForwardWeights<S>::elements, 0.1f);
  t.add(S::team * Vectors<S>::elements, 1.0f);
  t.add(kBatch * S::deter, 1.0f);
  t.add(kBatch * 2 * S::hidden, 1.0f);
  t.add(rows * S::deter, 1.0f);
  t.add(rows * S::hidden, 1.0f);
  t.add_words(resets);
  t.add(rows * S::stoch, 1.0f);
  for (float& x : t.floats.back()) x = x < 0 ? -x : x;
  t.pointers.push_back(0);
  t.add(rows * S::deter, 0.0f);
  t.add(rows * S::flat, 0.0f);
  t.add_ints(index);
  for (int width : {2 * S::hidden, S::deter, 3 * S::deter, S::hidden, 2 * S::hidden, S::deter, S::hidden, 4}) {
    t.add(rows * width, 0.0f);
  }
  t.add(S::team * kRows, 0.0f);
  t.add(S::blocks * kRows * 2 * S::hidden, 0.0f);
  t.add_words(zeros);
  t.pointers.push_back(0);
  return {t.pointers, {S::blocks, S::deter, S::hidden, S::stoch, S::classes, S::ranks, kBatch, kLength}, {1e-4, 1e-4, 1e-4, 0.01}};
}

template <class S>
Call backward_call(Tensors& t, std::vector<int32_t>& resets, std::vector<int32_t>& zeros) {
  std::srand(2);
  const int64_t rows = kBatch * kLength;
  t.add(S::team * BackwardWeights<S>::elements, 0.1f);
  t.add(S::team * Vectors<S>::elements, 1.0f);
  t.add(kBatch * S::deter, 1.0f);
  t.add(rows * S::deter, 1.0f);
  t.add(rows * S::flat, 1.0f);
  t.add_words(resets);
  for (int width : {2 * S::hidden, S::deter, 3 * S::deter, S::hidden, 4, S::deter, S::flat, S::flat}) {
    t.add(rows * width, 1.0f);
  }
  for (int width : {S::flat, 2 * S::hidden, S::deter, 3 * S::deter, S::hidden}) t.add(rows * width, 0.0f);
  t.add(Totals<S>::elements, 0.0f);
  t.add(kBatch * S::deter, 0.0f);
  t.add(S::team * kRows, 0.0f);
  t.add(S::blocks * kRows * 2 * S::hidden, 0.0f);
  t.add_words(zeros);
  t.pointers.push_back(0);
  return {t.pointers, {S::blocks, S::deter, S::hidden, S::stoch, S::classes, S::ranks, kBatch, kLength}, {1e-4, 1e-4, 1e-4, 0.01}};
}

template <class S>
bool check(const char* name) {
  std::vector<int32_t> resets = {1, 2, 5, 0}, zeros = {0};
  std::vector<int64_t> first(kBatch * kLength * S::stoch), second = first;
  Tensors alone, at_once;
  play_forward(4, forward_call<S>(alone, first, resets, zeros), 0);
  Call call = forward_call<S>(at_once, second, resets, zeros);
  const ForwardArgs<float> args = forward_args<float>(call);
  play_at_once<S, ForwardShared<S, float>, Forward>(args, [&](auto& run) { forward_scan(run, args.length); });
  const bool forward = same(alone, at_once) && first == second;

  Tensors alone_back, at_once_back;
  play_backward(4, backward_call<S>(alone_back, resets, zeros), 0);
  Call back = backward_call<S>(at_once_back, resets, zeros);
  const BackwardArgs<float> back_args = backward_args<float>(back);
  play_at_once<S, BackwardShared<S, float>, Backward>(back_args,
                                                      [&](auto& run) { backward_scan(run, back_args.length); });
  const bool backward = same(alone_back, at_once_back);
  if (!forward) std::printf("FAILED: %s forward differs among threads\n", name);
  if (!backward) std::printf("FAILED: %s backward differs among threads\n", name);
  return forward && backward;
}

}  // namespace

int main() {
  const bool tiny = check<Tiny>("tiny"), larger = check<Size1m>("1m"), good = tiny && larger;
  if (good) std::puts("ok");
  return good ? 0 : 1;
}
