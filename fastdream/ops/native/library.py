"""The compiled module `fastdream._C`: loading it, and calling its kernels.

It knows no torch: it takes pointers, sizes and a stream. What torch must know, shapes for the compiler, gradients, the
current device and stream, is said in this package: see `registry`.
"""

import ctypes
import json
import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

import fastdream


def build_record() -> dict[str, str]:
    """What the installation compiled: keys mode, built, why (not more), compilers. Empty if nothing is recorded."""
    files = [Path(folder, "_build.json") for folder in fastdream.__path__]
    return next((json.loads(file.read_text()) for file in files if file.exists()), {})


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, or why there is none."""
    rebuild = "with a C++ compiler, `FASTDREAM_BUILD=cpp pip install .` compiles it or shows why not"
    try:
        module = import_module("fastdream._C")
    except ModuleNotFoundError:
        why = build_record().get("why") or "no record of the build"
        return None, f"not compiled ({why}); {rebuild}"
    except ImportError as error:
        return None, f"compiled, but cannot be loaded ({error}); {rebuild}"
    if module.version != fastdream.__version__:
        return None, f"compiled for version {module.version}, this is {fastdream.__version__}; {rebuild}"
    return module, ""


def _share_threads(module: ModuleType) -> bool:
    """Let the kernels run in the threads of torch's own OpenMP library, so that there are not two pools of them.

    False where torch has none, or links it into itself: kernels then run in one thread.
    """
    library = next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"), None)
    if library is None:
        return False
    torch_cpu = ctypes.CDLL(str(library))  # already loaded; looking a name up includes what it is linked to
    names = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
    if not all(hasattr(torch_cpu, name) for name in names):
        return False
    module.use_openmp(*(ctypes.cast(getattr(torch_cpu, name), ctypes.c_void_p).value for name in names))
    return True


def _share_tensors(module: ModuleType) -> bool:
    """Let the module look at tensors by itself. False where torch does not say how in a way that it knows."""
    interface = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    return interface is not None and module.use_tensors(Tensor, Parameter, interface)


C, WHY_NOT = _load()
THREADS_SHARED = C is not None and _share_threads(C)
TENSORS_SHARED = C is not None and _share_tensors(C)


def cpu_kernels() -> str:
    """How the CPU kernels run here: their instruction set and threads. Empty if nothing is compiled."""
    if C is None:
        return ""
    threads = (
        "in torch's threads" if THREADS_SHARED else "in one thread: torch's OpenMP library was not found"
    )
    return f"{C.isa()} of {', '.join(C.isas())}; {threads}"


def available(device: torch.device) -> str | None:
    """Why these ops cannot serve tensors on `device`, with the remedy; None if they can."""
    if C is None:
        return WHY_NOT
    if device.type == "cuda":
        return _cuda_problem(device)
    return None if device.type == "cpu" else f"no kernels for {device.type}"


def _cuda_problem(device: torch.device) -> str | None:
    assert C is not None
    if not C.cuda:
        why = build_record().get("why", "")
        return f"compiled without CUDA ({why}); with nvcc, `FASTDREAM_BUILD=cuda pip install .` adds it"
    if torch.cuda.is_available() and (devices := C.cuda_device_count()) < 1:
        return f"the driver does not serve this build: {C.error_string(-devices)}"
    return cuda_problem(device)


def cuda_problem(device: torch.device) -> str | None:
    """Why no kernels of ours can run on this CUDA device, or None."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"kernels need compute capability 8.0, {device} has {capability[0]}.{capability[1]}"
    return None


def run(
    name: str, tensors: Sequence[Tensor | None], sizes: Sequence[int], scalars: Sequence[float] = ()
) -> None:
    """Run the CPU kernel `name` on contiguous tensors of one floating-point type, which the first of them has.

    Inputs and outputs are what the kernel's file in csrc/cpu/kernels lists, in its order; None stands for a tensor
    that is not there. Uses as many threads as torch does.
    """
    first = tensors[0]
    assert first is not None
    launch(name, first.element_size(), addresses(tensors), list(sizes), list(scalars))


def addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Where each tensor begins; 0 for None."""
    return [0 if x is None else x.data_ptr() for x in tensors]


def launch(name: str, itemsize: int, pointers: list[int], sizes: list[int], scalars: list[float]) -> None:
    """As `run`, for tensors whose addresses are known; whoever calls keeps them alive."""
    assert C is not None, WHY_NOT
    status = getattr(C, f"cpu_{name}")(itemsize, pointers, sizes, scalars, torch.get_num_threads())
    if status != 0:
        raise RuntimeError(f"{name}: {C.error_string(status)}")


def check_float(op: str, **tensors: Tensor) -> None:
    """ValueError unless all are float32 or all float64, on one device."""
    name, first = next(iter(tensors.items()))
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: {name} is {first.dtype}, expected torch.float32 or torch.float64")
    for other, x in tensors.items():
        if x.dtype == first.dtype and x.device == first.device:
            continue
        for what in ("dtype", "device"):
            actual, expected = getattr(x, what), getattr(first, what)
            if actual != expected:
                raise ValueError(f"{op}: {other} has {what} {actual}, expected {expected} like {name}")


def check_shape(op: str, name: str, x: Tensor, *shape: int) -> None:
    """ValueError unless x has this shape."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}, expected {list(shape)}")


def check_alike(op: str, axes: int, **tensors: Tensor) -> None:
    """ValueError unless all have the dtype, the device and the shape of the first, which has so many axes or more."""
    check_float(op, **tensors)
    name, first = next(iter(tensors.items()))
    if first.dim() < axes:
        raise ValueError(f"{op}: {name} has shape {list(first.shape)}, expected {axes} or more axes")
    for other, x in tensors.items():
        check_shape(op, other, x, *first.shape)


def empty_like(x: Tensor) -> Tensor:
    """A fresh contiguous tensor of x's shape and dtype."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors that are there, without gaps in memory."""
    return [None if x is None else x.contiguous() for x in tensors]


def rows_of(x: Tensor) -> tuple[int, int]:
    """Number of rows of x [..., N], and N."""
    return math.prod(x.shape[:-1]), x.shape[-1]


def plain(x: Tensor) -> bool:
    """Whether a kernel may be called on x past torch's dispatcher, which takes ten times as long as a small call.

    Not where gradients or a compiler must see the call, nor for tensors that are not what lies in their memory.
    """
    seen = x.requires_grad or torch.compiler.is_compiling() or transformed() or watched()
    return not seen and x.is_cpu and as_stored(x)


def as_stored(x: Tensor) -> bool:
    """Whether x is what lies in its memory: no subclass, which may stand for another, and no view of turned signs."""
    return type(x) in (Tensor, Parameter) and not x.is_neg()


def forward_mode() -> bool:
    """Whether tensors may have tangents: of torch.autograd.forward_ad, torch.func.jvp and what is made of it."""
    return forward_ad._current_level >= 0


def transformed() -> bool:
    """Whether a transformation of torch.func looks on, such as grad or vmap, or tensors may have tangents."""
    return forward_mode() or torch._C._functorch.peek_interpreter_stack() is not None


def watched() -> bool:
    """Whether calls are recorded: by torch.jit.trace, or by a mode such as that of make_fx."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None
