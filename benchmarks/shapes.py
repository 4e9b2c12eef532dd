"""Shapes at which things are timed: the sizes of DreamerV3, the cores of its predecessors, and whole agents.

Random numbers come from fixed seeds, so that every backend and every run computes the same.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream import presets
from fastdream.agents import dreamer_v1, dreamer_v2
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size, variant
from fastdream.agents.dreamer_v3_config import SIZES
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.config import TrainConfig
from fastdream.cores import GRU, LayerNormGRU
from fastdream.distributions import TanhNormal, TruncNormal
from fastdream.dreamer import Dreamer
from fastdream.latents import Categorical, Gaussian
from fastdream.ops import RSSM, Actor, Ops
from fastdream.policy import ActorHeads, PolicyConfig
from fastdream.rssm import RSSM as Model
from fastdream.spaces import Space, Spaces

# Those of the official code; `tiny` and `debug` are ours.
PRESETS = tuple(name for name in SIZES if name[0].isdigit())

# Walker of DeepMind Control by its sensors and by its images, Crafter by its images, CartPole.
PROPRIO = {"sensors": Space("vector", (24,))}, {"action": Space("vector", (6,))}
WALKER = {"image": Space("image", (64, 64, 3))}, PROPRIO[1]
PIXELS = {"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 17)}
CARTPOLE = {"vector": Space("vector", (4,))}, {"action": Space("discrete", (), 2)}


@dataclass(frozen=True)
class Shape:
    """Widths of one preset, and the batch that it learns from."""

    name: str
    deter: int
    hidden: int
    stoch: int
    classes: int  # 0: Gaussian latents
    embed: int
    units: int
    blocks: int = 0  # 0: the core of DreamerV1 or V2
    action: int = 6
    bins: int = 255
    batch: int = 16
    length: int = 64
    horizon: int = 15

    @property
    def starts(self) -> int:
        """States that imagination starts from: every one of a batch."""
        return self.batch * self.length

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one stochastic latent."""
        return (self.stoch, self.classes) if self.classes else (self.stoch,)

    @property
    def feat(self) -> int:
        """Width of the features that heads see."""
        return self.deter + int(np.prod(self.latent))


# Sizes as published: DreamerV1 and V2 for DeepMind Control from images, DreamerV2 for Atari. `v1-debug` is ours.
EARLIER = {
    "v1-debug": Shape("v1-debug", 16, 16, 4, 0, 32, 8, batch=2, length=1),
    "v1": Shape("v1", 200, 200, 30, 0, 1024, 400, batch=50, length=50),
    "v2-dmc": Shape("v2-dmc", 200, 200, 32, 32, 1536, 400, batch=16, length=50),
    "v2-atari": Shape("v2-atari", 600, 600, 32, 32, 1536, 400, action=18, batch=16, length=50),
}


def shape(name: str) -> Shape:
    """The shapes of a preset with sensors in and six continuous actions out, or of one in EARLIER."""
    if name in EARLIER:
        return EARLIER[name]
    config = size(Config(), name)
    dyn, train = config.dyn, TrainConfig()
    return Shape(
        name,
        deter=dyn.deter,
        hidden=dyn.hidden,
        stoch=dyn.stoch,
        classes=dyn.classes,
        embed=config.enc.units,
        units=config.policy.units,
        blocks=dyn.blocks,
        action=PROPRIO[1]["action"].width,
        bins=config.value.bins,
        batch=train.batch_size,
        length=train.batch_length,
        horizon=config.imag_length,
    )


@lru_cache(maxsize=2)
def networks(name: str) -> Networks:
    """All networks of a DreamerV3 preset on sensors."""
    return Networks(*PROPRIO, size(Config(), name), fd.load("reference"), torch.float32, seed=0)


@lru_cache(maxsize=4)
def model(name: str) -> tuple[RSSM, Actor]:
    """Parameters of a preset's world model and actor, as ops take them."""
    if name not in EARLIER:
        nets = networks(name)
        return nets.dyn.params, nets.pol.params
    s, ops, generator = EARLIER[name], fd.load("reference"), torch.Generator().manual_seed(0)
    latent = Categorical(ops, s.stoch, s.classes, unimix=0.0) if s.classes else Gaussian(ops, s.stoch)
    cell = LayerNormGRU if s.classes else GRU
    core = cell(ops, s.deter, latent.width, s.action, hidden=s.hidden, generator=generator)
    dyn = Model(
        ops,
        core,
        latent,
        s.embed,
        hidden=s.hidden,
        prior_layers=1,
        norm="none",
        act="elu",
        generator=generator,
    )
    action = Space("discrete", (), s.action) if s.name.endswith("atari") else Space("vector", (s.action,))
    config, family = PolicyConfig(4, s.units, "none", "elu"), TruncNormal() if s.classes else TanhNormal()
    return dyn.params, ActorHeads(ops, s.feat, {"action": action}, config, generator, family).params


