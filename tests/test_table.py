"""Choosing ops: what is picked, what is refused, and what is said."""

import logging
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream import ops
from fastdream.ops import native as native_ops
from fastdream.ops import reference
from fastdream.ops import triton as triton_ops


class Fast(ModuleType):
    """A backend that has two ops and calls the reference, for whatever the compiled one has by now."""

    reason: str | None = None  # why it cannot serve

    def available(self, device: torch.device) -> str | None:
        return self.reason

    def lambda_return(self, *args: Tensor) -> Tensor:
        return reference.lambda_return(*args)

    def norm_act(self, *args: Tensor) -> Tensor:
        return reference.norm_act(*args)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Fast:
    """On the CPU it is what "auto" tries first."""
    module = Fast("fast_ops")
    monkeypatch.setitem(sys.modules, "fast_ops", module)
    monkeypatch.setitem(ops._BACKENDS, "fast", "fast_ops")
    monkeypatch.setitem(ops._FASTEST, "cpu", ("fast", "reference"))
    ops._say_once.cache_clear()
    return module


@pytest.fixture
def broken(fast: Fast) -> str:
    """A machine on which it is not compiled."""
    fast.reason = "not compiled (no C++ compiler found)"
    return fast.reason


def test_reference_has_every_op():
    chosen = ops.load("reference", strict=True)
    assert all(getattr(chosen, op) is getattr(reference, op) for op in ops.OPS)
    assert {row.backend for row in ops.table(chosen)} == {"reference"}
    assert not any(row.reason for row in ops.table(chosen))


def test_auto_takes_what_is_compiled(native: ModuleType):
    chosen = ops.load()
    with pytest.raises(
        ValueError, match="lambda_return: reward has shape"
    ):  # in the words of the compiled one
        chosen.lambda_return(*torch.zeros(4))
    row = next(row for row in ops.table(chosen) if row.op == "lambda_return")
    assert row == ops.Row("lambda_return", "native", "")


def test_auto_takes_the_fastest_that_has_an_op(fast: Fast):
    chosen = ops.load()
    assert (chosen.lambda_return, chosen.symlog) == (fast.lambda_return, reference.symlog)
    rows = {row.op: row for row in ops.table(chosen)}
    assert tuple(rows) == ops.OPS
    assert rows["lambda_return"] == ops.Row("lambda_return", "fast", "")
    assert rows["symlog"] == ops.Row("symlog", "reference", "fast has no symlog")


def test_auto_falls_back_and_says_so_once(broken: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "fastdream"):
        chosen = [ops.load(), ops.load()]
    assert chosen[0].lambda_return is reference.lambda_return
    row = next(row for row in ops.table(chosen[0]) if row.op == "lambda_return")
    assert row == ops.Row("lambda_return", "reference", f"fast: {broken}")
    assert [record.getMessage() for record in caplog.records] == [f"slower ops in use: fast: {broken}"]


def test_a_machine_on_which_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native_ops, "available", lambda device: "not compiled")
    assert {row.backend for row in ops.table(ops.load())} == {"reference"}


def test_strict_refuses_to_fall_back(broken: str):
    with pytest.raises(ValueError, match=r"fast cannot serve norm_act: not compiled"):
        ops.load(strict=True)
    with pytest.raises(ValueError, match=r"fast cannot serve norm_act: not compiled"):
        ops.load("fast", strict=True)


def test_strict_refuses_what_a_named_backend_lacks(fast: Fast):
    with pytest.raises(ValueError, match=r"fast cannot serve mlp: it does not implement it"):
        ops.load("fast", strict=True)


def test_strict_auto_is_content_with_ops_that_only_the_reference_has(fast: Fast):
    assert ops.load(strict=True).symlog is reference.symlog


def test_named_backend_falls_back_op_by_op(fast: Fast):
    chosen = ops.load("fast")
    assert (chosen.lambda_return, chosen.symlog) == (fast.lambda_return, reference.symlog)


def test_pin_takes_one_op(fast: Fast):
    chosen = ops.load("reference", strict=True, lambda_return="fast")
    assert [row.op for row in ops.table(chosen) if row.backend == "fast"] == ["lambda_return"]
    assert ops.load("fast", lambda_return="reference").lambda_return is reference.lambda_return


