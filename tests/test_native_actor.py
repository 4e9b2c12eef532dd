"""Compiled actions of every kind, at outputs of any size and draws from all of a distribution."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.params import ActionHead, Actor, Gaussian, Layer

from .ops_tools import E, H, Maker, leaves, mapped

KINDS = "bounded_normal", "trunc_normal", "tanh_normal"
GRID = torch.tensor([-30.0, -8.0, -2.5, -1.0, -0.3, 0.0, 0.01, 0.7, 3.0, 12.0, 40.0], dtype=torch.float64)
pytestmark = pytest.mark.usefixtures("native")


def acts(raw_mean: Tensor, raw_std: Tensor, dtype: torch.dtype, **head: Any) -> tuple:
    """Arguments of policy_step up to the noises, with an actor of no layer whose outputs are these [M]."""
    count, make = len(raw_mean), Maker(0, dtype)
    width, latent = 4, Gaussian(2)

    def out(raw: Tensor) -> Layer:
        return Layer(torch.zeros(count, width + latent.stoch, dtype=dtype), raw.to(dtype))

    actor = Actor((), (ActionHead(elements=count, classes=0, out=(out(raw_mean), out(raw_std)), **head),))
    core = make.core("gru", latent.stoch)._replace(
        inputs=make.layer(latent.stoch + count, H, "none", "elu"),
        weight_ih=make.normal(3 * width, H),
        weight_hh=make.normal(3 * width, width),
        bias_ih=make.normal(3 * width),
        bias_hh=make.normal(3 * width),
    )
    rssm = make.rssm()._replace(core=core, latent=latent, post=(make.layer(width + E, 4, "none", "none"),))
    state = make.normal(1, width), make.normal(1, 2), torch.zeros(1, count, dtype=dtype), make.normal(1, E)
    args = (), rssm, actor, *state, torch.zeros(1, dtype=torch.bool), torch.zeros(1, 2, dtype=dtype)
    return mapped(Tensor.detach, args)


def pairs() -> tuple[Tensor, Tensor]:
    """Every pair of numbers of the grid."""
    mean, std = torch.meshgrid(GRID, GRID, indexing="ij")
    return mean.flatten(), std.flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limits", [{}, {"min_std": 0.02, "max_std": 3.0, "init_std": 0.5}])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_agree_with_reference(native: ModuleType, isa: str, kind: Any, limits: Any, dtype: torch.dtype):
    mean, std = pairs()
    args, wide = (
        acts(mean, std, dtype, kind=kind, **limits),
        acts(mean, std, torch.float64, kind=kind, **limits),
    )
    for eps in (1e-7, 0.003, 0.3, 0.5, 0.8, 0.999):
        noise = torch.full((1, len(mean)), eps, dtype=torch.float64).to(dtype)
        noise = noise if kind == "trunc_normal" else torch.special.ndtri(noise)
        true = reference.policy_step(*wide, noise.double())[1]
        theirs, ours = (ops.policy_step(*args, noise)[1] for ops in (reference, native))
        error, reference_error = ((x.double() - true).abs() for x in (ours, theirs))
        # Of the reference: the largest at that noise, as where it happens to be exact we need not be.
        floor = 8 * torch.finfo(dtype).eps * (1 + true.abs())
        if kind == "trunc_normal" and dtype == torch.float64:
            floor = 1e-9  # torch's CDF has 16 decimals, which in the tail at -5 are few digits
        assert (error <= 2 * reference_error.max() + floor).all(), (eps, error.max(), reference_error.max())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_most_likely_actions_agree(native: ModuleType, isa: str, kind: Any):
    args = acts(*pairs(), torch.float64, kind=kind)
    theirs, ours = (ops.policy_step(*args, None)[1] for ops in (reference, native))
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_what_has_no_most_likely_action_is_refused_alike(native: ModuleType):
    args = acts(*pairs(), torch.float64, kind="tanh_normal")
    for ops in (reference, native):
        with pytest.raises(ValueError, match="most likely action of a tanh_normal has no closed form"):
            ops.policy_step(*args, None)


@pytest.mark.parametrize("std", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("mean", [-1.0, -0.6, 0.0, 0.9, 1.0])
def test_truncated_normals_are_their_own_quantiles(native: ModuleType, mean: float, std: float):
    """Against the cumulative distribution, which knows nothing of how it was inverted, from the lower tail on."""
    tail = torch.logspace(-9, -3, 25, dtype=torch.float64)
    noise = torch.cat([tail, torch.linspace(0, 1, 402, dtype=torch.float64)[1:-1]])
    raw_mean = torch.full_like(noise, mean).clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    raw_std = torch.full_like(noise, std - 0.05).div(2).logit() * 2
    args = acts(raw_mean, raw_std, torch.float64, kind="trunc_normal", min_std=0.05)
    action = native.policy_step(*args, noise[None])[1][0]
    assert (action.abs() <= 1 - 1e-6).all() and (action.diff() >= 0).all()
    scaled = ((raw_mean.tanh() - x) / (std * 2**0.5) for x in (-1.0, action, 1.0))
    low, at, high = (0.5 * torch.special.erfc(x) for x in scaled)
    inside = action.abs() < 1 - 1e-6
    assert inside.sum() > 400
    torch.testing.assert_close(((at - low) / (high - low))[inside], noise[inside], rtol=1e-11, atol=1e-15)


def test_scores_are_drawn_as_classes(native: ModuleType):
    """They differ in gradients alone."""
    make = Maker(1, torch.float32)
    args = mapped(Tensor.detach, ((), make.rssm(), make.actor(), *make.state(50), make.normal(50, 3)))
    inputs = (
        make.normal(50, E).detach(),
        torch.zeros(50, dtype=torch.bool),
        torch.rand(50, 3),
        torch.rand(50, 2),
    )
    heads = args[2].heads
    scores = args[2]._replace(heads=(heads[0], heads[1]._replace(kind="score")))
    pair = (native.policy_step(*args[:2], actor, *args[3:], *inputs) for actor in (args[2], scores))
    assert all(torch.equal(x, y) for x, y in zip(*map(leaves, pair), strict=True))


def test_too_many_heads_are_refused(native: ModuleType):
    args = acts(*(x[:33] for x in pairs()), torch.float32, kind="bounded_normal")
    (head,) = args[2].heads
    out = (layer._replace(weight=layer.weight[:1], bias=layer.bias[:1]) for layer in head.out)
    actor = Actor((), 33 * (head._replace(elements=1, out=tuple(out)),))
    with pytest.raises(ValueError, match="the actor has 33 heads; native takes 1 to 32"):
        native.policy_step(*args[:2], actor, *args[3:], None)


def test_heads_of_blocks_need_a_layer(native: ModuleType):
    args = acts(*(x[:2] for x in pairs()), torch.float32, kind="bounded_normal")
    (head,) = args[2].heads
    out = tuple(layer._replace(weight=torch.zeros(2, 3, 1)) for layer in head.out)
    with pytest.raises(ValueError, match="no layers and heads of blocks; use the reference"):
        native.policy_step(*args[:2], Actor((), (head._replace(out=out),)), *args[3:], None)
