"""observe: the posterior scan against NumPy, its derivatives, its own step, and sequences run apart."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.ops import reference as ops
from fastdream.ops.params import RSSM, Categorical, Gaussian, Latent

from . import ops_oracles as oracle
from .ops_tools import (
    A,
    C,
    CoreName,
    E,
    Maker,
    S,
    arrays,
    gradcheck,
    leaves,
    mapped,
    plain_form,
    rebuilt,
    worst,
)

CORES: list[CoreName] = ["block", "layernorm", "gru", "gru_block_cell"]
LATENTS: list[Latent] = [Categorical(S, C, 0.01), Gaussian(S), Gaussian(S, 0.2, "sigmoid2")]
Observed = tuple[Tensor, Tensor, Tensor, Tensor]  # deter, stoch, action, embed


def sequence(make: Maker, latent: Latent, batch: int = 3, length: int = 5) -> tuple[Observed, Tensor]:
    """The float inputs of observe, and resets at the start and in the middle of some rows."""
    action = make.normal(batch, length, A).detach().clamp(-0.9, 0.9).requires_grad_()
    reset = torch.zeros(batch, length, dtype=torch.bool)
    reset[0, 0] = reset[0, length // 2] = reset[-1, -1] = True
    return (*make.state(batch, latent), action, make.normal(batch, length, E)), reset


def draws(make: Maker, latent: Latent, *shape: int) -> dict[str, Any]:
    """Noise and index of the latent: a replayed draw for categorical ones, noise for Gaussian ones."""
    if isinstance(latent, Categorical):
        return {"noise": None, "index": make.index(*shape, S)}
    return {"noise": make.normal(*shape, S).detach()}


def drawn(options: dict[str, Any]) -> np.ndarray:
    return next(x for x in options.values() if x is not None).numpy()


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("absolute", [False, True])
def test_observe_matches_numpy(core: CoreName, latent: Latent, absolute: bool) -> None:
    make = Maker(0)
    rssm = make.rssm(core, latent, absolute)
    inputs, reset = sequence(make, latent)
    options = draws(make, latent, 3, 5)
    got = ops.observe(rssm, *inputs, reset, **options)
    want = oracle.observe(arrays(rssm), *arrays(inputs), reset.numpy(), drawn(options))
    assert all(worst(a, b) < 1e-13 for a, b in zip(got, want, strict=False))
    assert (got.index is None) == isinstance(latent, Gaussian)


@pytest.mark.parametrize("core", CORES)
def test_gaussian_observe_gradients(core: CoreName) -> None:
    make, latent = Maker(1), Gaussian(S)
    rssm = make.rssm(core, latent)
    inputs, reset = sequence(make, latent, 2, 2)
    noise = make.normal(2, 2, S).detach()

    def fn(rssm: RSSM, inputs: Observed) -> tuple[Tensor, ...]:
        return ops.observe(rssm, *inputs, reset, noise)[:3]

    assert gradcheck(fn, rssm, inputs, fast=True)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("absolute", [False, True])
def test_categorical_observe_gradients_are_straight_through(core: CoreName, absolute: bool) -> None:
    """Against central differences of the NumPy form whose samples move with their probabilities."""
    make, latent = Maker(2), LATENTS[0]
    trees = (make.rssm(core, latent, absolute), (seq := sequence(make, latent))[0])
    index = make.index(3, 5, S)
    out = ops.observe(trees[0], *trees[1], seq[1], None, index)
    cots = [make.normal(*x.shape).detach() for x in out[:3]]
    objective = sum((x * cot).sum() for x, cot in zip(out[:3], cots, strict=True))
    flat = list(leaves(trees))
    grads = torch.autograd.grad(objective, flat, allow_unused=True)  # an absolute posterior uses no prior
    anchors = oracle.mixed(arrays(out.logit), 0.01).swapaxes(0, 1)

    def shifted(direction: list[Tensor], size: float) -> float:
        moved = arrays(rebuilt(trees, iter([x + size * d for x, d in zip(flat, direction, strict=True)])))
        outs = oracle.observe(moved[0], *moved[1], seq[1].numpy(), index.numpy(), anchors)
        return float(sum((x * cot.numpy()).sum() for x, cot in zip(outs, cots, strict=True)))

    for _ in range(6):
        direction = [make.normal(*x.shape).detach() for x in flat]
        slope = sum((g * d).sum().item() for g, d in zip(grads, direction, strict=True) if g is not None)
        assert slope == pytest.approx((shifted(direction, 1e-6) - shifted(direction, -1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS[:2])
def test_a_reset_starts_a_sequence_of_its_own(core: CoreName, latent: Latent) -> None:
    """Nothing of the state before, nor of the action that led to a first step, is seen: not even NaN."""
    make = Maker(3)
    rssm = make.rssm(core, latent)
    (deter, stoch, action, embed), _ = sequence(make, latent, 2, 6)
    noise = make.normal(2, 6, S).detach() if isinstance(latent, Gaussian) else make.uniform(2, 6, S)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 0] = reset[:, 3] = True
    action = action.detach().clone()
    action[:, [0, 3]] = torch.nan
    nan = torch.full_like(deter, torch.nan), torch.full_like(stoch, torch.nan)
    whole = ops.observe(rssm, *nan, action, embed, reset, noise)
    zero = torch.zeros_like(deter), torch.zeros_like(stoch)
    action = action.nan_to_num(0.0)
    for part in (slice(0, 3), slice(3, 6)):
        still = torch.zeros(2, 3, dtype=torch.bool)
        alone = ops.observe(rssm, *zero, action[:, part], embed[:, part], still, noise[:, part])
        assert all(worst(a[:, part], b) < 1e-14 for a, b in zip(whole[:3], alone[:3], strict=True))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS[:2])
def test_observe_is_its_step_repeated(core: CoreName, latent: Latent) -> None:
    make = Maker(4)
    rssm = make.rssm(core, latent)
    (deter, stoch, action, embed), reset = sequence(make, latent)
    noise = make.normal(3, 5, S).detach() if isinstance(latent, Gaussian) else make.uniform(3, 5, S)
    whole = ops.observe(rssm, deter, stoch, action, embed, reset, noise)
    for t in range(5):
        step = ops.observe_step(rssm, deter, stoch, action[:, t], embed[:, t], reset[:, t], noise[:, t])
        deter, stoch = step.deter, step.stoch
        for got, want in zip(step, whole, strict=True):
            assert got is want is None or worst(got, want[:, t]) < 1e-14


def test_replaying_the_indices_gives_the_same_states_and_gradients() -> None:
    make, latent = Maker(5), LATENTS[0]
    rssm = make.rssm("block", latent)
    inputs, reset = sequence(make, latent)
    first = ops.observe(rssm, *inputs, reset, make.uniform(3, 5, S))
    again = ops.observe(rssm, *inputs, reset, None, first.index)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first.stoch.argmax(-1), first.index)
    grads = [torch.autograd.grad(x.deter.square().sum(), inputs) for x in (first, again)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.no_grad():
        quiet = ops.observe(rssm, *inputs, reset, None, first.index)
    assert all(torch.equal(a, b) for a, b in zip(first, quiet, strict=True))


def test_observe_leaves_its_inputs_alone() -> None:
    make, latent = Maker(6), LATENTS[0]
    trees = (make.rssm("block", latent), *sequence(make, latent))
    before = mapped(lambda x: x.detach().clone(), trees)
    ops.observe(trees[0], *trees[1], trees[2], make.uniform(3, 5, S)).deter.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(leaves(before), leaves(trees), strict=True))


def test_a_gaussian_latent_without_noise_is_an_error() -> None:
    make, latent = Maker(7), Gaussian(S)
    inputs, reset = sequence(make, latent)
    with pytest.raises(ValueError, match="needs noise"):
        ops.observe(make.rssm("gru", latent), *inputs, reset, None)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS[:2])
def test_half_precision_runs_in_the_dtype_of_deter(core: CoreName, latent: Latent) -> None:
    make = Maker(8, torch.float32)
    rssm = make.rssm(core, latent)
    (deter, stoch, action, embed), reset = sequence(make, latent)
    options = draws(make, latent, 3, 5)
    out = ops.observe(rssm, deter.to(torch.bfloat16), stoch, action, embed, reset, **options)
    assert {x.dtype for x in out[:3]} == {torch.bfloat16}
    (grad,) = torch.autograd.grad(out.logit.float().sum(), rssm.post[0].weight)
    assert grad.dtype == torch.float32 and grad.isfinite().all()


@pytest.mark.parametrize("core", CORES[:3])
def test_half_precision_errs_at_most_twice_as_much_as_the_plain_scan(core: CoreName) -> None:
    make, latent, half = Maker(9, torch.float32), LATENTS[0], torch.bfloat16
    rssm = mapped(lambda x: x.to(half).float(), make.rssm(core, latent))  # exact in both precisions
    inputs, reset = sequence(make, latent, 16, 8)
    inputs, index = tuple(x.detach().to(half) for x in inputs), make.index(16, 8, S)
    exact = oracle.observe(arrays(rssm), *arrays(inputs), reset.numpy(), index.numpy())
    deter, stoch, action, embed = inputs
    plain = []
    for t in range(8):
        keep = ~reset[:, t, None]
        deter = plain_form(rssm.core, deter * keep, stoch.flatten(1) * keep, action[:, t] * keep)
        logit = ops.mlp(torch.cat([deter, embed[:, t]], -1), rssm.post).unflatten(-1, (S, C))
        stoch = torch.eye(C, dtype=half)[index[:, t]]
        plain.append((deter, stoch, logit))
    got = ops.observe(rssm, *inputs, reset, None, index)
    for i in (0, 2):
        error = worst(torch.stack([step[i] for step in plain], 1), exact[i])
        assert worst(got[i], exact[i]) <= 2 * error + 1e-3
