"""Calls of the compiled norm_act and mlp: strides, threads, what is kept, the compiler, bad input."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.params import Feat, Layers

from .native_tools import results, same
from .ops_tools import Maker, chain, mapped


def test_nothing_is_kept_without_a_gradient(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    make, sizes = Maker(7), []
    original = native.dense._mlps_fake

    def spied(*args: Any) -> list[Tensor]:
        y, kept = original(*args)
        sizes.append(kept.numel())
        return [y, kept]

    monkeypatch.setattr(native.dense, "_mlps_fake", spied)
    args = make.normal(4, 6), chain(make, 6, 5, 3)
    with torch.no_grad():
        native.mlp(*args)
    native.mlp(*mapped(torch.Tensor.detach, args))
    native.mlp(*args)
    assert sizes == [0, 0, 4 * 5]


def test_takes_any_strides(native: ModuleType):
    make = Maker(8)
    layers = chain(make, 6, 8, 4, norm="layer")
    strided = mapped(lambda p: p.detach().repeat_interleave(2, 0)[::2].requires_grad_(), layers)
    x, grad = make.normal(6, 5), torch.randn(4, 5, dtype=torch.float64).t()
    for args in ((x.t(), strided), (x.detach()[:, :1].expand(6, 5).t(), strided)):
        ours = results(native.mlp, args, grad)
        theirs = results(reference.mlp, args, grad)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their)
    scale = make.normal(10)[::2].detach().requires_grad_()
    ours = results(native.norm_act, (x, scale, None, "rms", "silu"), grad=torch.ones(5, 6).double().t())
    for our, their in zip(ours, results(reference.norm_act, (x, scale, None, "rms", "silu")), strict=True):
        torch.testing.assert_close(our, their)


def test_threads_only_change_the_order_of_sums(native: ModuleType, isa: str, two_threads: None):
    make = Maker(9, torch.float32)
    for rows, widths in ((1000, (70, 64, 64, 31)), (64, (300, 256, 40)), (40, (640, 64, 8))):
        args = make.normal(rows, widths[0]), chain(make, *widths)
        two = [results(native.mlp, args) for _ in range(2)]
        torch.set_num_threads(1)
        one = results(native.mlp, args)
        torch.set_num_threads(2)
        assert same(*two)
        for a, b in zip(one, two[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()))
        assert torch.equal(one[0], two[0][0])
    args = make.normal(999, 100), make.normal(100), None, "rms", "silu", 1e-4
    two = [results(native.norm_act, args) for _ in range(2)]
    torch.set_num_threads(1)
    assert same(*two)
    for a, b in zip(results(native.norm_act, args), two[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_second_gradient_is_refused(native: ModuleType):
    make = Maker(11)
    x, layers = make.normal(3, 4), chain(make, 4, 2)
    for y in (native.mlp(x, layers), native.norm_act(x, None, None)):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once.*reference"):
            first.sum().backward()


def test_opcheck(native: ModuleType):
    make, ops = Maker(12, torch.float32), torch.ops.fastdream
    x, layers = make.normal(3, 4), chain(make, 4, 5, 2)
    params, sizes, eps = native.dense.flat([layers])
    there, present = [p is not None for p in params], [p for p in params if p is not None]
    checks = torch.library.opcheck(ops.mlps.default, (x, present, there, sizes, eps, [True]))
    plain, params = x.detach(), [p.detach() for p in present]
    y, kept = ops.mlps(plain, params, there, sizes, eps, [True])
    args = plain, params, there, sizes, eps, [torch.ones_like(y)], [kept], [True] * (1 + len(params))
    checks |= torch.library.opcheck(ops.mlps_backward.default, args)
    scale = make.normal(4)
    checks |= torch.library.opcheck(ops.norm_act.default, (x, scale, None, 1, 1, 1e-4))
    args = plain, scale.detach(), None, 1, 1, 1e-4, plain, [True, True, False]
    checks |= torch.library.opcheck(ops.norm_act_backward.default, args)
    assert set(checks.values()) == {"SUCCESS"}


def test_compiles_as_one_graph(native: ModuleType):
    make = Maker(13)
    x, layers = make.normal(3, 4), chain(make, 4, 5, 2)

    def loss(x: Tensor, layers: Layers) -> Tensor:
        return (native.norm_act(native.mlp(x, layers), None, None) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    args = x, layers
    for ours, theirs in zip(results(compiled, args), results(loss, args), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bad_layers_are_named(native: ModuleType):
    make = Maker(14)
    x, layers = make.normal(3, 4), chain(make, 4, 5, 2)
    first, last = layers
    cases: list[tuple[Tensor | Feat, Layers, str]] = [
        (x[:, :3], layers, r"x has shape \[3, 3\], expected \[..., 4\]"),
        (x.float(), layers, r"weight of layer 0 is \[5, 4\] torch.float64 on cpu, expected .* torch.float32"),
        (x.bfloat16(), layers, "x is torch.bfloat16, expected torch.float32 or torch.float64"),
        (
            x,
            (first, last._replace(weight=last.weight[:, :3])),
            r"weight of layer 1 is \[2, 3\].*expected \[2, 5\]",
        ),
        (x, (first._replace(bias=last.bias), last), r"bias of layer 0 is \[2\].*expected \[5\]"),
        (x, (first._replace(scale=last.bias), last), r"scale of layer 0 is \[2\].*expected \[5\]"),
        (x, (first._replace(weight=make.normal(1, 4, 5)), last), r"layer 0 has shape \[1, 4, 5\].*reference"),
        (x, (first._replace(act="swish"), last), "unknown activation 'swish'; choose none, silu"),
        (x, (first._replace(norm="batch"), last), "unknown norm 'batch'; choose none, rms or layer"),
        (x.to("meta"), layers, "weight of layer 0 is .* on cpu, expected .* on meta"),
        (make.normal(3, 4), (chain(make, 4, 4)) * 17, "17 layers, at most 16"),
    ]
    feat = Feat(x[:, :3], x[:2, :1])
    cases.append((feat, layers, r"hot has shape \[2, 1\], expected \[3, 1\]"))
    cases.append(
        (Feat(x, x[:, :1]), layers, r"x has shape \[3, 4\] with 1 features beside it, expected \[..., 3\]")
    )
    for x, layers, message in cases:
        with pytest.raises(ValueError, match=message):
            native.mlp(x, layers)


def test_bad_norms_are_named(native: ModuleType):
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"scale has shape \[3\], expected \[4\]"):
        native.norm_act(x, torch.ones(3), None)
    with pytest.raises(ValueError, match=r"shift has dtype torch.float64"):
        native.norm_act(x, None, torch.ones(4).double())
    with pytest.raises(ValueError, match="x is torch.bfloat16"):
        native.norm_act(x.bfloat16(), None, None)
    with pytest.raises(ValueError, match=r"x has shape \[\], expected \[..., N\]"):
        native.norm_act(torch.zeros(()), None, None)
    with pytest.raises(ValueError, match="unknown norm 'batch'"):
        native.norm_act(x, None, None, "batch")
