"""Ops are called past torch's dispatcher where nobody has to see the call, and compute the same."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream import ops
from fastdream.ops.native.registry import OPS, call

from .native_tools import recorded, results


class Seen(TorchDispatchMode):
    """Hears of every op that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(op.name())
        return op(*args, **(kwargs or {}))


def layers(width: int) -> ops.Layers:
    draw = torch.Generator().manual_seed(0)
    shapes = (width, width), (width,), (width,)
    return tuple(
        ops.Layer(*(torch.randn(s, generator=draw, requires_grad=True) for s in shapes), None, "rms", "silu")
        for _ in range(2)
    )


def inputs(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes)


CASES: dict[str, tuple[Callable[[ModuleType], Callable[..., Tensor]], tuple]] = {
    "mlps": (lambda native: native.mlp, (*inputs((3, 4)), layers(4))),
    "norm_act": (lambda native: native.norm_act, (*inputs((3, 4), (4,)), None)),
    "lambda_return": (lambda native: native.lambda_return, inputs(*[(3, 4)] * 4)),
    "categorical_kl": (
        lambda native: lambda *x: torch.stack(native.categorical_kl(*x)),
        inputs(*[(3, 2, 4)] * 2),
    ),
    "symlog": (lambda native: native.symlog, inputs((3, 4))),
}


@pytest.mark.parametrize("name", CASES)
def test_what_watches_sees_the_call_and_changes_nothing(native: ModuleType, name: str) -> None:
    make, args = CASES[name]
    with Seen() as seen:
        watched = results(make(native), args)
    assert {f"fastdream::{name}", f"fastdream::{name}_backward"} <= seen.names
    alone = results(make(native), args)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(alone, watched, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_dispatched_where_nobody_watches(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, args = CASES[name]
    calls = [recorded(monkeypatch, op) for op in (name, f"{name}_backward")]
    for op in (name, f"{name}_backward"):
        monkeypatch.setattr(OPS[op], "dispatched", None)
    results(make(native), args)
    assert [len(given) for given in calls] == [1, 1]


@pytest.mark.parametrize("name", CASES)
def test_a_second_gradient_is_refused(native: ModuleType, name: str) -> None:
    make, args = CASES[name]
    y = make(native)(*args)
    (gradient,) = torch.autograd.grad(y.sum(), args[0], create_graph=True)
    with pytest.raises(
        RuntimeError, match="differentiable once; for gradients of gradients use the reference"
    ):
        gradient.sum().backward()


def test_gradients_may_be_asked_for_twice(native: ModuleType) -> None:
    x, net = *inputs((3, 4)), layers(4)
    y = native.mlp(x, net)
    first, second = (torch.autograd.grad(y.sum(), (x, net[0].weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_what_wants_a_gradient_gets_one(native: ModuleType) -> None:
    x, net = *inputs((3, 4)), layers(4)
    net[1].weight.requires_grad_(False)
    native.mlp(x.detach(), net).sum().backward()
    assert [p.grad is not None for p in (x, *net[0][:3], *net[1][:3])] == [0, 1, 1, 1, 0, 1, 1]


def test_whole_numbers_stand_for_floats(native: ModuleType) -> None:
    logit, noise = torch.randn(3, 4), torch.rand(3)
    assert torch.equal(
        native.categorical_sample(logit, noise, unimix=0)[0], native.categorical_sample(logit, noise)[0]
    )


def test_tensors_that_stand_for_others_go_to_torch(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Tensor):
        pass

    x, calls = torch.randn(4), recorded(monkeypatch, "symlog")
    turned = torch._neg_view(x)
    for given in (x.as_subclass(Other), turned, x.to("meta")):
        y = call("symlog", given)
        assert type(y) is type(given) and not calls
    torch.testing.assert_close(call("symlog", turned), ops.load("reference").symlog(-x))
