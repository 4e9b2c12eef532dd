"""What the tests of compiled ops share: results with gradients, and the rule for their errors."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdream.ops.native.registry import OPS

from .ops_tools import leaves, mapped


def results(op: Callable[..., Tensor], args: tuple, grad: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradient of every leaf that wants one."""
    y = op(*args)
    wanted = [x for x in leaves(args) if x.requires_grad]
    grad = torch.ones_like(y) if grad is None else grad.to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def recorded(patch: pytest.MonkeyPatch, name: str) -> list[tuple]:
    """The arguments of every later call that computes by the kernel of fastdream::name."""
    calls, kernel = [], OPS[name].kernel
    patch.setattr(OPS[name], "kernel", lambda *args: calls.append(args) or kernel(*args))
    return calls


def assert_as_good_as_reference(op: Callable, expected: Callable, args: tuple) -> None:
    """Error against float64 at most twice (gradients: three times) that of the reference in the same dtype."""
    wide = mapped(lambda x: x.detach().double().requires_grad_(x.requires_grad), args)
    shape = expected(*wide).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    truth, theirs = results(expected, wide, grad), results(expected, args, grad)
    # In float64 the reference is its own truth.
    floor = (8 if theirs[0].dtype == torch.float32 else 64) * torch.finfo(theirs[0].dtype).eps
    for i, (our, true, their) in enumerate(zip(results(op, args, grad), truth, theirs, strict=True)):
        assert our.dtype == their.dtype and our.shape == their.shape
        if our.numel():
            error, reference_error = ((x.double() - true).abs().max().item() for x in (our, their))
            allowed = (3 if i else 2) * reference_error + floor * (1 + true.abs().max().item())
            assert error <= allowed, (i, error, reference_error)


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))


class Usage(NamedTuple):
    """What a compiled CUDA kernel takes of a thread: registers, and bytes that did not fit into them."""

    registers: int
    spilled: int


def cuda_resources(native: ModuleType, source: str, arch: str) -> list[Usage]:
    """Of every kernel for `arch` that the installed library has of `source`, the end of a path."""
    module = native.library.C
    if not module.cuda:
        pytest.skip(f"compiled without CUDA: {native.build_record()['why']}")
    triton = pytest.importorskip("triton", reason="Triton, which brings the tool for this, is not installed")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    shown = subprocess.run([tool, "-res-usage", module.__file__], capture_output=True, text=True, check=True)
    found = []
    for part in re.split("Fatbin (?:elf|ptx) code:", shown.stdout)[1:]:
        facts = dict(re.findall(r"^(arch|identifier) = (.*)$", part, re.M))
        if facts["arch"] == arch and facts["identifier"].endswith(source):
            usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part)
            found += [Usage(int(registers), int(stack) + int(local)) for registers, stack, local in usage]
    return found


def check_others_run(kernel: Callable[[], object]) -> None:
    """No thread is ever asked to yield here, so this one can only look on if the kernel releases the GIL."""
    inside, seen = [False], []

    def work() -> None:
        for _ in range(50):
            inside[0] = True
            kernel()
            inside[0] = False

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            seen.append(inside[0])
            time.sleep(1e-4)
    finally:
        sys.setswitchinterval(interval)
    assert any(seen)
