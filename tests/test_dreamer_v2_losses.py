"""DreamerV2's losses, against formulas written once more in NumPy, in float64 and without its code."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v2 import DreamerV2
from fastdream.agents.dreamer_v2_config import KLConfig, LossScales, RSSMConfig
from fastdream.spaces import Spaces

from . import dreamer_tools
from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    MIXED,
    VECTOR,
    batch,
    cross_entropy,
    double,
    lambda_return,
    log_softmax,
    model_losses,
    sigmoid,
    unit_normal,
)

B, T, H = 2, 6, 4
NEAR = dict(rel=2e-5, abs=2e-5)


make = partial(dreamer_tools.make, "dreamer_v2", ops="reference", length=H)


def draws(agent: DreamerV2) -> Any:
    return agent.nets.draw(B, T, torch.Generator().manual_seed(3))


def numpy_kl(post: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """KL(post || prior), summed over variables: categorical logits [..., S, C], or mean | raw std [..., 2S]."""
    if post.ndim == 4:
        log_post, log_prior = log_softmax(post), log_softmax(prior)
        return (np.exp(log_post) * (log_post - log_prior)).sum((-2, -1))
    (m1, s1), (m2, s2) = ((x[..., :4], 2 * sigmoid(x[..., 4:] / 2) + 0.1) for x in (post, prior))
    return (np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5).sum(-1)


@pytest.mark.parametrize("free", [0.0, 0.01, 50.0])
@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
@pytest.mark.parametrize("reward", ["tanh", "identity"])
def test_world_model_loss(classes: int, free: float, reward: Any) -> None:
    scales = LossScales(rec=0.5, rew=2.0, dis=5.0, kl=0.1)
    kl, dyn = KLConfig(free=free), RSSMConfig(16, 8, 4, classes)
    agent = make(IMAGE | VECTOR, MIXED, kl=kl, dyn=dyn, reward=reward, loss_scales=scales, discount=0.9)
    data, model = batch(agent, B, T), agent.model
    total, post, metrics = agent.model_loss(agent.init_train(B), data, draws(agent))

    prior = double(agent.ops.prior(model.dyn.params, post.deter))
    plain = numpy_kl(double(post.logit), prior).mean()
    assert (plain < free) == (free == 50.0)
    want = {"kl": max(plain, free)}  # both sides have this value; only their gradients are balanced
    want |= model_losses(agent, post, data, reward)
    feat = model.dyn.feat(post.deter, post.stoch)
    target = 0.9 * (1 - double(data["is_terminal"]))
    want["dis"] = cross_entropy(double(model.dis(feat)), target).mean()
    for name, value in want.items():
        assert float(metrics[f"loss/{name}"]) == pytest.approx(value, **NEAR), name
    weights = {"kl": 0.1, "rew": 2.0, "dis": 5.0, "image": 0.5, "position": 0.5, "kind": 0.5}
    assert float(total.detach()) == pytest.approx(sum(weights[k] * v for k, v in want.items()), **NEAR)


@pytest.mark.parametrize(("free", "scale"), [(0.0, 1.0), (1e3, 0.0)])
@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
def test_kl_balance(classes: int, free: float, scale: float) -> None:
    """The prior gets 0.8 of the plain KL's gradient and the posterior 0.2; below the free nats none at all."""
    agent = make(VECTOR, DISCRETE, dyn=RSSMConfig(16, 8, 4, classes))
    shape = (B, T, 4, 4) if classes else (B, T, 8)
    post, prior = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    dyn, rep = agent.model.latent.kl(post, prior, free, "mean")
    balanced = torch.autograd.grad(0.8 * dyn.mean() + 0.2 * rep.mean(), (post, prior))
    plain = torch.autograd.grad(agent.model.latent.kl(post, prior, 0.0, "none")[1].mean(), post)[0]
    torch.testing.assert_close(balanced[0], 0.2 * scale * plain)
    plain = torch.autograd.grad(agent.model.latent.kl(post, prior, 0.0, "none")[0].mean(), prior)[0]
    torch.testing.assert_close(balanced[1], 0.8 * scale * plain)


