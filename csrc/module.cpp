#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "cpu/lambda_return.h"
#include "cpu/resident.h"
#include "cpu/team.h"
#include "policy_step.h"
#ifdef FASTDREAM_CUDA
#include "cuda/lambda_return.h"
#include "cuda/runtime.h"
#endif
#ifdef FASTDREAM_RESIDENT
#include "cuda/resident/resident.h"
#endif

// Bindings only. Pointers and streams arrive as integers, so that neither torch nor a CUDA driver is needed to build or
// to import this module. `itemsize` is 4 for float32 and 8 for float64. Every launch returns a status: 0, or what
// error_string puts into words. The caller has checked shapes, dtypes, devices and contiguity.
namespace py = pybind11;
using namespace fastdream;

namespace {

// The words for a status of ours, null for others.
const char* own_error(int status) {
  if (status == kBadItemsize) return "unsupported itemsize";
  if (status == kMisfit) return "a tensor does not fit";
  if (status == resident::kNoShape) return "nothing is compiled for these sizes";
  return nullptr;
}

template <size_t N>
using Pointers = std::array<uintptr_t, N>;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// p: reward, live, mix, value | ret
template <typename T>
LambdaReturn<T> forward_args(const Pointers<5>& p, int64_t rows, int64_t steps) {
  return {at<T>(p[0]), at<T>(p[1]), at<T>(p[2]), at<T>(p[3]), at<T>(p[4]), rows, steps};
}

// p: grad, live, mix, value, ret | d_reward, d_live, d_mix, d_value
template <typename T>
LambdaReturnBackward<T> backward_args(const Pointers<9>& p, int64_t rows, int64_t steps) {
  return {at<T>(p[0]), at<T>(p[1]), at<T>(p[2]), at<T>(p[3]), at<T>(p[4]), at<T>(p[5]),
          at<T>(p[6]), at<T>(p[7]), at<T>(p[8]), rows,        steps};
}

void bind_kernels(py::module_& m) {
#define FD_KERNEL(name)                                                                                           \
  m.def("cpu_" #name, [](int itemsize, const std::vector<uintptr_t>& pointers, const Sizes& sizes,                \
                         const Scalars& scalars, int threads) {                                                   \
    const py::gil_scoped_release no_gil;                                                                          \
    cpu::Call call(pointers.data(), int64_t(pointers.size()), sizes.data(), int64_t(sizes.size()), scalars.data(), \
                   int64_t(scalars.size()), threads);                                                             \
    return with_type(itemsize, [&](auto type) {                                                                   \
      FD_DISPATCH(name, decltype(type), call);                                                                    \
      return 0;                                                                                                   \
    });                                                                                                           \
  });
#include "cpu/kernels.inc"
#undef FD_KERNEL
  bind_policy_step(m);
  m.def("use_openmp", &cpu::use_openmp);
  m.def("isa", [] { return cpu::name_of(cpu::isa()); });
  m.def("isas", [] {
    std::vector<std::string> names;
    for (cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
      if (cpu::supported(isa)) names.push_back(cpu::name_of(isa));
    }
    return names;
  });
  m.def("use_isa", [](const std::string& name) {
    for (cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
      if (name == cpu::name_of(isa)) return cpu::use(isa);
    }
    throw py::value_error("unknown instruction set " + name);
  });
}

void bind_cpu(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "cpu_lambda_return",
      [](int itemsize, const Pointers<5>& p, int64_t rows, int64_t steps) {
        return with_type(itemsize, [&](auto type) {
          cpu::lambda_return(forward_args<decltype(type)>(p, rows, steps));
          return 0;
        });
      },
      no_gil);
  m.def(
      "cpu_lambda_return_backward",
      [](int itemsize, const Pointers<9>& p, int64_t rows, int64_t steps) {
        return with_type(itemsize, [&](auto type) {
          cpu::lambda_return_backward(backward_args<decltype(type)>(p, rows, steps));
          return 0;
        });
      },
      no_gil);
}

// Observing with weights that stay on chip, played on the CPU for tests: `call` of csrc/common/resident/call.h.
void bind_resident(py::module_& m) {
  using Play = int (*)(int, resident::Call, int);
  const auto bind = [&](const char* name, Play play) {
    m.def(name, [play](int itemsize, std::vector<uintptr_t> pointers, std::vector<int64_t> sizes,
                       std::vector<double> scalars, int order) {
      const py::gil_scoped_release no_gil;
      return play(itemsize, {std::move(pointers), std::move(sizes), std::move(scalars)}, order);
    });
  };
  bind("play_resident_forward", &resident::play_forward);
  bind("play_resident_backward", &resident::play_backward);
}

#ifdef FASTDREAM_RESIDENT
constexpr bool kResident = true;

// The same on CUDA devices, and how many tiles of the batch the current one takes at once, or minus a status.
void bind_cuda_resident(py::module_& m) {
  using Launch = int (*)(resident::Call, uintptr_t);
  const auto bind = [&](const char* name, Launch launch) {
    m.def(name, [launch](int itemsize, std::vector<uintptr_t> pointers, std::vector<int64_t> sizes,
                         std::vector<double> scalars, uintptr_t stream) {
      const py::gil_scoped_release no_gil;
      if (itemsize != sizeof(bf16)) return kBadItemsize;
      return launch({std::move(pointers), std::move(sizes), std::move(scalars)}, stream);
    });
  };
  bind("cuda_resident_forward", &resident::forward);
  bind("cuda_resident_backward", &resident::backward);
  m.def("cuda_resident_teams", [](std::vector<int64_t> sizes) {
    const py::gil_scoped_release no_gil;
    const resident::Call call({}, std::move(sizes), {});
    return std::min(resident::forward_teams(call), resident::backward_teams(call));
  });
}
#else
constexpr bool kResident = false;

void bind_cuda_resident(py::module_&) {}
#endif

#ifdef FASTDREAM_CUDA
constexpr bool kCuda = true;

const char* error_string(int status) {
  const char* const own = own_error(status);
  return own ? own : cuda::error_string(status);
}

void bind_cuda(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "cuda_lambda_return",
      [](int itemsize, const Pointers<5>& p, int64_t rows, int64_t steps, uintptr_t stream) {
        return with_type(itemsize, [&](auto type) {
          return cuda::lambda_return(forward_args<decltype(type)>(p, rows, steps), stream);
        });
      },
      no_gil);
  m.def(
      "cuda_lambda_return_backward",
      [](int itemsize, const Pointers<9>& p, int64_t rows, int64_t steps, uintptr_t stream) {
        return with_type(itemsize, [&](auto type) {
          return cuda::lambda_return_backward(backward_args<decltype(type)>(p, rows, steps), stream);
        });
      },
      no_gil);
  m.def("cuda_device_count", &cuda::device_count);
}
#else
constexpr bool kCuda = false;

const char* error_string(int status) {
  const char* const own = own_error(status);
  return own ? own : "unknown status";
}

void bind_cuda(py::module_&) {}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = FASTDREAM_VERSION;
  m.attr("cuda") = kCuda;
  m.attr("resident") = kResident;
  m.def("error_string", &error_string);
  bind_cpu(m);
  bind_kernels(m);
  bind_resident(m);
  bind_cuda(m);
  bind_cuda_resident(m);
}
