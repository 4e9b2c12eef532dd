#include "cpu/resident.h"

#include "common/resident/backward.h"
#include "common/resident/forward.h"
#include "cpu/resident_run.h"

namespace fastdream::resident {
namespace {

template <class Run>
int with_case(int itemsize, const Call& call, Run run) {
  return with_shape<Tiny, Size1m, Size12m, Size12mBy8, Size25m>(call, [&](auto shape) {
    itemsize == 4 ? run(shape, float{}) : run(shape, bf16{});
    return 0;
  });
}

// One tile after the other.
template <class S, class Shared, class Phases, class Args, class Scan>
void play(const Args& args, int tiles, int order, Scan scan) {
  std::vector<Shared> team(S::team);
  for (int tile = 0; tile < tiles; ++tile) {
    HostRun<S, Shared, Phases, Args> run(args, tile, order, team);
    scan(run);
  }
}

}  // namespace

int play_forward(int itemsize, Call call, int order) {
  return with_case(itemsize, call, [&](auto shape, auto type) {
    using S = decltype(shape);
    using T = decltype(type);
    using Shared = ForwardShared<S, T>;
    const ForwardArgs<T> args = forward_args<T>(call);
    play<S, Shared, Forward<S, T, HostCta<Shared>>>(args, call.tiles(), order,
                                                    [&](auto& run) { forward_scan(run, args.length); });
  });
}

int play_backward(int itemsize, Call call, int order) {
  return with_case(itemsize, call, [&](auto shape, auto type) {
    using S = decltype(shape);
    using T = decltype(type);
    using Shared = BackwardShared<S, T>;
    const BackwardArgs<T> args = backward_args<T>(call);
    play<S, Shared, Backward<S, T, HostCta<Shared>>>(args, call.tiles(), order,
                                                     [&](auto& run) { backward_scan(run, args.length); });
  });
}

}  // namespace fastdream::resident
