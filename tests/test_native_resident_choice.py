"""Where observing in one launch serves: which devices and calls, and what its kernels take of a device."""

from types import ModuleType

import pytest
import torch

from fastdream import ops
from fastdream.ops import reference
from fastdream.ops.native import resident, resident_op
from fastdream.ops.params import BlockGRU

from .native_tools import cuda_resources
from .test_native_resident import Case


def test_a_device_that_cannot_run_the_clusters_says_so(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """12m takes clusters of 8 where those of 16 do not fit, and none where neither does."""
    case, device = Case("12m", 2, 1, torch.bfloat16), torch.device("cuda:0")
    fits = {16: (1, ""), 8: (1, "")}
    monkeypatch.setattr(resident, "_teams", lambda shape, device: fits[shape.ranks])
    assert resident._choose(case.rssm, device) == (resident.SHAPES["12m"], "")
    fits[16] = 0, ""
    assert resident._choose(case.rssm, device) == (resident.SHAPES["12m by 8"], "")
    fits[8] = 0, "operation not supported"
    reason = resident.why_not(case.rssm, torch.bfloat16, 2, device)
    clusters = "8 clusters of 16 CTAs or 8 clusters of 8 CTAs"
    assert reason == f"cuda:0, which cannot run {clusters} at once: operation not supported"
    assert "torch.float32" in resident.why_not(case.rssm, torch.float32, 2, device)


def test_a_launch_that_gave_up_is_said_of_the_device_without_its_number(monkeypatch: pytest.MonkeyPatch):
    """As `--device cuda` names it; kernels know the numbers of their tensors' devices alone."""
    words = {torch.device("cuda", i): torch.zeros((), dtype=torch.int32) for i in range(2)}
    monkeypatch.setattr(resident_op, "_failed", words.__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    words[torch.device("cuda", 1)].fill_(1)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(RuntimeError, match="an earlier launch gave up waiting"):
            ops.check(torch.device(name))
    ops.check(torch.device("cuda:0"))


def test_auto_on_cuda_says_and_gives_the_rest_to_the_reference(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native, "available", lambda device: None)
    monkeypatch.setattr(native, "op_available", lambda op, device: None)
    chosen = ops.load(device="cuda")
    row = next(row for row in ops.table(chosen) if row.op == "observe")
    assert row.backend == "native" and "at sizes 1m, 12m, 25m" in row.reason
    case = Case("tiny", 2, 2, torch.bfloat16)
    monkeypatch.setattr(reference, "observe", lambda rssm, deter, *rest: "reference")
    monkeypatch.setattr(native, "observe", lambda *args: "native")
    chosen = ops.load(device="cuda")
    assert chosen.observe(*case.trees, case.reset, case.noise) == "native"
    core = case.rssm.core
    assert isinstance(core, BlockGRU)
    deep = case.rssm._replace(core=core._replace(hidden=core.hidden * 2))
    assert chosen.observe(deep, *case.trees[1:], case.reset, case.noise) == "reference"
    monkeypatch.setattr(native, "op_available", lambda op, device: "no clusters" if op == "observe" else None)
    row = next(row for row in ops.table(ops.load(device="cuda")) if row.op == "observe")
    assert row.backend == "reference" and "no clusters" in row.reason


def test_auto_on_cuda_takes_the_single_launch_where_it_is_faster_than_triton(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    from fastdream.ops import triton

    for module in (native, triton):
        monkeypatch.setattr(module, "available", lambda device: None)
    monkeypatch.setattr(native, "op_available", lambda op, device: None)
    monkeypatch.setattr(triton, "observe", lambda *args: "triton")
    monkeypatch.setattr(reference, "observe", lambda rssm, deter, *rest: "reference")
    monkeypatch.setattr(native, "observe", lambda *args: "native")
    chosen = ops.load(device="cuda")
    for name, expected in (("1m", "native"), ("25m", "triton")):
        case = Case(name, 2, 1, torch.bfloat16)
        assert chosen.observe(*case.trees, case.reset, case.noise) == expected
    assert ops.load("triton", device="cuda").observe(*case.trees, case.reset, case.noise) == "triton"
    row = next(row for row in ops.table(chosen) if row.op == "observe")
    assert row.backend == "native" and "triton for" in row.reason and "at size 1m" in row.reason
    monkeypatch.setattr(native, "op_available", lambda op, device: "no clusters" if op == "observe" else None)
    row = next(row for row in ops.table(ops.load(device="cuda")) if row.op == "observe")
    assert row.backend == "triton" and "no clusters" in row.reason


# Registers a thread of each direction; at 128 ptxas begins to spill. Shared memory is held by the sources themselves.
@pytest.mark.parametrize("direction, registers", [("forward", 112), ("backward", 120)])
def test_resident_kernels_do_not_spill(native: ModuleType, direction: str, registers: int):
    used = cuda_resources(native, f"resident/{direction}.cu", "sm_90a")
    assert len(used) == len(resident.SHAPES)
    assert all(x.spilled == 0 and x.registers <= registers for x in used), used
