#pragma once

#include <cstdint>

// What is used here of DLPack's C interface, version 1: how a library says where a tensor of its own lies and what it
// is like, to code that has none of its headers.
namespace fastdream::dlpack {

struct Device {
  int32_t type, id;
};
constexpr int32_t kHost = 1;  // Device::type

struct Type {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const Type& other) const {
    return code == other.code && bits == other.bits && lanes == other.lanes;
  }
};
constexpr uint8_t kInt = 0, kFloat = 2, kBool = 6;  // Type::code

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  Type type;
  const int64_t *shape, *strides;  // strides in elements; null where rows lie one after another
  uint64_t offset;                 // in bytes, from data
};

// What a library's tensor class has as `__dlpack_c_exchange_api__`: a capsule of this name.
constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr uint32_t kMajor = 1;

struct Exchange {
  uint32_t major, minor;
  const Exchange* earlier;
  const void *allocate, *give, *take;
  // What a Python object is, until it changes. 0, or -1 with a Python error set.
  int (*view)(void* object, Tensor* out);
  const void* stream;
};

}  // namespace fastdream::dlpack
