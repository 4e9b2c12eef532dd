"""The compiled kernels as part of a process: its threads, its lock, its forks, and processors of other kinds."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastdream.ops import reference

from .native_tools import check_others_run

pytestmark = pytest.mark.usefixtures("native")

START = """
import os, sys, torch
from fastdream.ops import native
from fastdream.ops.params import Layer
x = torch.randn(2000, 100)
layers = (Layer(torch.randn(100, 100)),)
def threads():
    return len(os.listdir("/proc/self/task"))
def work():
    native.symlog(x), native.mlp(x, layers), native.norm_act(x, None, None)
"""
FORK = """
torch.set_num_threads(2)
{before}
child = os.fork()
if child == 0:
    work()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
COUNT = """
torch.set_num_threads({n})
before = threads()
work()
print(threads() - before)
"""

on_linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc"
)


def run(code: str) -> str:
    """What a fresh interpreter prints; one that hangs is a failure."""
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@on_linux
@pytest.mark.parametrize(("n", "more"), [(1, 0), (2, 1), (3, 2)])
def test_as_many_threads_as_torch_is_given(native: ModuleType, n: int, more: int):
    if not native.library.THREADS_SHARED:
        pytest.skip("torch's threads are not shared here")
    assert int(run(COUNT.format(n=n))) == more


@on_linux
def test_threads_are_torch_s_own():
    """After torch has started its threads, kernels start no others."""
    assert (
        run(
            "torch.set_num_threads(2); x.exp_(); work(); n = threads(); x @ x.t(); work(); print(threads() - n)"
        )
        == "0"
    )


@pytest.mark.parametrize("before", ["work()", "(x @ x.t()).exp()", ""], ids=["kernels", "torch", "nothing"])
def test_a_forked_process_computes(before: str):
    """Its parent's threads are gone, whether kernels or torch had started them."""
    assert run(FORK.format(before=before)) == "7"


def test_kernels_let_other_threads_run(native: ModuleType):
    x = torch.randn(300, 4000)
    y = torch.empty_like(x)
    check_others_run(lambda: native.library.run("symlog", (x, y), (x.numel(),)))


def test_threads_of_python_do_not_disturb_each_other(native: ModuleType, two_threads: None):
    """Kernels with two threads each, called from four."""
    inputs = [torch.randn(300, 100) for _ in range(4)]
    results: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = native.symlog(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(inputs):
        torch.testing.assert_close(results[i], reference.symlog(x))


def test_every_instruction_set_of_the_processor_gives_the_same(native: ModuleType, isa: str):
    x = torch.randn(7, 33, dtype=torch.float64)
    assert native.cpu_kernels().startswith(f"{isa} of ") and isa in native.library.C.isas()
    torch.testing.assert_close(native.symlog(x), reference.symlog(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda C: C.use_isa("mmx"), ValueError, "unknown instruction set mmx"),
        (lambda C: C.cpu_symlog(4, [0], [1], [], 1), RuntimeError, "too few pointers"),
        (lambda C: C.cpu_symlog(4, [0, 0], [], [], 1), RuntimeError, "too few sizes"),
        (lambda C: C.cpu_symlog(4, [0, 0], [0, 0], [], 1), RuntimeError, "too many arguments"),
    ],
)
def test_wrong_calls_raise(native: ModuleType, call: Callable, error: type, message: str):
    with pytest.raises(error, match=message):
        call(native.library.C)