@dataclass(frozen=True)
class Job:
    """An agent and the batch that it learns from."""

    obs: Spaces
    act: Spaces
    config: Config
    batch: int
    length: int

    def agent(self, ops: Ops, device: torch.device | str = "cpu") -> DreamerV3:
        """The agent with fresh parameters, whose learning rate is past its warm-up."""
        config = replace(self.config, opt=replace(self.config.opt, warmup=0))
        return DreamerV3(self.obs, self.act, config, ops, device)


@dataclass(frozen=True)
class EarlierJob:
    """An earlier agent of a size on images, and the batch that it learns from."""

    kind: str  # one of EARLIER_KINDS
    size: str
    batch: int
    length: int

    def agent(
        self, ops: Ops, device: torch.device | str = "cpu"
    ) -> dreamer_v1.DreamerV1 | dreamer_v2.DreamerV2:
        """The agent with fresh parameters."""
        spaces = PIXELS if self.kind == "v2atari" else WALKER
        if self.kind.startswith("v2"):
            return dreamer_v2.DreamerV2(*spaces, dreamer_v2.size(dreamer_v2.Config(), self.size), ops, device)
        config = dreamer_v1.size(dreamer_v1.Config(), self.size)
        config = replace(config, dyn=replace(config.dyn, reset_after=self.kind != "planet"))
        return dreamer_v1.DreamerV1(*spaces, config, ops, device)


# DreamerV1, the same with PlaNet's GRU, and DreamerV2: of continuous actions, through whose dreams it learns, and of
# discrete ones.
EARLIER_KINDS = ("v1", "planet", "v2", "v2atari")


def job(name: str) -> Job:
    """`<proprio|pixels>-<size>[-nature2024]-<batch>x<length>`, or `cartpole`: the preset for small CPUs."""
    if name == "cartpole":
        preset = presets.resolve("gym_CartPole-v1")
        return Job(*CARTPOLE, preset.dreamer, preset.train.batch_size, preset.train.batch_length)
    spaces, model_size, *kind, batch = name.split("-")
    config = size(Config(), model_size)
    if kind == ["nature2024"]:
        config = variant(config, "nature2024")
    return Job(*{"proprio": PROPRIO, "pixels": PIXELS}[spaces], config, *map(int, batch.split("x")))


def earlier_job(name: str) -> EarlierJob:
    """`<kind>-<size>-<batch>x<length>`, the kind one of EARLIER_KINDS."""
    kind, model_size, batch = name.split("-")
    return EarlierJob(kind, model_size, *map(int, batch.split("x")))


def random_batch(agent: DreamerV3 | Dreamer, batch: int, length: int) -> dict[str, Tensor]:
    """What replay would give: [batch, context + length, ...], with an episode's end every 50 steps or so."""
    rng, lead = np.random.default_rng(0), (batch, agent.replay_context + length)
    data = {key: entries(space, lead, rng) for key, space in agent.obs_space.items()}
    data |= {f"action/{key}": entries(space, lead, rng) for key, space in agent.act_space.items()}
    data |= {key: rng.random(lead) < 0.02 for key in ("is_first", "is_last", "is_terminal")}
    data["reward"] = rng.standard_normal(lead, np.float32)
    if not isinstance(agent, DreamerV3):
        return {key: torch.from_numpy(value) for key, value in data.items()}  # they learn from no latents
    dyn = agent.config.dyn
    data["deter"] = rng.uniform(-1, 1, (*lead, dyn.deter)).astype(np.float16)
    data["stoch"] = rng.integers(0, dyn.classes, (*lead, dyn.stoch), np.uint8)
    return {key: torch.from_numpy(value) for key, value in data.items()}


def entries(space: Space, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random entries [*lead, *space.shape] of an observation or an action."""
    dims = lead + space.shape
    if space.kind == "image":
        return rng.integers(0, 256, dims, np.uint8)
    if space.kind == "discrete":
        return rng.integers(0, space.classes, dims, np.int32)
    return rng.standard_normal(dims, np.float32)


Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
BACKENDS = ("reference", "native", "triton")


def backends(op: str) -> list[str]:
    """The backends that have an op here."""
    found = []
    for name in BACKENDS:
        try:
            fd.load("reference", **{op: name})
        except ValueError:
            continue
        found.append(name)
    return found