def test_pin_is_never_replaced(fast: Fast):
    with pytest.raises(ValueError, match="fast cannot serve symexp: it does not implement it"):
        ops.load(symexp="fast")
    fast.reason = "not compiled"
    with pytest.raises(ValueError, match="fast cannot serve lambda_return: not compiled"):
        ops.load("reference", lambda_return="fast")


@pytest.mark.parametrize(
    ("args", "pins", "message"),
    [
        (("natve",), {}, "unknown backend 'natve'; did you mean 'native'"),
        ((None,), {}, "unknown backend None; did you mean"),
        ((), {"device": "gpu"}, "unknown device 'gpu': use cpu, cuda or cuda:<n>"),
        ((), {"lambda_retrun": "native"}, "unknown op 'lambda_retrun'; did you mean 'lambda_return'"),
        ((), {"symlog": "refrence"}, "unknown backend 'refrence'; did you mean 'reference'"),
        ((), {"rows": "native"}, "unknown op 'rows'"),
    ],
)
def test_unknown_names_get_the_nearest(args: tuple[str, ...], pins: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        ops.load(*args, **pins)


def test_other_devices_get_the_reference():
    assert {row.backend for row in ops.table(ops.load(device="meta"))} == {"reference"}


def test_cuda_gets_what_has_a_cuda_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native_ops, "available", lambda device: None)
    monkeypatch.setattr(native_ops, "op_available", lambda op, device: None)
    chosen = ops.load(device="cuda")
    served = {row.op for row in ops.table(chosen) if row.backend == "native"}
    assert served == set(native_ops.ON_CUDA)
    assert chosen.symlog is reference.symlog


def test_cuda_gets_triton_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "available", lambda device: None)
    monkeypatch.setattr(native_ops, "available", lambda device: "compiled without CUDA")
    rows = {row.op: row for row in ops.table(ops.load(device="cuda"))}
    assert {op for op, row in rows.items() if row.backend == "triton"} == set(triton_ops.OPS)
    assert rows["norm_act"].reason == "reference for double precision, rows of over 16384"
    assert rows["gru"].reason == "triton has no gru; native has no gru"


def test_triton_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Unless its interpreter is on."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.load("triton").norm_act is not reference.norm_act
    monkeypatch.delenv("TRITON_INTERPRET")
    for args, pins in (("triton",), {}), (("reference",), {"norm_act": "triton"}):
        with pytest.raises(
            ValueError, match="triton cannot serve .*: kernels are for CUDA devices; TRITON_INT"
        ):
            ops.load(*args, **pins)
    assert {row.backend for row in ops.table(ops.load())} <= {"native", "reference"}


@pytest.mark.parametrize(
    ("version", "problem"), [("3.5.1", "Triton 3.5.1 is too old"), (None, "Triton is not installed")]
)
def test_triton_that_is_old_or_missing(monkeypatch: pytest.MonkeyPatch, version: str | None, problem: str):
    def found(package: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(metadata, "version", found)
    reason = triton_ops.available(torch.device("cuda"))
    assert reason and reason.startswith(problem) and "pip install 'triton>=3.6'" in reason


def test_triton_needs_a_gpu_of_compute_capability_8(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = triton_ops.available(torch.device("cuda:1"))
    assert reason == "kernels need compute capability 8.0, cuda:1 has 7.5"


def test_cuda_without_a_device_says_why(native: ModuleType):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    reason = native.available(torch.device("cuda"))
    assert reason and ("compiled without CUDA" in reason or "torch sees no CUDA device" in reason)


def test_format_has_a_line_an_op():
    lines = ops.format_table(ops.load("reference")).splitlines()
    assert [line.split() for line in lines] == [[op, "reference"] for op in ops.OPS]


def test_imports_are_light():
    """fastdream brings torch alone, and choosing ops brings no Triton and no gymnasium."""
    code = """
import sys, torch
before = set(sys.modules)
import fastdream
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - {"pkgutil"}))
from fastdream import ops
ops.load()
print(sorted({"triton", "gymnasium", "tyro", "rich", "tensorboard"} & (set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['fastdream']", "[]"], done.stderr
