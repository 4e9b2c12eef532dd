#pragma once

#include "cpu/call.h"
#include "cpu/categorical.h"
#include "cpu/gaussian.h"

// The stochastic part of a state, of either family.
namespace fastdream::cpu::FD_ISA {

template <typename T>
struct Latent {
  int64_t stoch = 0, classes = 0;  // variables; classes of each, 0: normals
  StdForm form = StdForm::softplus;
  T unimix = 0, min_std = 0;

  int64_t flat() const { return classes ? stoch * classes : stoch; }         // of a state
  int64_t logits() const { return classes ? stoch * classes : 2 * stoch; }   // of what it is drawn from
  int64_t scratch() const { return categorical_scratch<T>(classes); }

  // One row's state x [flat] of logit [logits] and noise [stoch]; or of classes that were drawn before, `replay`, else null.
  // Writes the classes drawn to index [stoch], where there are any.
  void draw(const T* logit, const T* noise, const int64_t* replay, int64_t* index, T* x, T* scratch) const {
    if (!classes) return sample_gaussian(stoch, logit, noise, form, min_std, x);
    if (replay) {
      std::memcpy(index, replay, size_t(stoch) * sizeof(int64_t));
    } else {
      sample_categorical(stoch, classes, logit, noise, unimix, index, scratch);
    }
    write_onehot(stoch, classes, index, x);
  }

  // The gradient of one row's logits from that of its state, and, if not null, from that of the logits themselves, `also`.
  void draw_backward(const T* logit, const T* noise, const T* d_x, const T* also, T* d_logit, T* scratch) const {
    if (!classes) return sample_gaussian_backward(stoch, logit, noise, d_x, also, form, d_logit);
    straight_through<T>(stoch, classes, logit, d_x, also, unimix, d_logit, scratch);
  }
};

// n elements further, of what is there.
template <typename P>
P* offset(P* pointer, int64_t n) {
  return pointer ? pointer + n : nullptr;
}

// sizes: stoch, classes, form;  scalars: unimix, min_std
template <typename T>
Latent<T> read_latent(Call& call) {
  Latent<T> latent;
  latent.stoch = call.size();
  latent.classes = call.size();
  latent.form = StdForm(call.size());
  latent.unimix = T(call.scalar());
  latent.min_std = T(call.scalar());
  return latent;
}

}  // namespace fastdream::cpu::FD_ISA
