"""Rows whose ends are padding: what lies there means nothing, and comes out as zeros where something reads on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference, twohot_bins
from fastdream.ops import triton as backend
from fastdream.ops.triton.padding import as_rows, empty_rows, padded, readable

from .ops_tools import Maker, chain
from .parity_cases import Case
from .parity_tools import changed, check, results
from .test_triton import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def beside_nan(x: Tensor) -> Tensor:
    """The same numbers in padded rows, with NaN behind them."""
    whole = x.new_full((*x.shape[:-1], padded(x.shape[-1])), float("nan"))
    whole[..., : x.shape[-1]] = x
    return whole[..., : x.shape[-1]].requires_grad_(x.requires_grad)


@pytest.mark.parametrize(("width", "apart"), [(1, 8), (8, 8), (17, 24), (255, 256), (256, 256)])
def test_rows_lie_apart(width: int, apart: int):
    x = empty_rows(torch.zeros(1, device=DEVICE), 3, 4, width)
    assert padded(width) == apart and x.shape == (3, 4, width) and as_rows(x).stride(0) == apart
    assert as_rows(x).data_ptr() == x.data_ptr() and readable(as_rows(x)) == apart


def test_nothing_is_read_that_is_not_there():
    numbers = torch.zeros(10 * 24, device=DEVICE)
    assert readable(numbers.as_strided((10, 17), (24, 1))) == 24
    assert readable(numbers.as_strided((10, 17), (24, 1), 1)) == 17, "the last row ends with the memory"
    assert readable(numbers[: 10 * 17].view(10, 17)) == 17
    assert readable(numbers.as_strided((0, 17), (24, 1))) == 17
    assert as_rows(numbers.view(24, 10).t()).is_contiguous()


def spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of the same arguments, the first among NaN; its gradient comes back as it is."""
    return lambda x, *args: function(_Beside.apply(x), *args)


class _Beside(torch.autograd.Function):
    """`beside_nan`, also of the gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return beside_nan(x.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("bins", [41, 255])
@pytest.mark.parametrize("op", ["twohot_mean", "twohot_loss"])
def test_logits_beside_anything(op: str, bins: int):
    m = Maker(3, torch.float32)
    target = (m.normal(2, 9, scale=30.0).detach(),) if op == "twohot_loss" else ()
    args: Any = changed(lambda x: x.to(DEVICE), (m.normal(9, bins), *target, twohot_bins(bins)))
    check(spread(getattr(backend, op)), op, Case(lambda *_: args), args, torch.float32)


def test_gradients_beside_anything():
    """What comes back to layers of odd widths, linear or not."""
    m = Maker(3, torch.float32)
    args: Any = m.normal(9, 11), (chain(m, 11, 6, 5), chain(m, 11, 3, linear=False), chain(m, 11, 9))
    args = changed(lambda x: x.to(DEVICE), args)

    def after(mlps: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, nets: [_Back.apply(y) for y in mlps(x, nets)]

    ours, theirs = (results(after(op.mlps), args, True) for op in (backend, reference))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


class _Back(torch.autograd.Function):
    """Nothing forward; the gradient comes back among NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return beside_nan(grad)
