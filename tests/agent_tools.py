"""What tests of whole agents share: spaces, a small agent, random batches and observations."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.spaces import Space, Spaces

from .watched import Calls

IMAGE = {"image": Space("image", (64, 64, 3))}
VECTOR = {"position": Space("vector", (3,)), "kind": Space("discrete", (2,), 4)}
DISCRETE = {"action": Space("discrete", (), 5)}
CONTINUOUS = {"action": Space("vector", (2,))}
MIXED = {"move": Space("vector", (2,)), "keys": Space("discrete", (3,), 4), "fire": Space("discrete", (), 2)}
FLAGS = ("is_first", "is_last", "is_terminal")


def make(obs: Spaces, act: Spaces, seed: int = 0, **changes: object) -> DreamerV3:
    return DreamerV3(obs, act, replace(size(Config(imag_length=3), "debug"), **changes), seed=seed)


def sample(space: Space, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    shape = lead + space.shape
    if space.kind == "image":
        return rng.integers(0, 256, shape, np.uint8)
    if space.kind == "discrete":
        return rng.integers(0, space.classes, shape, np.int32)
    return rng.standard_normal(shape, np.float32)


def batch(agent: DreamerV3, B: int = 2, T: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """A random batch in replay's layout, context included."""
    rng, lead = np.random.default_rng(seed), (B, T + agent.replay_context)
    data = {k: sample(s, lead, rng) for k, s in agent.obs_space.items()}
    data |= {f"action/{k}": sample(s, lead, rng) for k, s in agent.act_space.items()}
    data |= {k: rng.random(lead) < 0.2 for k in FLAGS}
    data["reward"] = rng.standard_normal(lead, np.float32)
    cfg = agent.config.dyn
    data["deter"] = rng.uniform(-1, 1, (*lead, cfg.deter)).astype(np.float16)
    data["stoch"] = rng.integers(0, cfg.classes, (*lead, cfg.stoch), np.uint8)
    return {k: torch.from_numpy(v) for k, v in data.items()}


def losses(agent: DreamerV3, calls: Calls) -> dict[str, Tensor]:
    """By name, the losses [B, ...] of the last batch, from the calls of `summarize` that its loss made."""
    averaged, _ = calls["summarize"][-2:]
    return dict(zip(agent.scales, averaged.given[0], strict=True))


def observation(agent: DreamerV3, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: sample(s, (n,), rng) for k, s in agent.obs_space.items()} | {"is_first": np.zeros(n, bool)}