def numpy_policy(agent: DreamerV2, outs: Any, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probability and entropy [N, H+1] of one key's policy."""
    (out,) = outs
    if len(out) == 1:
        logs = log_softmax(double(out[0])[..., 0, :])
        return (logs * action).sum(-1), -(np.exp(logs) * logs).sum(-1)
    dist = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    mean, std = (x.detach().double() for x in out)
    low, high = (-1 - mean) / std, (1 - mean) / std
    inside = dist.cdf(high) - dist.cdf(low)
    log = dist.log_prob((torch.from_numpy(action) - mean) / std) - std.log() - inside.log()
    pdf = [dist.log_prob(x).exp() for x in (low, high)]
    cut = (low * pdf[0] - high * pdf[1]) / (2 * inside)
    entropy = 0.5 * np.log(2 * np.pi * np.e) + (std * inside).log() + cut
    return log.sum(-1).numpy(), entropy.sum(-1).numpy()


@pytest.mark.parametrize("actor_grad", ["reinforce", "dynamics", "both"])
@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("pred_discount", [True, False])
def test_actor_and_critic_loss(act: Spaces, actor_grad: Any, pred_discount: bool) -> None:
    changes = {"grad_heads": ("decoder", "reward")} if not pred_discount else {}
    settings = dict(actor_grad=actor_grad, actor_mix="0.3", actent="0.05", lam=0.8, discount=0.9)
    agent = make(VECTOR, act, pred_discount=pred_discount, **settings, **changes)
    data, noise = batch(agent, B, T), draws(agent)
    with torch.no_grad():  # so that the target critic is not the critic
        for parameter in agent.nets.task.slowval.parameters():
            parameter.add_(0.1)
    _, post, _ = agent.model_loss(agent.init_train(B), data, noise)
    start = agent.start(post, data)
    losses, metrics = agent.behavior.loss(start, noise)

    nets, model = agent.nets.task, agent.model
    dream, feat, _, _, _ = agent.behavior.imagine(start, noise)
    assert torch.equal(dream.deter[:, 0], post.deter.detach().flatten(0, 1))
    rew, slow, val = (double(net(feat)) for net in (model.rew, nets.slowval, nets.val))
    disc = np.full_like(rew, 0.9)
    if pred_discount:
        disc = sigmoid(double(model.dis(feat)))
        disc[:, 0] = 0.9 * (1 - double(data["is_terminal"]).flatten())
    ret = lambda_return(rew, disc, slow, 0.8)
    assert ret.shape == (B * T, H)
    weight = np.stack([np.prod(disc[:, :t], 1) for t in range(H + 1)], 1)
    log_prob, entropy = numpy_policy(agent, nets.pol(feat), double(dream.action))
    score = log_prob[:, :-2] * (ret[:, 1:] - slow[:, :-2])
    mix = {"reinforce": 0.0, "dynamics": 1.0, "both": 0.3}[actor_grad]
    objective = mix * ret[:, 1:] + (1 - mix) * score + 0.05 * entropy[:, :-2]
    assert float(losses["policy"].detach()) == pytest.approx(-(weight[:, :-2] * objective).mean(), **NEAR)
    critic = (weight[:, :-1] * unit_normal(val[:, :-1], ret)).mean()
    assert float(losses["value"].detach()) == pytest.approx(critic, **NEAR)
    assert float(metrics["ret"]) == pytest.approx(ret.mean(), **NEAR)


@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
def test_gradient_of_the_actor_through_the_dynamics(classes: int) -> None:
    """As of a plain loop, in which the actor sees states without gradient and parameters of the model are constants."""
    agent = make(VECTOR, CONTINUOUS, actent="0", dyn=RSSMConfig(16, 8, 4, classes))
    data, noise = batch(agent, B, T), draws(agent)
    _, post, _ = agent.model_loss(agent.init_train(B), data, noise)
    start, model, nets = agent.start(post, data), agent.model, agent.nets.task
    params = list(nets.pol.parameters())
    losses, _ = agent.behavior.loss(start, noise)
    got = torch.autograd.grad(losses["policy"], params)

    deter, stoch, rews, discs, vals = start.deter, start.stoch, [], [], []
    for t in range(H + 1):
        feat = model.dyn.feat(deter, stoch)
        rews.append(model.rew(feat))
        discs.append(model.dis(feat).sigmoid() if t else start.disc)
        vals.append(nets.slowval(feat))
        action = fd.actor(nets.pol.params, feat.detach(), noise.action[:, t])
        if t < H:
            step = agent.ops.imagine_step(model.dyn.params, deter, stoch, action, noise.prior[:, t])
            deter, stoch = step.deter, step.stoch
    ret, rets = vals[H], {}
    for t in reversed(range(H)):
        rets[t] = ret = rews[t] + discs[t] * (0.05 * vals[t + 1] + 0.95 * ret)
    weight, total = torch.ones_like(ret), torch.zeros(())
    for t in range(H - 1):
        total = total - (weight.detach() * rets[t + 1]).mean() / (H - 1)
        weight = weight * discs[t]
    want = torch.autograd.grad(total, params)
    scale = max(float(g.abs().max()) for g in want)
    assert scale > 1e-6
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)


def test_gradient_of_a_mixed_objective_is_the_mixture_of_both() -> None:
    """What a score is multiplied by is a number, though it comes from a dream that gradients flow through."""

    def gradient(actor_grad: str) -> list[torch.Tensor]:
        agent = make(VECTOR, CONTINUOUS, actor_grad=actor_grad, actor_mix="0.3", actent="0")
        data, noise = batch(agent, B, T), draws(agent)
        _, post, _ = agent.model_loss(agent.init_train(B), data, noise)
        losses, _ = agent.behavior.loss(agent.start(post, data), noise)
        return list(torch.autograd.grad(losses["policy"], list(agent.nets.task.pol.parameters())))

    mixed, dynamics, score = map(gradient, ("both", "dynamics", "reinforce"))
    for ours, one, other in zip(mixed, dynamics, score, strict=True):
        scale = float(one.abs().max() + other.abs().max())
        torch.testing.assert_close(ours, 0.3 * one + 0.7 * other, rtol=1e-4, atol=1e-5 * scale)


def test_losses_on_one_batch_fall() -> None:
    """The world model learns what it sees again and again."""
    agent = make(VECTOR, DISCRETE, model_opt=AdamConfig(lr=3e-3))
    data = batch(agent, B, T)
    losses = [float(agent.update(agent.init_train(B), data)[2]["loss/model"]) for _ in range(60)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
