#pragma once

#include <cstdint>

// The arguments of a kernel as Python hands them over: three lists that are read in order. Whoever calls has checked
// shapes, dtypes and contiguity; a kernel that reads more or less than it was given raises an error before any work.
namespace fastdream::cpu {

[[noreturn]] void fail(const char* message);  // a C++ exception, so never inside `parallel`

class Call {
 public:
  Call(const uintptr_t* pointers, int64_t pointer_count, const int64_t* sizes, int64_t size_count,
       const double* scalars, int64_t scalar_count, int threads)
      : threads(threads),
        pointers_(pointers),
        sizes_(sizes),
        scalars_(scalars),
        pointers_left_(pointer_count),
        sizes_left_(size_count),
        scalars_left_(scalar_count) {}

  // The next tensor's first element; null where Python had None.
  template <typename T>
  T* pointer() {
    if (pointers_left_-- <= 0) fail("kernel called with too few pointers");
    return reinterpret_cast<T*>(*pointers_++);
  }
  int64_t size() {
    if (sizes_left_-- <= 0) fail("kernel called with too few sizes");
    return *sizes_++;
  }
  // The next n sizes, which stay where they are during the call.
  const int64_t* sizes(int64_t n) {
    if (n < 0 || (sizes_left_ -= n) < 0) fail("kernel called with too few sizes");
    return (sizes_ += n) - n;
  }
  double scalar() {
    if (scalars_left_-- <= 0) fail("kernel called with too few scalars");
    return *scalars_++;
  }
  void done() const {
    if (pointers_left_ || sizes_left_ || scalars_left_) fail("kernel called with too many arguments");
  }

  const int threads;  // at most, 1 or more

 private:
  const uintptr_t* pointers_;
  const int64_t* sizes_;
  const double* scalars_;
  int64_t pointers_left_, sizes_left_, scalars_left_;
};

}  // namespace fastdream::cpu
