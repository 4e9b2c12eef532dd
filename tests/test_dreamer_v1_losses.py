"""DreamerV1's losses, against formulas written once more in NumPy, in float64 and without its code."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v1 import DreamerV1
from fastdream.spaces import Spaces

from . import dreamer_tools
from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    VECTOR,
    batch,
    cross_entropy,
    double,
    lambda_return,
    model_losses,
    sigmoid,
    unit_normal,
)

B, T, H = 2, 6, 5
NEAR = dict(rel=2e-5, abs=2e-5)


make = partial(dreamer_tools.make, "dreamer_v1", ops="reference", length=H)


def draws(agent: DreamerV1) -> Any:
    return agent.nets.draw(B, T, torch.Generator().manual_seed(3))


def numpy_kl(post: np.ndarray, prior: np.ndarray) -> np.ndarray:
    (m1, s1), (m2, s2) = ((x[..., :4], np.log1p(np.exp(x[..., 4:])) + 0.1) for x in (post, prior))
    return (np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5).sum(-1)


@pytest.mark.parametrize("free", [0.0, 50.0])
@pytest.mark.parametrize("pcont", [False, True])
@pytest.mark.parametrize("reward", ["tanh", "identity"])
def test_world_model_loss(free: float, pcont: bool, reward: Any) -> None:
    settings = dict(kl_scale=0.1, pcont_scale=7.0, discount=0.9, free_nats=free, reward=reward)
    agent = make(IMAGE | VECTOR, CONTINUOUS, pcont=pcont, **settings)
    data, model = batch(agent, B, T), agent.model
    total, post, metrics = agent.model_loss(agent.init_train(B), data, draws(agent))
    prior = double(agent.ops.prior(model.dyn.params, post.deter))
    want = {"kl": max(numpy_kl(double(post.logit), prior).mean(), free)}
    want |= model_losses(agent, post, data, reward)
    if pcont:
        target = 0.9 * (1 - double(data["is_terminal"]))
        feat = model.dyn.feat(post.deter, post.stoch)
        want["pcont"] = cross_entropy(double(model.pcont(feat)), target).mean()
    for name, value in want.items():
        assert float(metrics[f"loss/{name}"].detach()) == pytest.approx(value, **NEAR), name
    weights = {"kl": 0.1, "pcont": 7.0}
    assert float(total.detach()) == pytest.approx(
        sum(weights.get(k, 1.0) * v for k, v in want.items()), **NEAR
    )


@pytest.mark.parametrize(("free", "scale"), [(0.0, 1.0), (1e3, 0.0)])
def test_both_distributions_get_the_kl_s_whole_gradient(free: float, scale: float) -> None:
    agent = make(VECTOR, DISCRETE)
    post, prior = (torch.randn(B, T, 8).requires_grad_() for _ in range(2))
    dyn, rep = agent.model.latent.kl(post, prior, free, "mean")
    got = torch.autograd.grad(dyn + rep - rep.detach(), (post, prior))
    (m1, r1), (m2, r2) = (x.chunk(2, -1) for x in (post, prior))
    normals = [
        torch.distributions.Normal(m, torch.nn.functional.softplus(r) + 0.1) for m, r in ((m1, r1), (m2, r2))
    ]
    plain = torch.distributions.kl_divergence(*normals).sum(-1).mean()
    want = torch.autograd.grad(plain, (post, prior))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, scale * theirs)
    assert float(dyn.detach()) == pytest.approx(max(float(plain.detach()), free))


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("pcont", [False, True])
def test_actor_and_critic_loss(act: Spaces, pcont: bool) -> None:
    agent = make(VECTOR, act, pcont=pcont, lam=0.8, discount=0.9)
    data, noise, nets, model = batch(agent, B, T), draws(agent), agent.nets, agent.model
    _, post, _ = agent.model_loss(agent.init_train(B), data, noise)
    start = agent.start(post, data)
    actor, value, metrics = agent.behavior_loss(start, noise)

    first = start.deter, start.stoch
    dream = agent.ops.imagine(model.dyn.params, nets.pol.params, *first, H, noise.prior, noise.action)
    feat = model.dyn.feat(dream.deter[:, 1:], dream.stoch[:, 1:])  # the start is not among the H states
    rew, val = (double(net(feat)) for net in (model.rew, nets.val))
    disc = sigmoid(double(model.pcont(feat))) if pcont else np.full_like(rew, 0.9)
    ret = lambda_return(rew, disc, val, 0.8)
    ends = double(data["is_terminal"][:, : T - pcont]).flatten()
    assert ret.shape == (len(ends), H - 1)
    weight = np.stack([np.prod(disc[:, :t], 1) for t in range(H - 1)], 1)
    if pcont:  # nothing follows the end of an episode
        assert ends.any()
        weight = weight * (1 - ends[:, None])
    assert float(actor.detach()) == pytest.approx(-(weight * ret).mean(), **NEAR)
    critic = (weight * unit_normal(val[:, :-1], ret)).mean()
    assert float(value.detach()) == pytest.approx(critic, **NEAR)
    assert float(metrics["ret"].detach()) == pytest.approx(ret.mean(), **NEAR)


@pytest.mark.parametrize(
    ("act", "discrete"),
    [(DISCRETE, "categorical"), (DISCRETE, "score"), (CONTINUOUS, "categorical")],
    ids=["straight-through", "score", "continuous"],
)
@pytest.mark.parametrize("pcont", [False, True])
def test_gradient_of_the_actor(act: Spaces, discrete: str, pcont: bool) -> None:
    """As of a plain loop, in which the actor sees states without gradient and everything else is constant."""
    agent = make(VECTOR, act, pcont=pcont, discrete=discrete)
    data, noise, nets, model = batch(agent, B, T), draws(agent), agent.nets, agent.model
    _, post, _ = agent.model_loss(agent.init_train(B), data, noise)
    params = list(nets.pol.parameters())
    deter, stoch, alive = agent.start(post, data)
    got = torch.autograd.grad(agent.behavior_loss(agent.start(post, data), noise)[0], params)

    rews, discs, vals = [], [], []
    for t in range(H):
        action = fd.actor(nets.pol.params, model.dyn.feat(deter, stoch).detach(), noise.action[:, t])
        step = agent.ops.imagine_step(model.dyn.params, deter, stoch, action, noise.prior[:, t])
        deter, stoch = step.deter, step.stoch
        feat = model.dyn.feat(deter, stoch)
        rews.append(model.rew(feat))
        vals.append(nets.val(feat))
        discs.append(model.pcont(feat).sigmoid() if pcont else torch.full_like(vals[-1], 0.99))
    ret, rets = vals[-1], {}
    for t in reversed(range(H - 1)):
        rets[t] = ret = rews[t] + discs[t] * (0.05 * vals[t + 1] + 0.95 * ret)
    weight, total = alive, torch.zeros(())
    for t in range(H - 1):
        total = total - (weight.detach() * rets[t]).mean() / (H - 1)
        weight = weight * discs[t]
    want = torch.autograd.grad(total, params)
    scale = max(float(g.abs().max()) for g in want)
    assert scale > 1e-6
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)


def test_losses_on_one_batch_fall() -> None:
    """The world model learns what it sees again and again."""
    agent = make(VECTOR, DISCRETE, model_opt=AdamConfig(lr=3e-3), free_nats=0.0)
    data = batch(agent, B, T)
    losses = [float(agent.update(agent.init_train(B), data)[2]["loss/model"]) for _ in range(60)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
