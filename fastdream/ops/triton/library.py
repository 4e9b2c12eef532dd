"""Launching Triton kernels, and telling torch about the ops that they compute.

Ops are named fastdream::triton_<op>, beside the native fastdream::<op>: they take half precision too, and keep other
tensors for the gradient.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from fastdream.ops.native import registry
from fastdream.ops.native.library import check_shape, contiguous, empty_like, rows_of
from fastdream.ops.native.registry import register_gradient
from fastdream.ops.triton import interpreted
from fastdream.ops.triton.config import Tile

DEVICES = ("CPU", "CUDA") if interpreted() else ("CUDA",)
OVERLAPPING = True  # kernels that can, with the one before; see `overlap`
FEWER: dict[tuple[Any, ...], int] = {}  # stages of launches for which this GPU has too little memory
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first tensor, in the current stream; a grid without programs runs nothing.

    constants: constexpr arguments, and Triton's options num_warps, num_stages, enable_fp_fusion, launch_pdl. There are
    fewer stages where the GPU has too little memory for so many.
    """
    flat = (x for arg in args for x in (arg if isinstance(arg, tuple) else (arg,)))
    device = next(x.device for x in flat if isinstance(x, Tensor))
    if "PDL" in kernel.arg_names:
        overlaps = OVERLAPPING and capability(device) >= 90
        constants |= {"PDL": overlaps} | ({"launch_pdl": True} if overlaps else {})
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _run_in_stages(kernel, grid, args, {"enable_fp_fusion": True, "num_stages": 1} | constants)


def launch_tiles(kernel: Any, grid: tuple[int, ...], tile: Tile, *args: Any, **constants: Any) -> None:
    """As `launch`, of programs that have such a tile [BM, BN] at a time."""
    launch(kernel, grid, *args, BM=tile.rows, BN=tile.cols, num_warps=tile.warps, **constants)


def _run_in_stages(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Run a kernel in as many stages as fit: RTX, L4 and L40 have not half the shared memory of A100 and H100.

    How many stages there are changes no bit of what is computed.
    """
    key, stages = (kernel.fn.__name__, *constants.items()), constants["num_stages"]
    stages = FEWER.get(key, stages) if FEWER else stages
    while True:
        try:
            return run(kernel, grid, args, constants | {"num_stages": stages})
        except OutOfResources:
            if stages == 1:
                raise
        FEWER[key] = stages = stages - 1


def run(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Every launch of every kernel; tests replace it to see which."""
    kernel[grid](*args, **constants)


def capability(device: torch.device) -> int:
    """Compute capability as 10 * major + minor, 0 where there is none: what tables of configurations go by."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def check_floats(op: str, **tensors: Tensor | None) -> None:
    """ValueError unless all that are there are float32 or half precision, on one device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    first, device = next((name, x.device) for name, x in given.items())
    for name, x in given.items():
        if x.dtype not in FLOATS:
            raise ValueError(f"{op}: {name} is {x.dtype}, expected {', '.join(map(str, FLOATS))}")
        if x.device != device:
            raise ValueError(f"{op}: {name} has device {x.device}, expected {device} like {first}")


def register(schema: str, kernel: Callable, fake: Callable) -> str:
    """Tell torch of an op `triton_name(...) -> ...`: what computes it and what its results look like."""
    return registry.register(f"triton_{schema}", kernel, fake, DEVICES)


def register_once_differentiable(
    forward: str, backward: str, gradient: Callable, setup: Callable, op: str
) -> None:
    """Make `backward` the gradient of `forward`, through `gradient(ctx, *grads)`; a second gradient is refused."""
    registry.register_once_differentiable(forward, backward, gradient, setup, op, "triton")


__all__ = [
    "DEVICES",
    "FLOATS",
    "capability",
    "check_floats",
    "check_shape",
    "contiguous",
    "empty_like",
    "launch",
    "launch_tiles",
    "register",
    "register_gradient",
    "register_once_differentiable",
    "rows_of",
    "run",
]
