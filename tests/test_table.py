"""Choosing ops: what is picked, what is refused, and what is said."""

import logging
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from fastdream import ops
from fastdream.ops import native as native_ops
from fastdream.ops import reference


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine on which nothing is compiled."""
    reason = "not compiled (no C++ compiler found)"
    monkeypatch.setattr(native_ops, "available", lambda device: reason)
    ops._say_once.cache_clear()
    return reason


def test_reference_has_every_op():
    chosen = ops.load("reference", strict=True)
    assert all(getattr(chosen, op) is getattr(reference, op) for op in ops.OPS)
    assert {row.backend for row in ops.table(chosen)} == {"reference"}
    assert not any(row.reason for row in ops.table(chosen))


def test_auto_takes_what_is_compiled(native: ModuleType):
    chosen = ops.load()
    assert chosen.lambda_return is native.lambda_return
    rows = {row.op: row for row in ops.table(chosen)}
    assert tuple(rows) == ops.OPS
    assert rows["lambda_return"] == ops.Row("lambda_return", "native", "")
    assert rows["norm_act"] == ops.Row("norm_act", "reference", "native has no norm_act")


def test_auto_falls_back_and_says_so_once(broken: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "fastdream"):
        chosen = [ops.load(), ops.load()]
    assert chosen[0].lambda_return is reference.lambda_return
    row = next(row for row in ops.table(chosen[0]) if row.op == "lambda_return")
    assert row == ops.Row("lambda_return", "reference", f"native: {broken}")
    assert [record.getMessage() for record in caplog.records] == [f"slower ops in use: native: {broken}"]


def test_strict_refuses_to_fall_back(broken: str):
    with pytest.raises(ValueError, match=r"native cannot serve lambda_return: not compiled"):
        ops.load(strict=True)
    with pytest.raises(ValueError, match=r"native cannot serve norm_act: it does not implement it"):
        ops.load("native", strict=True)


def test_strict_auto_is_content_with_ops_that_only_the_reference_has(native: ModuleType):
    assert ops.load(strict=True).norm_act is reference.norm_act


def test_named_backend_falls_back_op_by_op(native: ModuleType):
    chosen = ops.load("native")
    assert chosen.lambda_return is native.lambda_return
    assert chosen.symlog is reference.symlog


def test_pin_takes_one_op(native: ModuleType):
    chosen = ops.load("reference", strict=True, lambda_return="native")
    assert [row.op for row in ops.table(chosen) if row.backend == "native"] == ["lambda_return"]
    assert ops.load("native", lambda_return="reference").lambda_return is reference.lambda_return


def test_pin_is_never_replaced(broken: str):
    with pytest.raises(ValueError, match="native cannot serve lambda_return: not compiled"):
        ops.load("reference", lambda_return="native")
    with pytest.raises(ValueError, match="native cannot serve symexp: it does not implement it"):
        ops.load(symexp="native")


@pytest.mark.parametrize(
    ("args", "pins", "message"),
    [
        (("natve",), {}, "unknown backend 'natve'; did you mean 'native'"),
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
