"""Settings to start DreamerV1 from: those of the official code, and ours for small machines.

Steps are steps of the agent, before action repeat. Two things differ from the official code: it makes 100 updates at
once every 500 steps, where here as many are spread evenly; and it keeps all that was seen, where here a million steps
are kept.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastdream.agents.dreamer_v1_config import Config as DreamerConfig
from fastdream.config import Config, EnvConfig, EvalConfig, LogConfig, ReplayConfig, TrainConfig
from fastdream.presets_shared import from_dataset, learning, tiny

# Options of the suite that differ from its defaults, by preset and variant.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("dmc_vision", "current"): dict(obs="vision", repeat=2),
    ("dmc_proprio", "current"): dict(repeat=2),
    ("balance", "current"): dict(repeat=2),
    ("offline_vision", "current"): dict(obs="vision", repeat=2),
    ("atari", "current"): dict(size=64, gray=False, actions="needed", lives="reset"),
}


def official(task: str, steps: float, model: str = "6m") -> Config:
    """What all presets of the official code share: one environment, batches of 50 × 50, windows within episodes."""
    return Config(
        agent="dreamer_v1",
        task=task,
        size=model,
        steps=int(steps),
        env=EnvConfig(count=1),
        train=TrainConfig(ratio=500.0, batch_size=50, batch_length=50, prefill=2500, pretrain=100),
        replay=ReplayConfig(capacity=1_000_000, online=False, windows="not_last"),
        eval=EvalConfig(every=5000, episodes=1, count=1, mode="mode"),
        dreamer=DreamerConfig(),
    )


def dmc_vision() -> Config:
    """DeepMind Control from 64 × 64 colour images, repeat 2."""
    return official("dmc_walker_walk", 2.5e6)


def dmc_proprio() -> Config:
    """DeepMind Control from positions and velocities, repeat 2; the official code has images alone."""
    return official("dmc_walker_walk", 2.5e6)


def atari() -> Config:
    """Atari and other discrete actions: 64 × 64 colour images, repeat 4; episodes of training end with each life."""
    config = official("atari_pong", 5e7)
    dreamer = replace(
        config.dreamer,
        imag_length=10,
        kl_scale=0.1,
        pcont=True,
        pcont_scale=1.0,  # of the first code, in TensorFlow 1, which alone has settings for Atari
        reward="tanh",
        discrete="score",
        # As fast as from 0.4 to 0 in 200,000 updates, but only down to 0.25.
        expl="linear(0.4,0.25,75000)",
        expl_eval=0.001,
    )
    return replace(config, dreamer=dreamer)


def gym() -> Config:
    """Any Gymnasium environment with small vectors; ours, for two CPU cores.

    The official settings are for images and tens of thousands of updates; here a few thousand must do, of nets of 64
    units, so all learn faster. Sensors vary by much less than the variance of 1 that they are predicted with, so the
    KL weighs less. And actions begin within their limits, not at them.
    """
    config = official("gym_Pendulum-v1", 1e6, "tiny")
    dreamer = config.dreamer
    shallow = {
        name: replace(getattr(dreamer, name), layers=2) for name in ("value", "pconthead", "enc", "dec")
    }
    policy = replace(dreamer.policy, layers=2, init_std=1.0)
    dreamer = replace(dreamer, kl_scale=0.01, free_nats=1.0, pcont=True, policy=policy, **shallow)
    return replace(
        config,
        env=EnvConfig(count=4),
        train=TrainConfig(ratio=64.0, batch_size=16, batch_length=16, prefill=1000, pretrain=100),
        # Episodes may be shorter than sequences.
        replay=ReplayConfig(capacity=200_000, online=False),
        eval=EvalConfig(every=10_000, mode="mode"),
        log=LogConfig(save_every=60.0, report_every=10_000),
        dreamer=learning(dreamer, 1e-3, 1e-4, 3e-4),
    )


def pendulum() -> Config:
    """Swinging a pendulum up on two CPU cores.

    No episode ends early. Rewards are as low as -16 a step: with the official discount of 0.99 the critic would have
    to fall to -700 before it says anything, with this one to -240. A step of experience is replayed twice as often.
    """
    config = gym()
    return replace(
        config,
        steps=8_000,
        train=replace(config.train, ratio=128.0, pretrain=300),
        dreamer=replace(config.dreamer, pcont=False, discount=0.97),
    )


def balance() -> Config:
    """Balancing the cartpole of DeepMind Control, from its sensors, on two CPU cores; repeat 2.

    As for a pendulum, but for more steps, a farther horizon, and a KL that weighs less. Which of these it needs has not
    been told apart.
    """
    config = pendulum()
    dreamer = replace(config.dreamer, kl_scale=0.001, discount=0.98)
    return replace(config, task="dmc_cartpole_balance", steps=10_000, dreamer=dreamer)


def offline() -> Config:
    """A dataset of sensors, for two CPU cores; ours."""
    return from_dataset(gym(), 10_000)


def offline_vision() -> Config:
    """A dataset of 64 × 64 pictures; ours."""
    return from_dataset(dmc_vision(), 100_000)


def debug() -> Config:
    """Everything tiny, to find out quickly whether it runs."""
    nets = ("rewhead", "pconthead", "policy", "value", "enc", "dec")
    return tiny(official("dummy_mixed", 1000, "debug"), nets, pretrain=2)


PRESETS: dict[str, Callable[[], Config]] = {
    make.__name__: make
    for make in (pendulum, balance, gym, atari, dmc_proprio, dmc_vision, offline, offline_vision, debug)
}

# What a task starts from: by its name, or by its suite.
SUITES = {"gym_Pendulum-v1": "pendulum", "gym": "gym", "atari": "atari", "atari100k": "atari"}
SUITES |= {"dmc_cartpole_balance": "balance", "dmc": "dmc_proprio", "dummy": "debug"}
