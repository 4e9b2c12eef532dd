"""Observing in one launch on a GPU of compute capability 9.0: parity, captured graphs, a thousand repeats."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream import ops
from fastdream.ops import reference
from fastdream.ops.native import resident, resident_op

from .observe_tools import assert_as_good
from .ops_tools import leaves
from .test_native_resident import Case

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
CASES = [
    ("tiny", 5, 4),
    ("tiny", 16, 64),
    ("1m", 16, 64),
    ("1m", 35, 3),
    ("12m", 16, 64),
    ("12m", 5, 2),
    ("25m", 16, 8),
]


@pytest.fixture(autouse=True)
def served(native: ModuleType) -> Iterator[None]:
    """A test answers for its own launches alone: one that waited in vain does not fail those after it."""
    for reason in (native.available(DEVICE), resident.unavailable(DEVICE)):
        if reason:
            pytest.skip(reason)
    yield
    torch.cuda.synchronize()
    failed = resident_op._failed(DEVICE)
    gave_up = bool(failed)
    failed.zero_()
    assert not gave_up, "a CTA was waited for in vain"


def case_of(name: str, batch: int, length: int) -> Case:
    case = Case(name, batch, length, torch.bfloat16, device="cuda")
    if reason := resident.why_not(case.rssm, torch.bfloat16, batch, DEVICE):
        pytest.skip(reason)
    return case


def step_of(case: Case) -> Callable[[], list[Tensor]]:
    """Draws and their gradients, from cotangents that were drawn once: nothing in it waits for the device."""
    inputs = list(leaves(case.trees))
    grads = [torch.randn_like(x) for x in case.draw(resident.observe)[:3]]

    def step() -> list[Tensor]:
        outputs = case.draw(resident.observe)[:3]
        gradients = torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
        return [*(x.detach() for x in outputs), *(x for x in gradients if x is not None)]

    return step


def differ(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Whether any is not bitwise the same, on the device."""
    return torch.stack([(x != y).any() for x, y in zip(first, second, strict=True)]).any()


@pytest.mark.parametrize("name, batch, length", CASES)
def test_agrees_with_reference(poison: list[str], name: str, batch: int, length: int):
    case = case_of(name, batch, length)
    assert_as_good(case.replay(resident.observe), case.replay(reference.observe), case.trees, 3)
    assert poison


def test_smaller_clusters_agree_with_reference(monkeypatch: pytest.MonkeyPatch):
    case = case_of("12m by 8", 16, 16)
    others = {name: shape for name, shape in resident.SHAPES.items() if name != "12m"}
    monkeypatch.setattr(resident, "SHAPES", others)
    assert_as_good(case.replay(resident.observe), case.replay(reference.observe), case.trees, 3)


@pytest.mark.parametrize("name, batch, length", [("1m", 16, 16), ("12m", 7, 4)])
def test_agrees_with_the_player(name: str, batch: int, length: int):
    """The same draws as on the CPU, but where rounding puts a sum on the other side of the noise."""
    case = case_of(name, batch, length)
    alone = Case(name, batch, length, torch.bfloat16)
    ours, theirs = case.draw(resident.observe), alone.draw(resident.observe)
    assert ours.index is not None and theirs.index is not None
    assert (ours.index.cpu() == theirs.index)[:, 0].float().mean() > 0.97
    again = resident.observe(*case.trees, case.reset, None, theirs.index.cuda())
    for our, their in zip(again[:3], theirs[:3], strict=True):
        torch.testing.assert_close(our.cpu().float(), their.float(), atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("name, length", [("1m", 64), ("12m", 64), ("25m", 16)])
def test_a_thousand_repeats_neither_hang_nor_drift(name: str, length: int):
    """Bitwise the same, forward and backward; a barrier that was waited for in vain raises at the next call."""
    step = step_of(case_of(name, 16, length))
    first = step()
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(1000):
        different += differ(first, step())
    assert different == 0


@pytest.mark.parametrize("name", ["1m", "12m"])
def test_runs_in_a_captured_graph(name: str):
    """Forward and backward, on the capturing stream: replays see new inputs."""
    case = case_of(name, 16, 8)
    step = step_of(case)
    before = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    case.noise.copy_(torch.rand_like(case.noise))
    for _ in range(3):
        graph.replay()
    assert differ(before, captured) and not differ(captured, step())


@pytest.mark.parametrize("name", ["1m", "12m"])
def test_runs_beside_other_work(name: str):
    """Where other streams keep the chip busy, a launch waits for them and is right."""
    step = step_of(case_of(name, 16, 16))
    first, other = step(), torch.cuda.Stream()
    big = torch.randn(4096, 4096, device=DEVICE)
    other.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        with torch.cuda.stream(other):
            for _ in range(10):
                torch.mm(big, big)
        assert not differ(first, step())


def test_auto_takes_it_where_it_is_the_fastest():
    """With the bits of the call by name."""
    case = case_of("1m", 16, 4)
    chosen = ops.load(device=DEVICE)
    assert next(row for row in ops.table(chosen) if row.op == "observe").backend == "native"
    ours, theirs = case.draw(chosen.observe), case.draw(resident.observe)
    assert torch.equal(ours.deter, theirs.deter) and torch.equal(ours.logit, theirs.logit)
