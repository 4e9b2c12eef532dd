"""Settings to start DreamerV2 from: those of the official code, and ours for small machines.

Steps are steps of the agent, before action repeat.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastdream.agents.dreamer_v2_config import Config as DreamerConfig
from fastdream.agents.dreamer_v2_config import KLConfig, LossScales
from fastdream.config import Config, EnvConfig, EvalConfig, LogConfig, ReplayConfig, TrainConfig
from fastdream.presets_shared import from_dataset, learning, tiny

# Options of the suite that differ from its defaults, by preset and variant.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("atari", "current"): dict(size=64, actions="needed"),
    ("dmc_vision", "current"): dict(obs="vision", repeat=2),
    ("dmc_proprio", "current"): dict(repeat=2),
    ("offline_vision", "current"): dict(obs="vision", repeat=2),
}


def official(task: str, steps: float, model: str, every: int, prefill: int, evaluate: float) -> Config:
    """What all presets of the official code share: one environment, batches of 16 × 50, windows within episodes.

    every   steps between updates.
    """
    size, length = 16, 50
    return Config(
        agent="dreamer_v2",
        task=task,
        size=model,
        steps=int(steps),
        env=EnvConfig(count=1),
        train=TrainConfig(ratio=size * length / every, batch_size=size, batch_length=length, prefill=prefill),
        replay=ReplayConfig(capacity=2_000_000, online=False, windows="ends"),
        eval=EvalConfig(every=int(evaluate), episodes=1, count=1, mode="mode"),
        dreamer=DreamerConfig(),
    )


def atari() -> Config:
    """Atari, 200 M frames: sticky actions, the game's own actions, 64 × 64 grey images, repeat 4.

    Pictures are made as DreamerV3's are: the brightest of two frames, shrunk by Pillow, then grey. The official ones
    are grey first and shrunk by OpenCV's areas, which differs by up to three levels in the mean.
    """
    config = official("atari_pong", 5e7, "22m", 16, 50_000, 2.5e5)
    scales = LossScales(kl=0.1, dis=5.0)
    dreamer = replace(config.dreamer, loss_scales=scales, discount=0.999, actent="1e-3")
    return replace(config, dreamer=learning(dreamer, 2e-4, 4e-5, 1e-4))


def crafter() -> Config:
    """Crafter."""
    config = official("crafter_reward", 1e8, "31m", 5, 10_000, 1e5)
    nets = ("dyn", "enc", "dec", "rewhead", "dishead", "policy", "value")
    normed = {name: replace(getattr(config.dreamer, name), norm="layer") for name in nets}
    explore = config.dreamer.explore
    normed["explore"] = replace(explore, net=replace(explore.net, norm="layer"))
    dreamer = replace(config.dreamer, discount=0.999, actent="3e-3", **normed)
    return replace(config, dreamer=learning(dreamer, 1e-4, 1e-4, 1e-4))


def dmc_vision() -> Config:
    """DeepMind Control from 64 × 64 colour images, repeat 2."""
    config = official("dmc_walker_walk", 1e8, "15m", 5, 1000, 1e4)
    dreamer = replace(
        config.dreamer,
        pred_discount=False,
        grad_heads=("decoder", "reward"),
        reward="identity",
        kl=KLConfig(free=1.0),
        actent="1e-4",
    )
    return replace(
        config,
        train=replace(config.train, pretrain=100),
        replay=replace(config.replay, windows="episode"),
        dreamer=learning(dreamer, 3e-4, 8e-5, 8e-5),
    )


def dmc_proprio() -> Config:
    """DeepMind Control from positions and velocities, repeat 2."""
    return dmc_vision()


def gym() -> Config:
    """Any Gymnasium environment with small vectors; ours, for two CPU cores.

    The official settings are for images and tens of millions of frames; here a few thousand updates must do, of nets
    of 64 units, so all learn faster. And sensors vary by much less than the variance of 1 that they are predicted
    with, so their loss weighs more, and the KL less.
    """
    config = official("gym_CartPole-v1", 1e6, "tiny", 5, 1000, 1e4)
    dreamer = config.dreamer
    heads = ("rewhead", "dishead", "policy", "value")
    shallow = {name: replace(getattr(dreamer, name), layers=2) for name in (*heads, "enc", "dec")}
    dreamer = replace(
        dreamer,
        discount=0.995,
        loss_scales=LossScales(rec=100.0, kl=0.1, dis=10.0),
        reward="identity",
        # There are few updates to follow the critic in.
        slowvalue=replace(dreamer.slowvalue, every=50),
        **shallow,
    )
    return replace(
        config,
        env=EnvConfig(count=4),
        train=TrainConfig(ratio=64.0, batch_size=16, batch_length=16, prefill=1000),
        # Episodes may be shorter than sequences.
        replay=ReplayConfig(capacity=200_000, online=False),
        eval=EvalConfig(every=10_000, mode="mode"),
        log=LogConfig(save_every=60.0, report_every=10_000),
        dreamer=learning(dreamer, 6e-4, 3e-4, 3e-4),
    )


def cartpole() -> Config:
    """CartPole on two CPU cores.

    Advantages are not normalised, and at a reward of 1 a step returns reach 200: so the entropy weighs much more than
    it does for rewards within a tanh. At 20,000 steps one seed of three was not there yet.
    """
    config = gym()
    return replace(config, steps=30_000, dreamer=replace(config.dreamer, actent="0.5"))


def offline() -> Config:
    """A dataset of sensors, for two CPU cores; ours."""
    return from_dataset(gym(), 10_000)


def offline_vision() -> Config:
    """A dataset of 64 × 64 pictures; ours."""
    return from_dataset(dmc_vision(), 100_000)


def debug() -> Config:
    """Everything tiny, to find out quickly whether it runs."""
    nets = ("rewhead", "dishead", "policy", "value", "enc", "dec")
    return tiny(official("dummy_mixed", 1000, "debug", 5, 0, 0), nets)


PRESETS: dict[str, Callable[[], Config]] = {
    make.__name__: make
    for make in (cartpole, gym, atari, crafter, dmc_proprio, dmc_vision, offline, offline_vision, debug)
}

# What a task starts from: by its name, or by its suite.
SUITES = {"gym_CartPole-v1": "cartpole", "gym": "gym", "atari": "atari", "atari100k": "atari"}
SUITES |= {"crafter": "crafter", "dmc": "dmc_proprio", "dummy": "debug"}
