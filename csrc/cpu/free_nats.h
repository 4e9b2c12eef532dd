#pragma once

#include "cpu/call.h"
#include "cpu/simd.h"

// Free nats on the two KL losses dyn and rep, which have the same value, one number a row: at least `free` in every row, or
// in their mean, or as they are.
namespace fastdream::cpu::FD_ISA {

enum class Clamp : int64_t { step, mean, none };  // CLAMPS of fastdream/ops/native/categorical.py

template <typename T>
T mean_of(const T* kl, int64_t rows) {
  double total = 0;
  for (int64_t row = 0; row < rows; ++row) total += double(kl[row]);
  return T(total / double(rows));
}

// dyn and rep [rows], [] for Clamp::mean.
template <typename T>
void clamp_pair(Clamp clamp, T free, int64_t rows, const T* kl, T* dyn, T* rep) {
  if (clamp == Clamp::mean) {
    const T mean = mean_of(kl, rows);
    *dyn = *rep = mean < free ? free : mean;
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    dyn[row] = rep[row] = clamp == Clamp::step && kl[row] < free ? free : kl[row];
  }
}

// What reaches a row's KL of the gradients of dyn and rep.
template <typename T>
struct FreeNats {
  const T *d_dyn, *d_rep, *kl;  // d_dyn and d_rep have one element for Clamp::mean
  T free, scale;
  int64_t step;  // 1: a gradient for every row, 0: one for all

  void choose(Clamp clamp, T least, int64_t rows) {
    step = clamp == Clamp::mean ? 0 : 1;
    free = clamp == Clamp::step ? least : -T(__builtin_inf());
    scale = clamp != Clamp::mean ? T(1) : mean_of(kl, rows) < least ? T(0) : T(1) / T(rows);
  }
  T of_dyn(int64_t row) const { return kl[row] < free ? T(0) : scale * d_dyn[step * row]; }
  T of_rep(int64_t row) const { return kl[row] < free ? T(0) : scale * d_rep[step * row]; }
};

// Reads pointers d_dyn, d_rep, kl.
template <typename T>
FreeNats<T> read_free_nats(Call& call) {
  FreeNats<T> nats;
  nats.d_dyn = call.pointer<const T>();
  nats.d_rep = call.pointer<const T>();
  nats.kl = call.pointer<const T>();
  return nats;
}

}  // namespace fastdream::cpu::FD_ISA
