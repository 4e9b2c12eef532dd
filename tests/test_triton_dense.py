"""Triton's chains of dense layers where the parity matrix does not look: which nets learn, what is linear, launches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.params import Feat, Layers
from fastdream.ops.triton import dense_gradients, dense_kernels, dense_nets

from .launch_tools import Launches
from .ops_tools import Maker, chain, mapped
from .parity_cases import Case
from .parity_tools import changed, check, results
from .test_triton import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
WIDTH = 11


def linear_ones(m: Maker, n: int) -> tuple:
    """Outputs on the same layer, which one product gives."""
    return m.normal(n, WIDTH), (chain(m, WIDTH, 3), chain(m, WIDTH, 7), chain(m, WIDTH, 5, norm="layer"))


def one_linear(m: Maker, n: int) -> tuple:
    return m.normal(n, WIDTH), (chain(m, WIDTH, 5),)


def linear_inside(m: Maker, n: int) -> tuple:
    return m.normal(n, WIDTH), (chain(m, WIDTH, 5) + chain(m, 5, 6) + chain(m, 6, 4, linear=False),)


def unbiased(m: Maker, n: int) -> tuple:
    nets = chain(m, WIDTH, 6, 5), chain(m, WIDTH, 4), chain(m, WIDTH, 3, norm="none", linear=False)
    return m.normal(n, WIDTH), tuple(tuple(x._replace(bias=None) for x in net) for net in nets)


def unscaled(m: Maker, n: int) -> tuple:
    nets = chain(m, WIDTH, 6, 5), chain(m, WIDTH, 4, norm="layer", linear=False)
    return m.normal(n, WIDTH), tuple(tuple(x._replace(scale=None, shift=None) for x in net) for net in nets)


def fixed(m: Maker, n: int) -> tuple:
    """Nothing but the input wants a gradient."""
    nets = chain(m, WIDTH, 6, 5), chain(m, WIDTH, 4)
    return m.normal(n, WIDTH), mapped(Tensor.detach, nets)


def fixed_first(m: Maker, n: int) -> tuple:
    """Only parameters want one, and not those of the first net."""
    return m.normal(n, WIDTH).detach(), (mapped(Tensor.detach, chain(m, WIDTH, 6, 5)), chain(m, WIDTH, 4, 2))


def partly_fixed(m: Maker, n: int) -> tuple:
    first, last = chain(m, WIDTH, 6, 5)
    first = first._replace(weight=first.weight.detach(), scale=None)
    return m.normal(n, WIDTH), ((first, last._replace(bias=last.bias.detach())), chain(m, WIDTH, 3))


def no_layers(m: Maker, n: int) -> tuple:
    return Feat(m.normal(n, 4), m.normal(n, WIDTH - 4)), ((), chain(m, WIDTH, 6, 5), ())


def sequences(m: Maker, n: int) -> tuple:
    return Feat(m.normal(n, 3, 4), m.normal(n, 3, WIDTH - 4)), (chain(m, WIDTH, 6, 5), chain(m, WIDTH, 2))


MADE = (
    linear_ones,
    one_linear,
    linear_inside,
    unbiased,
    unscaled,
    fixed,
    fixed_first,
    partly_fixed,
    no_layers,
    sequences,
)


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_agrees_with_reference(make: Callable[[Maker, int], tuple], poison: list[str]):
    for rows in (0, 9):
        args = changed(lambda x: x.to(DEVICE), make(Maker(1, torch.float32), rows))
        check(backend.mlps, "mlps", Case(make), args, torch.float32)
    assert poison


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
def test_programs_that_have_several_tiles_add_them_up(norm: str, monkeypatch: pytest.MonkeyPatch):
    """As of a batch, whose last tile is cut."""
    monkeypatch.setattr(dense_kernels, "PROGRAMS", {0: 2})

    def nets(m: Maker, n: int) -> tuple:
        return m.normal(n, WIDTH), (
            chain(m, WIDTH, 6, 5, norm=norm),
            chain(m, WIDTH, 7, norm=norm, linear=False),
        )

    args = changed(lambda x: x.to(DEVICE), nets(Maker(1, torch.float32), 150))
    check(backend.mlps, "mlps", Case(nets), args, torch.float32)


def test_outputs_that_nothing_uses_have_no_part_in_gradients():
    x, nets = sequences(Maker(1, torch.float32), 5)
    args = changed(lambda p: p.to(DEVICE), (x, nets))
    first = lambda mlps: lambda *args: mlps(*args)[:1]  # noqa: E731
    ours, theirs = (results(first(op.mlps), args, True) for op in (backend, reference))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_nets_that_learn_nothing_want_no_gradient():
    x, nets = changed(lambda p: p.to(DEVICE), fixed_first(Maker(1, torch.float32), 5))
    assert [y.requires_grad for y in backend.mlps(x, nets)] == [False, True]
    with torch.no_grad():
        assert not any(y.requires_grad for y in backend.mlps(x, nets))


@pytest.mark.parametrize("changes", [{"weight": (5, 9)}, {"bias": (4,)}, {"scale": (6,)}])
def test_misfits_are_named(changes: dict[str, tuple[int, ...]]):
    x, ((layer, *others),) = linear_inside(Maker(1, torch.float32), 3)
    layer = layer._replace(norm="rms", **{k: torch.zeros(v) for k, v in changes.items()})
    args: Any = mapped(lambda p: p.to(DEVICE), (x, ((layer, *others),)))
    with pytest.raises(ValueError, match=r"mlp: .* has shape .*, expected"):
        backend.mlps(*args)


def test_precision_of_the_two_parts_is_one():
    feat, nets = changed(lambda x: x.to(DEVICE), sequences(Maker(1, torch.float32), 3))
    with pytest.raises(ValueError, match="stoch is torch.float16, expected torch.float32 like deter"):
        backend.mlps(feat._replace(stoch=feat.stoch.half()), nets)


def launches(nets: tuple[Layers, ...], x: Feat) -> tuple[int, int]:
    """Forward, and backward."""
    detached: Any = mapped(Tensor.detach, nets)
    with Launches() as forward:
        outputs, kept = dense_nets.forward(x, detached, len(nets))
    layers = [(j, i, layer) for j, net in enumerate(detached) for i, layer in enumerate(net)]
    wanted = {(j, i, f) for j, i, layer in layers for f in range(4) if layer[f] is not None}
    with Launches() as backward:
        grads = [torch.ones_like(y) for y in outputs]
        dense_gradients.backward(x, detached, kept, grads, [True, True], wanted)
    return forward.count, backward.count - len(nets)


def test_launches():
    """Forward: products and one pass a layer, one product more for the one-hots. Backward: two products and a pass a
    layer, two products more for the one-hots; one adds up all sums, one copies what is in another dtype or of several
    first layers. Each has a copy more of weights in another dtype or of odd widths without memory to pad them, or of
    first ones that do not lie together.
    """
    m = Maker(1, torch.float32)
    nets = chain(m, WIDTH, 8, 8, 16), chain(m, WIDTH, 8, 16)
    x = Feat(m.normal(3, 4).detach().half(), m.normal(3, WIDTH - 4).detach().half())
    x = Feat(*(p.to(DEVICE) for p in x))
    layers, hidden = 5, 3
    first, linear = 2, 2
    forwards, backwards = 2 + (layers - first) + hidden, 2 * (layers - first) + 4 + hidden + linear + 2
    assert launches(changed(lambda p: p.to(DEVICE), nets), x) == (forwards + 1, backwards + 1)
    nets = changed(lambda p: p.to(DEVICE).half(), nets)
    assert launches(nets, x) == (forwards + 1, backwards + 1)
    joined = torch.cat([net[0].weight for net in nets]).split([len(net[0].weight) for net in nets])
    nets = tuple((net[0]._replace(weight=w), *net[1:]) for net, w in zip(nets, joined, strict=True))
    assert launches(nets, x) == (forwards, backwards)


@pytest.mark.parametrize(("rows", "width"), [(0, 3), (1, 1), (70, 33), (200, 100), (1100, 5)])
def test_rows_are_added_up(rows: int, width: int):
    x = torch.randn(rows, width, device=DEVICE)
    torch.testing.assert_close(dense_kernels.add_rows(x), x.sum(0), rtol=1e-5, atol=1e-5)


def test_fixed_nets_without_gradient_cost_nothing_backward():
    """Their outputs only lead to their inputs; whatever was given back for them would be zero."""
    x, nets = changed(lambda p: p.to(DEVICE), sequences(Maker(1, torch.float32), 5))
    fixed: Any = mapped(Tensor.detach, nets[0])
    counts = []
    for given in (nets, (nets[1], fixed), (fixed, nets[1])):
        outputs = backend.mlps(x, given)
        with Launches() as backward:
            outputs[0 if given[0] is nets[1] else 1].sum().backward()
        counts.append(backward.count)
    assert counts[1] == counts[2] < counts[0]
    theirs = results(lambda x, net: reference.mlps(x, (net,)), (x, nets[1]), True)
    ours = results(lambda x, net: backend.mlps(x, (fixed, net))[1:], (x, nets[1]), True)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)
