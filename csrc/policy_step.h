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

// torch.Tensor and torch.nn.Parameter, and how to look at one; null where that is not known. Other subclasses may stand
// for what lies elsewhere.
inline PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;
inline const dlpack::Exchange* exchange = nullptr;

// Takes those classes and what they call __dlpack_c_exchange_api__. False if this is of another version.
inline bool use_tensors(const py::type& tensor, const py::type& parameter, const py::capsule& api) {
  const auto* const given = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(api.ptr(), dlpack::kCapsule));
  if (!given) throw py::error_already_set();
  if (given->major != dlpack::kMajor) return false;
  exchange = given;
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
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
  // The parameters (None for one that is not there), which are the kernel's arguments after inputs and outputs; all
  // sizes.
  PolicyStep(int itemsize, const py::list& params, Sizes sizes, Scalars scalars)
      : itemsize_(itemsize), sizes_(std::move(sizes)), scalars_(std::move(scalars)) {
    if (sizes_.size() < 9) throw py::value_error("PolicyStep: too few sizes");
    for (const py::handle param : params) {
      dlpack::Tensor x = {};
      if (!look(param.ptr(), &x)) throw py::value_error("PolicyStep: a parameter is no tensor that can be looked at");
      params_.push_back({py::reinterpret_borrow<py::object>(param), address(x), {x.type, {x.shape, x.shape + x.ndim}}});
    }
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
    if (tensors.size() != wanted_.size()) return kMisfit;
    std::vector<uintptr_t> pointers;
    pointers.reserve(wanted_.size() + params_.size());
    for (size_t i = 0; i < wanted_.size(); ++i) {
      PyObject* const object = PyTuple_GET_ITEM(tensors.ptr(), Py_ssize_t(i));
      dlpack::Tensor x = {};
      if (!look(object, &x) || (object == Py_None ? i < kRequired : !wanted_[i].fits(x))) return kMisfit;
      pointers.push_back(address(x));
    }
    // A parameter may have got other memory, and the same memory in another shape or order.
    for (const Param& param : params_) {
      dlpack::Tensor x = {};
      if (!look(param.tensor.ptr(), &x) || address(x) != param.address) return kMisfit;
      if (!param.tensor.is_none() && !param.wanted.fits(x)) return kMisfit;
      pointers.push_back(param.address);
    }
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

  struct Param {
    py::object tensor;
    uintptr_t address;
    Wanted wanted;
  };

  // Leaves `x` as it is for None. False for what is no tensor on a device that the interface knows.
  static bool look(PyObject* object, dlpack::Tensor* x) {
    if (object == Py_None) return true;
    const PyTypeObject* const type = Py_TYPE(object);
    if (!exchange || (type != tensor_type && type != parameter_type)) return false;
    if (!exchange->view(object, x)) return true;
    PyErr_Clear();
    return false;
  }

  static uintptr_t address(const dlpack::Tensor& x) {
    return reinterpret_cast<uintptr_t>(x.data) + uintptr_t(x.offset);
  }

  int itemsize_;
  std::vector<Param> params_;
  Sizes sizes_;
  Scalars scalars_;
  std::vector<Wanted> wanted_;
};

inline void bind_policy_step(py::module_& m) {
  py::class_<PolicyStep>(m, "PolicyStep")
      .def(py::init<int, const py::list&, Sizes, Scalars>())
      .def("__call__", &PolicyStep::operator());
  m.def("use_tensors", &use_tensors);
}

}  // namespace fastdream
