"""What the tests of the first two Dreamers share: spaces, random batches and observations, and formulas in NumPy."""

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import agents
from fastdream import ops as fd
from fastdream.spaces import Space, Spaces

IMAGE = {"image": Space("image", (64, 64, 3))}
VECTOR = {"position": Space("vector", (3,)), "kind": Space("discrete", (2,), 4)}
DISCRETE = {"action": Space("discrete", (), 5)}
CONTINUOUS = {"action": Space("vector", (2,))}
MIXED = {"move": Space("vector", (2,)), "keys": Space("discrete", (3,), 4), "fire": Space("discrete", (), 2)}
FLAGS = ("is_first", "is_last", "is_terminal")
WAITS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


def make(
    name: str, obs: Spaces, act: Spaces, ops: str = "auto", seed: int = 0, length: int = 3, **changes: Any
) -> Any:
    """A tiny agent by its name, which dreams so many steps."""
    settings = agents.settings(name)
    config = replace(settings.size(settings.Config(imag_length=length), "debug"), **changes)
    return agents.find(name)(obs, act, config, fd.load(ops), seed=seed)


def sample(space: Space, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    shape = lead + space.shape
    if space.kind == "image":
        return rng.integers(0, 256, shape, np.uint8)
    if space.kind == "discrete":
        return rng.integers(0, space.classes, shape, np.int32)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def batch(agent: Any, B: int = 2, T: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """A random batch in replay's layout."""
    rng, lead = np.random.default_rng(seed), (B, T)
    data = {k: sample(s, lead, rng) for k, s in agent.obs_space.items()}
    data |= {f"action/{k}": sample(s, lead, rng) for k, s in agent.act_space.items()}
    data |= {k: rng.random(lead) < 0.2 for k in FLAGS}
    data["is_first"][:, 0] = True
    data["reward"] = rng.standard_normal(lead, np.float32)
    return {k: torch.from_numpy(v) for k, v in data.items()}


def observation(agent: Any, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: sample(s, (n,), rng) for k, s in agent.obs_space.items()} | {"is_first": np.zeros(n, bool)}


def pickled(agent: Any) -> Any:
    """What torch.save and torch.load make of it."""
    buffer = io.BytesIO()
    torch.save(agent, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unit_normal(mean: np.ndarray, event: np.ndarray, dims: int = 0) -> np.ndarray:
    """Negative log density of a normal of variance 1, summed over the last axes."""
    loss = 0.5 * (event - mean) ** 2 + 0.5 * np.log(2 * np.pi)
    return loss.sum(tuple(range(-dims, 0))) if dims else loss


def model_losses(agent: Any, post: fd.Step, data: Mapping[str, Tensor], reward: str) -> dict[str, Any]:
    """Of reward, images, vectors and classes at these states, each a mean over them."""
    model, rewards = agent.model, double(data["reward"])
    feat = model.dyn.feat(post.deter, post.stoch)
    target = np.tanh(rewards) if reward == "tanh" else rewards
    recon = {k: double(v) for k, v in model.dec(*feat).items()}
    classes = data["kind"].long().numpy()[..., None]
    losses = {
        "rew": unit_normal(double(model.rew(feat)), target),
        "image": unit_normal(recon["image"], double(data["image"]) / 255 - 0.5, 3),
        "position": unit_normal(recon["position"], double(data["position"]), 1),
        "kind": -np.take_along_axis(log_softmax(recon["kind"]), classes, -1).sum((-2, -1)),
    }
    return {name: loss.mean() for name, loss in losses.items()}


def cross_entropy(logit: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of a Bernoulli and a soft target."""
    prob = sigmoid(logit)
    return -target * np.log(prob) - (1 - target) * np.log(1 - prob)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def lambda_return(rew: np.ndarray, disc: np.ndarray, val: np.ndarray, lam: float) -> np.ndarray:
    """As sums over n-step returns, states on axis 1: [N, K] each -> [N, K-1]; no recursion."""
    steps = rew.shape[1] - 1
    result = np.zeros((len(rew), steps))
    for t in range(steps):
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, steps - t)] + [lam ** (steps - t - 1)]
        for n, weight in enumerate(weights, start=1):
            total, alive = np.zeros(len(rew)), np.ones(len(rew))
            for k in range(t, t + n):
                total = total + alive * rew[:, k]
                alive = alive * disc[:, k]
            result[:, t] += weight * (total + alive * val[:, t + n])
    return result


def gradients(loss: Tensor, modules: Mapping[str, torch.nn.Module]) -> set[str]:
    """Names of the modules of which a parameter gets a gradient that is not zero; clears them."""
    loss.backward()
    reached = set()
    for name, module in modules.items():
        for parameter in module.parameters():
            if parameter.grad is not None and parameter.grad.any():
                reached.add(name)
            parameter.grad = None
    return reached


def same_after_loading(agent: Any, other: Any) -> bool:
    """Whether `other`, after it took over the state of `agent`, learns and acts as that does, to the bit."""
    carry = agent.init_train(2)
    for i in range(2):
        agent.update(carry, batch(agent, seed=i))
    agent.policy(agent.init_policy(2), observation(agent, 2))
    other.load_state_dict(agent.state_dict())
    results = []
    for one in (agent, other):
        for i in range(2):
            _, _, metrics = one.update(one.init_train(2), batch(agent, seed=5 + i))
        _, action, _ = one.policy(one.init_policy(2), observation(agent, 2))
        results.append(metrics | {k: torch.from_numpy(v) for k, v in action.items()})
    return all(torch.equal(value, results[1][key]) for key, value in results[0].items())
