"""Kernels compiled before they are launched, by processes that need no GPU.

    pretend(90, tell)        this process takes itself to have such a GPU: `tell` gets what would be compiled
    compile_kernel(work)     compiles it, in this process or in one forked from it; Triton's cache has it then

Triton compiles a kernel where it is launched first, and one after the other. It specialises on types, on where memory
begins and on a few properties of numbers, never on what is in memory: tensors without any, torch's fake ones on the
CPU, lead to the same kernels.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

from fastdream.ops import triton as backend
from fastdream.ops.triton import library

WARP = 32
CUDA = torch.device("cuda")
# Bytes of shared memory that a program may have, by capability, where kernels may want more.
SHARED = dict.fromkeys((86, 89, 120, 121), 99 * 1024)


class Memory:
    """Stands for a tensor where Triton specialises: its dtype, and where it begins from a multiple of 16 bytes."""

    def __init__(self, x: Tensor) -> None:
        self.dtype, self.begin = x.dtype, x.data_ptr() % 16

    def data_ptr(self) -> int:
        return self.begin


class Work(NamedTuple):
    """A kernel and what it is specialised on."""

    module: str
    name: str
    args: tuple[Any, ...]
    constants: dict[str, Any]


def pretend(capability: int, tell: Callable[[Work], object]) -> None:
    """Take this process to have a GPU of that compute capability (10 * major + minor), for good.

    Ops for CUDA then run on the CPU's tensors and on fake ones, and compute nothing. `tell` gets each kernel that a
    launch would compile, once. Must come before any op of this package is taken.
    """
    library.capability = lambda device: capability
    library.register = _register_for_fakes
    backend.available = lambda device: None
    FakeTensor.data_ptr = lambda x: int(x.storage_offset()) * x.element_size()  # type: ignore[method-assign, assignment]
    driver = SimpleNamespace(  # all that Triton asks of it before it loads what it compiled
        get_current_target=lambda: GPUTarget("cuda", capability, WARP),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)
    seen: set[tuple[str, str]] = set()

    def run(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        standing = tuple(_without_memory(x) for x in args)

        def look(*, key: str, **_: Any) -> bool:
            if (kernel.fn.__name__, key) not in seen:
                seen.add((kernel.fn.__name__, key))
                tell(Work(kernel.fn.__module__, kernel.fn.__name__, standing, constants))
            return True  # it is compiled already, as far as Triton is to know

        triton.knobs.runtime.jit_cache_hook = look
        kernel.warmup(*standing, grid=grid, **constants)

    library.run = run


def compile_kernel(work: Work) -> None:
    """Compile a kernel for the GPU that this process, or the one that it was forked from, pretends to have."""
    triton.knobs.runtime.jit_cache_hook = None
    kernel = getattr(import_module(work.module), work.name)
    room = SHARED.get(library.capability(CUDA), math.inf)
    for stages in range(
        work.constants["num_stages"], 0, -1
    ):  # as `library.launch` finds how many there can be
        made = kernel.warmup(*work.args, grid=(1,), **work.constants | {"num_stages": stages})
        if made.metadata.shared <= room:
            break
    if launchers_are_compiled():
        nvidia.CudaLauncher(made.src, made.metadata)  # comes into the cache by being made


@cache
def launchers_are_compiled() -> bool:
    """Whether a C compiler makes what launches a kernel, as with Triton 3.6, and can here.

    It takes 0.2 seconds each, of which a first update of DreamerV3 needs 66 for 90 kernels.
    """
    if not hasattr(nvidia, "make_launcher"):
        return False
    try:
        nvidia.libcuda_dirs()
    except AssertionError:  # without a driver there is nothing to link
        return False
    return True


def _register_for_fakes(schema: str, kernel: Callable, fake: Callable) -> str:
    """Instead of `library.register`: where torch would only infer shapes, what launches kernels runs too."""
    return library.registry.register(f"triton_{schema}", kernel, kernel, ("CPU",))


def _without_memory(arg: Any) -> Any:
    if isinstance(arg, tuple):
        return tuple(_without_memory(x) for x in arg)
    return Memory(arg) if isinstance(arg, Tensor) else arg
