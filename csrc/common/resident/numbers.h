#pragma once

#include "common/macros.h"

// A few neighbouring numbers, which a thread reads or writes at once.
namespace fastdream::resident {

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Numbers {
  T at[N];
};

template <int N, typename T>
FD_HD Numbers<T, N> load(const T* from) {
  return *reinterpret_cast<const Numbers<T, N>*>(from);
}

template <typename T, int N>
FD_HD void store(T* to, const Numbers<T, N>& numbers) {
  *reinterpret_cast<Numbers<T, N>*>(to) = numbers;
}

}  // namespace fastdream::resident
