"""imagine and rollout: the prior scans, with the actor and with given actions."""

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference as ops
from fastdream.ops.params import RSSM, Actor, Categorical, Dream, Gaussian, Latent

from . import ops_oracles as oracle
from .ops_tools import A, C, CoreName, D, Maker, S, arrays, gradcheck, leaves, worst

CORES: list[CoreName] = ["block", "layernorm", "gru", "gru_block_cell"]
LATENTS: list[Latent] = [Categorical(S, C, 0.01), Gaussian(S)]
N, H = 4, 3
State = tuple[Tensor, Tensor]


def noise_of(make: Maker, latent: Latent, *shape: int) -> Tensor:
    return make.normal(*shape, S).detach() if isinstance(latent, Gaussian) else make.uniform(*shape, S)


def dreamt(
    seed: int, core: CoreName = "block", latent: Latent = LATENTS[0]
) -> tuple[RSSM, Actor, State, Tensor, Tensor, Dream]:
    """A model, an actor, starts, both noises, and the dream that they give."""
    make = Maker(seed)
    rssm = make.rssm(core, latent)
    actor = make.actor(D + (S if isinstance(latent, Gaussian) else S * C))
    state, noise, action_noise = (
        make.state(N, latent),
        noise_of(make, latent, N, H),
        make.uniform(N, H + 1, 2),
    )
    return rssm, actor, state, noise, action_noise, ops.imagine(rssm, actor, *state, H, noise, action_noise)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS)
def test_rollout_matches_numpy(core: CoreName, latent: Latent) -> None:
    make = Maker(0)
    rssm, state, action = make.rssm(core, latent), make.state(N, latent), make.normal(N, H, A, scale=2.0)
    discrete = isinstance(latent, Categorical)
    draw = make.index(N, H, S) if discrete else noise_of(make, latent, N, H)
    got = ops.rollout(rssm, *state, action, *((None, draw) if discrete else (draw,)))
    want = oracle.rollout(arrays(rssm), *arrays(state), arrays(action), draw.numpy())
    assert all(worst(a, b) < 1e-13 for a, b in zip(got, want, strict=False))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("latent", LATENTS)
def test_prior_takes_any_leading_axes(latent: Latent, shape: tuple[int, ...]) -> None:
    make = Maker(1)
    rssm, deter = make.rssm("block", latent), make.normal(*shape, D)
    want = oracle.shaped(latent, oracle.mlp(arrays(deter), arrays(rssm).prior))
    assert worst(ops.prior(rssm, deter), want) < 1e-14
    assert gradcheck(ops.prior, rssm, deter) if shape == (3,) else True


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS)
def test_imagine_is_actor_and_step_in_turn(core: CoreName, latent: Latent) -> None:
    rssm, actor, (deter, stoch), noise, action_noise, dream = dreamt(2, core, latent)
    for t in range(H + 1):
        assert worst(dream.deter[:, t], deter) < 1e-14
        assert worst(dream.stoch[:, t], stoch) < 1e-14
        feat = torch.cat([deter, stoch.flatten(1)], -1)
        action = ops.actor(actor, feat, action_noise[:, t])
        assert worst(dream.action[:, t], action) < 1e-14  # the last one included, which leads nowhere
        if t < H:
            deter, stoch, logit, _ = ops.imagine_step(rssm, deter, stoch, action, noise[:, t])
            assert worst(dream.logit[:, t], logit) < 1e-14


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("latent", LATENTS)
def test_rollout_of_the_actions_is_the_dream(core: CoreName, latent: Latent) -> None:
    rssm, _, state, noise, _, dream = dreamt(3, core, latent)
    steps = ops.rollout(rssm, *state, dream.action[:, :H], noise)
    assert worst(steps.deter, dream.deter[:, 1:]) < 1e-14
    assert worst(steps.stoch, dream.stoch[:, 1:]) < 1e-14
    assert worst(steps.logit, dream.logit) < 1e-14


def test_replaying_indices_and_actions_repeats_the_dream() -> None:
    rssm, actor, state, _, action_noise, dream = dreamt(4)
    index = dream.stoch[:, 1:].argmax(-1)
    again = ops.imagine(rssm, actor, *state, H, None, None, index, dream.action)
    assert all(worst(a, b) < 1e-14 for a, b in zip(again, dream, strict=True))
    half = ops.imagine(rssm, actor, *state, H, None, action_noise, index)
    assert all(torch.equal(a, b) for a, b in zip(half, dream, strict=True))
    with torch.no_grad():
        quiet = ops.imagine(rssm, actor, *state, H, None, action_noise, index)
    assert all(torch.equal(a, b) for a, b in zip(quiet, dream, strict=True))
    assert not any(x.requires_grad for x in quiet)


@pytest.mark.parametrize("core", CORES)
def test_gaussian_gradients_reach_model_actor_and_start(core: CoreName) -> None:
    """With continuous actions alone: a discrete one is a step, which differences do not see."""
    make, latent = Maker(5), LATENTS[1]
    rssm, actor = make.rssm(core, latent), make.actor(D + S)
    actor = actor._replace(heads=(actor.heads[0],) * A)
    noise, action_noise = noise_of(make, latent, 2, 2), 0.05 * make.normal(2, 3, A).detach()

    def fn(rssm: RSSM, actor: Actor, state: State) -> Dream:
        return ops.imagine(rssm, actor, *state, 2, noise, action_noise)

    state = (make.normal(2, D, scale=0.5), make.normal(2, S))
    assert fn(rssm, actor, state).action.abs().max() < 1  # inside the clip, which is not differentiable
    assert gradcheck(fn, rssm, actor, state, fast=True)


def test_straight_through_gradients_reach_the_actor_from_later_states() -> None:
    _, actor, _, _, _, dream = dreamt(6)
    grads = torch.autograd.grad(dream.deter[:, -1].sum(), list(leaves(actor)))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)


def test_half_precision_keeps_actions_in_float32() -> None:
    make, half = Maker(7, torch.float32), torch.bfloat16
    rssm, actor, (deter, stoch) = make.rssm(), make.actor(), make.state(N)
    noises = make.uniform(N, H, S), make.uniform(N, H + 1, 2)
    dream = ops.imagine(rssm, actor, deter.to(half), stoch, H, *noises)
    assert [x.dtype for x in dream] == [half, half, half, torch.float32]
    full = ops.imagine(rssm, actor, deter, stoch, H, None, None, dream.stoch[:, 1:].argmax(-1), dream.action)
    assert worst(dream.deter, full.deter) < 0.05


def test_what_is_missing_is_named() -> None:
    rssm, actor, state, noise, action_noise, _ = dreamt(8)
    with pytest.raises(ValueError, match="categorical_sample needs noise"):
        ops.imagine(rssm, actor, *state, H, None, action_noise)
    with pytest.raises(ValueError, match="actor needs noise"):
        ops.imagine(rssm, actor, *state, H, noise, None)
