#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "common/dlpack.h"

// The policy step past everything that takes time beside its kernel.
namespace fastdream {

namespace py = pybind11;

// torch.Tensor, and how to look at one; null where that is not known.
inline PyTypeObject* tensor_type = nullptr;
inline const dlpack::Exchange* exchange = nullptr;

// Takes that class and what it calls __dlpack_c_exchange_api__. False if this is of another version.
inline bool use_tensors(const py::type& type, const py::capsule& api) {
  const auto* const given = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(api.ptr(), dlpack::kCapsule));
  if (!given) throw py::error_already_set();
  if (given->major != dlpack::kMajor) return false;
  exchange = given;
  tensor_type = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  return true;
}

// What a kernel's argument has to be: contiguous, in host memory, of this type and shape.
struct Wanted {
  dlpack::Type type;
  Sizes shape;

  bool fits(const dlpack::Tensor& x) const {
    if (x.device.type != dlpack::kHost || !(x.type == type) || x.ndim != int32_t(shape.size())) return false;
    int64_t stride = 1;
    bool dense = true;
    for (int32_t i = x.ndim - 1; i >= 0; stride *= shape[i--]) {
      if (x.shape[i] != shape[i]) return false;
      dense = dense && (!x.strides || shape[i] == 1 || x.strides[i] == stride);
    }
    return dense || stride == 0;
  }
};

// `policy_step` of one model for inputs of one shape. It looks at tensors itself: asking them from Python takes
// 4 us, of 75 that a small model takes to act.
class PolicyStep {
 public:
  // The arguments of the kernel after inputs and outputs; all sizes.
  PolicyStep(int itemsize, std::vector<uintptr_t> pointers, Sizes sizes, Scalars scalars)
      : itemsize_(itemsize), pointers_(std::move(pointers)), sizes_(std::move(sizes)), scalars_(std::move(scalars)) {
    if (sizes_.size() < 9) throw py::value_error("PolicyStep: too few sizes");
    const int64_t rows = sizes_[0], width = sizes_[1], stoch = sizes_[2], classes = sizes_[3], action = sizes_[5],
                  features = sizes_[6], elements = sizes_[8];
    const dlpack::Type real = {dlpack::kFloat, uint8_t(8 * itemsize), 1}, flag = {dlpack::kBool, 8, 1},
                       integer = {dlpack::kInt, 64, 1};
    const Sizes state = classes ? Sizes{rows, stoch, classes} : Sizes{rows, stoch};
    const Wanted deter = {real, {rows, width}}, states = {real, state}, actions = {real, {rows, action}},
                 logits = {real, classes ? state : Sizes{rows, 2 * stoch}}, drawn = {integer, {rows, stoch}};
    wanted_ = {deter, states, actions, {real, {rows, features}}, {flag, {rows}}, {real, {rows, stoch}}, drawn,
               {real, {rows, elements}}, deter, states, logits, drawn, actions};
  }

  // Inputs and outputs in the kernel's order. May be called by several threads at once.
  int operator()(const py::tuple& tensors, int threads) const {
    if (tensors.size() != wanted_.size() || !exchange) return kMisfit;
    std::vector<uintptr_t> pointers;
    pointers.reserve(wanted_.size() + pointers_.size());
    for (size_t i = 0; i < wanted_.size(); ++i) {
      PyObject* const object = PyTuple_GET_ITEM(tensors.ptr(), Py_ssize_t(i));
      dlpack::Tensor x = {};
      if (object == Py_None) {
        if (i < kRequired) return kMisfit;
      } else {
        if (!PyObject_TypeCheck(object, tensor_type)) return kMisfit;
        if (exchange->view(object, &x)) {
          PyErr_Clear();  // on no device that the interface knows
          return kMisfit;
        }
        if (!wanted_[i].fits(x)) return kMisfit;
      }
      pointers.push_back(reinterpret_cast<uintptr_t>(x.data) + uintptr_t(x.offset));
    }
    pointers.insert(pointers.end(), pointers_.begin(), pointers_.end());
    const py::gil_scoped_release no_gil;
    cpu::Call call(pointers.data(), int64_t(pointers.size()), sizes_.data(), int64_t(sizes_.size()), scalars_.data(),
                   int64_t(scalars_.size()), threads);
    return with_type(itemsize_, [&](auto type) {
      FD_DISPATCH(policy_step, decltype(type), call);
      return 0;
    });
  }

 private:
  // deter, stoch, action, features and reset: the inputs that cannot be absent.
  static constexpr size_t kRequired = 5;

  int itemsize_;
  std::vector<uintptr_t> pointers_;
  Sizes sizes_;
  Scalars scalars_;
  std::vector<Wanted> wanted_;
};

inline void bind_policy_step(py::module_& m) {
  py::class_<PolicyStep>(m, "PolicyStep")
      .def(py::init<int, std::vector<uintptr_t>, Sizes, Scalars>())
      .def("__call__", &PolicyStep::operator());
  m.def("use_tensors", &use_tensors);
}

}  // namespace fastdream
