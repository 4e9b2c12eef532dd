#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/resident/backward_data.h"
#include "common/resident/forward_data.h"

// A call as Python makes it: lists of addresses, sizes and scalars, for the CPU's player and for CUDA alike.
//
// sizes    blocks, D, H, S, C, ranks (which shape), B, T
// scalars  eps of the state's norms, of the hidden layer's, of the posterior's; unimix
namespace fastdream::resident {

constexpr int kNoShape = -2;  // nothing is compiled for these sizes

struct Call {
  Call(std::vector<uintptr_t> pointers, std::vector<int64_t> sizes, std::vector<double> scalars)
      : pointers(std::move(pointers)), sizes(std::move(sizes)), scalars(std::move(scalars)) {}

  std::vector<uintptr_t> pointers;
  std::vector<int64_t> sizes;
  std::vector<double> scalars;

  template <typename U>
  U* pointer() {
    return reinterpret_cast<U*>(pointers.at(next_++));
  }
  float scalar(int i) const { return float(scalars.at(i)); }
  int batch() const { return int(sizes.at(6)); }
  int length() const { return int(sizes.at(7)); }
  int tiles() const { return (batch() + kRows - 1) / kRows; }

  template <class S>
  bool is() const {
    const int64_t shape[] = {S::blocks, S::deter, S::hidden, S::stoch, S::classes, S::ranks};
    for (int i = 0; i < 6; ++i) {
      if (sizes.at(i) != shape[i]) return false;
    }
    return true;
  }

 private:
  int next_ = 0;
};

// run(Shape{}) for the shape of the call among these.
template <class... Shapes, class Run>
int with_shape(const Call& call, Run run) {
  int status = kNoShape;
  (void)((call.is<Shapes>() && ((status = run(Shapes{})), true)) || ...);
  return status;
}

// pointers: in the order of the fields.
template <typename T>
ForwardArgs<T> forward_args(Call& call) {
  ForwardArgs<T> a;
  a.weights = call.pointer<const T>();
  a.vectors = call.pointer<const float>();
  a.deter0 = call.pointer<const T>();
  a.first = call.pointer<const T>();
  a.entered = call.pointer<const T>();
  a.embedded = call.pointer<const T>();
  a.resets = call.pointer<const int32_t>();
  a.noise = call.pointer<const float>();
  a.replayed = call.pointer<const int64_t>();
  a.deter = call.pointer<T>();
  a.logit = call.pointer<T>();
  a.index = call.pointer<int64_t>();
  a.pre = call.pointer<T>();
  a.hidden = call.pointer<T>();
  a.gates = call.pointer<T>();
  a.post = call.pointer<T>();
  a.pre_feat = call.pointer<T>();
  a.hidden_feat = call.pointer<T>();
  a.post_feat = call.pointer<T>();
  a.roots = call.pointer<float>();
  a.squares = call.pointer<float>();
  a.products = call.pointer<float>();
  a.failed = call.pointer<int32_t>();
  a.clocks = call.pointer<int64_t>();
  a.batch = call.batch();
  a.length = call.length();
  a.eps_state = call.scalar(0);
  a.eps_hidden = call.scalar(1);
  a.eps_post = call.scalar(2);
  a.unimix = call.scalar(3);
  return a;
}

template <typename T>
BackwardArgs<T> backward_args(Call& call) {
  BackwardArgs<T> a;
  a.weights = call.pointer<const T>();
  a.vectors = call.pointer<const float>();
  a.deter0 = call.pointer<const T>();
  a.deter = call.pointer<const T>();
  a.logit = call.pointer<const T>();
  a.resets = call.pointer<const int32_t>();
  a.pre = call.pointer<const T>();
  a.hidden = call.pointer<const T>();
  a.gates = call.pointer<const T>();
  a.post = call.pointer<const T>();
  a.roots = call.pointer<const float>();
  a.d_deter = call.pointer<const T>();
  a.d_stoch = call.pointer<const T>();
  a.d_logit = call.pointer<const T>();
  a.logits = call.pointer<T>();
  a.d_pre = call.pointer<T>();
  a.d_hidden = call.pointer<T>();
  a.d_gates = call.pointer<T>();
  a.d_post = call.pointer<T>();
  a.totals = call.pointer<float>();
  a.carried = call.pointer<float>();
  a.sums = call.pointer<float>();
  a.products = call.pointer<float>();
  a.failed = call.pointer<int32_t>();
  a.clocks = call.pointer<int64_t>();
  a.batch = call.batch();
  a.length = call.length();
  a.unimix = call.scalar(3);
  return a;
}

}  // namespace fastdream::resident
