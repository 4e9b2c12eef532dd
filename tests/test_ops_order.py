"""Percentiles: against sorting, at ends, among equal and infinite numbers, and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import order

from .test_triton import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
BACKENDS = pytest.mark.parametrize(
    "op", [reference.percentiles, backend.percentiles], ids=["reference", "triton"]
)
SPECIAL = [-math.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38, math.inf]


def numbers(count: int, kind: str) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    if kind == "equal":
        return torch.full((count,), -2.5, device=DEVICE)
    if kind == "special":
        return torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), (count,), generator=draw)].to(DEVICE)
    return (torch.randn(count, generator=draw) * 100 - 30).to(DEVICE)


@BACKENDS
@pytest.mark.parametrize("kind", ["normal", "equal", "special"])
@pytest.mark.parametrize("count", [1, 2, 3, 21, 100, 16383, 16384, 16385])
def test_between_order_statistics(op: Callable[..., tuple[Tensor, Tensor]], count: int, kind: str):
    x = numbers(count, kind)
    for low, high in ((5.0, 95.0), (0.0, 100.0), (50.0, 50.0)):
        ordered, found = x.sort().values.double(), torch.stack(op(x, low, high)).double()
        for percent, ours in zip((low, high), found, strict=True):
            position = percent / 100 * (count - 1)
            ends = ordered[math.floor(position)], ordered[math.ceil(position)]
            if ends[0].isinf() or ends[1].isinf():
                assert ours.isinf() or ours.isnan()
            else:
                true = ends[0] + (position - math.floor(position)) * (ends[1] - ends[0])
                assert abs(ours - true) <= 1e-6 * ordered[ordered.isfinite()].abs().max()


@pytest.mark.parametrize("kind", ["normal", "equal", "special"])
def test_the_same_bits(kind: str):
    x = numbers(15360, kind)
    ours, theirs = (torch.stack(op(x, 5.0, 95.0)) for op in (backend.percentiles, reference.percentiles))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@BACKENDS
def test_nan_is_above_all(op: Callable[..., tuple[Tensor, Tensor]]):
    x = torch.tensor([3.0, math.nan, -1.0, -math.nan, 2.0], device=DEVICE)
    low, high = op(x, 25.0, 75.0)
    assert low == 2 and high.isnan()


@BACKENDS
def test_no_order_statistics(op: Callable[..., tuple[Tensor, Tensor]]):
    with pytest.raises(ValueError, match="got 0 numbers"):
        op(torch.zeros(0, 3, device=DEVICE), 5.0, 95.0)
    for low, high in ((50.0, 40.0), (-1.0, 5.0), (5.0, 101.0)):
        with pytest.raises(ValueError, match=f"got 3 numbers, {low} and {high}"):
            op(torch.zeros(3, device=DEVICE), low, high)


def test_any_shape_and_no_gradient():
    x = torch.randn(4, 6, device=DEVICE, requires_grad=True).t()
    for op in (reference.percentiles, backend.percentiles):
        assert not any(y.requires_grad for y in op(x, 5.0, 95.0))
    assert order.MOST >= 16 * 64 * 15, "a usual batch of returns is sorted"
