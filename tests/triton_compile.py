"""`python -m tests.triton_compile`: compile the kernels that ops launch, for GPUs that need not be here.

Reads the names of cases from standard input, as JSON [[op, case, preset, dtype, capability], ...], runs each op forward
and backward on tensors without memory, compiles every launch that this leads to, and writes for each case what its
kernels take. Runs in a process of its own, where Triton does not interpret.
"""

import gc
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdream.ops import triton as backend
from fastdream.ops.triton import library

from . import triton_cases as cases
from .parity_tools import results

# What the launcher that Triton generates calls its own variables.
TAKEN = {"params", "specialization", "options"}
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}


target = [0]  # the capability of the GPU that is compiled for


class Launch(NamedTuple):
    """What Triton specialises a kernel on."""

    kernel: Any
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[tuple[int, ...], ...]  # positions of what is a multiple of 16, of its parts in a tuple
    options: tuple[tuple[str, Any], ...]


def specialised(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> Launch:
    """A launch as Triton's own launcher would compile it."""
    assert not TAKEN & set(kernel.arg_names), f"{kernel.fn.__name__}: Triton's launcher uses one of {TAKEN}"
    named = dict(zip(kernel.arg_names, args, strict=False)) | constants
    signature: dict[str, Any] = {}
    fixed: dict[Any, Any] = {}
    aligned: list[tuple[int, ...]] = []
    for i, param in enumerate(kernel.params):
        value = named.pop(param.name)
        if param.is_constexpr or value is None or _is_one(value, param):
            signature[param.name], fixed[param.name] = "constexpr", value
        elif isinstance(value, tuple):
            ones = [_is_one(x, param) for x in value]
            kinds = ["constexpr" if one else _kind(x) for x, one in zip(value, ones, strict=True)]
            signature[param.name] = tuple(kinds)
            fixed |= {(i, j): 1 for j, one in enumerate(ones) if one}
            aligned += [(i, j) for j, x in enumerate(value) if _aligned(x, param)]
        else:
            signature[param.name] = _kind(value)
            aligned += [(i,)] * _aligned(value, param)
    return Launch(
        kernel, *(tuple(x.items()) for x in (signature, fixed)), tuple(aligned), tuple(named.items())
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"


def _aligned(value: Any, param: Any) -> bool:
    if isinstance(value, Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return type(value) is int and value % 16 == 0 and not param.do_not_specialize


def _is_one(value: Any, param: Any) -> bool:
    return type(value) is int and value == 1 and not param.do_not_specialize


def compile_launch(launch: Launch, capability: int) -> Any:
    """What Triton makes of it for a GPU of this capability."""
    source = ASTSource(
        launch.kernel,
        dict(launch.signature),
        dict(launch.constants),
        {place: [["tt.divisibility", 16]] for place in launch.aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))


@cache
def resources(launch: Launch, capability: int) -> dict[str, Any]:
    """Registers, bytes of shared memory, bytes spilled, and how many products add to an earlier one's sum, or round.

    Of float32 to tf32, that is, as nobody asks for: Triton makes such products of sums of products.
    """
    compiled = compile_launch(launch, capability)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", shown.stdout))
    return {
        "kernel": launch.kernel.fn.__name__,
        "constants": {str(name): str(value) for name, value in launch.constants},
        "registers": int(usage["REG"]),
        "shared": compiled.metadata.shared,
        "adding": len(re.findall(r"tt\.dot %\S+, %\S+, %(?!cst)", compiled.asm["ttgir"])),
        "rounding": len(re.findall(r"tt\.dot .*= tf32 : tensor<[\dx]+xf32>", compiled.asm["ttir"])),
        "spilled": int(usage["STACK"]) + int(usage["LOCAL"]),
    }


def launches(op: Callable[..., Any], args: tuple[Any, ...], gradients: bool, capability: int) -> list[Launch]:
    """Every launch of the op and of its gradient."""
    found: list[Launch] = []
    library.run = lambda kernel, grid, args, constants: found.append(specialised(kernel, args, constants))
    target[0] = capability
    results(op, args, gradients)
    return found


def on_tensors_without_memory(schema: str, kernel: Callable, fake: Callable) -> str:
    """Instead of `library.register`: the kernels' launches run where otherwise shapes are inferred."""
    name = f"triton_{schema.partition('(')[0]}"
    library.registry.LIBRARY.define(f"triton_{schema}")
    library.registry.LIBRARY.impl(name, kernel, "Meta")
    library.registry.OPS[name] = library.registry.Op(name, kernel)
    return f"fastdream::{name}"


def main() -> None:
    assert not backend.interpreted(), "TRITON_INTERPRET is set"
    library.register, library.capability = on_tensors_without_memory, lambda device: target[0]
    gc.freeze()  # the compiler makes many objects, and each time those of all modules were looked through
    taken = []
    for op, case, preset, dtype, capability in json.load(sys.stdin):
        args, gradients = cases.blank(op, case, preset, getattr(torch, dtype))
        found = launches(getattr(backend, op), args, gradients, capability)
        taken.append([resources(launch, capability) for launch in dict.fromkeys(found)])
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main()
