"""Settings to start DreamerV3 from: those of the official code, and ours for small machines.

Each preset gives the settings of the official code today. `nature` then changes what differed when the published scores
were made. Steps are steps of the agent, before action repeat.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastdream.agents.dreamer_v3_config import variant
from fastdream.config import Config, EnvConfig, EvalConfig, LogConfig, ReplayConfig, TrainConfig
from fastdream.presets_shared import from_dataset

# Options of the suite that differ from its defaults, by preset and variant.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("dmc_vision", "current"): dict(obs="vision"),
    ("dmc_vision", "nature2024"): dict(obs="vision", repeat=2),
    ("dmc_proprio", "nature2024"): dict(repeat=2),
    ("atari", "nature2024"): dict(noops=0),
    ("atari100k", "nature2024"): dict(actions="all", noops=0, length=100_000),
    ("offline_vision", "current"): dict(obs="vision", repeat=2),  # as V-D4RL has it
}


def official(task: str, steps: float, envs: int, ratio: float, model: str = "200m") -> Config:
    """What all presets of the official code share: batches of 16 × 64, and a replay of 5 · 10^6 steps."""
    return Config(
        task=task,
        size=model,
        steps=int(steps),
        env=EnvConfig(count=envs),
        train=TrainConfig(ratio=float(ratio)),
        replay=ReplayConfig(capacity=min(5_000_000, int(steps))),  # more would never be filled
    )


def atari() -> Config:
    """Atari, 200 M frames: sticky actions, all 18 actions, 96 × 96 grey images, repeat 4."""
    return official("atari_pong", 5.1e7, 16, 32)


def atari100k() -> Config:
    """Atari, 400 k frames: no sticky actions, the game's own actions, 64 × 64 colour images, repeat 4."""
    return official("atari100k_pong", 1.1e5, 1, 256)


def crafter() -> Config:
    """Crafter."""
    return official("crafter_reward", 1.1e6, 1, 512)


def dmc_proprio() -> Config:
    """DeepMind Control from positions and velocities."""
    return official("dmc_walker_walk", 1.1e6, 16, 1024, "1m")


def dmc_vision() -> Config:
    """DeepMind Control from 64 × 64 colour images."""
    return official("dmc_walker_walk", 1.1e6, 16, 256)


def dmlab() -> Config:
    """DeepMind Lab, for an environment of your own (--task module:callable)."""
    return official("dmlab_explore_goal_locations_small", 2.6e7, 16, 32)


def procgen() -> Config:
    """ProcGen, for an environment of your own (--task module:callable)."""
    return official("procgen_coinrun", 1.1e8, 16, 64)


def minecraft() -> Config:
    """Minecraft, for an environment of your own (--task module:callable)."""
    return official("minecraft_diamond", 1e10, 16, 32)


def bsuite() -> Config:
    """BSuite, for an environment of your own (--task module:callable)."""
    return official("bsuite_mnist/0", 1e10, 1, 1024)


def loconav() -> Config:
    """Locomotion in mazes, for an environment of your own (--task module:callable)."""
    return official("loconav_ant_maze_m", 1e10, 16, 256)


def minigrid() -> Config:
    """MiniGrid; ours, not of the official code."""
    return official("minigrid_MiniGrid-Empty-5x5-v0", 5e5, 4, 128, "1m")


def gym() -> Config:
    """Any Gymnasium environment with small vectors; ours, for two CPU cores."""
    config = official("gym_CartPole-v1", 1e6, 4, 64, "tiny")
    dreamer = config.dreamer
    # What a small model and two cores make of the official settings: a higher learning rate, dreams from the second
    # half of each sequence, shallower heads with fewer bins, and more entropy, which keeps the few dreams varied.
    dreamer = replace(
        dreamer,
        opt=replace(dreamer.opt, lr=6e-4, warmup=100),
        rewhead=replace(dreamer.rewhead, bins=63),
        policy=replace(dreamer.policy, layers=2),
        value=replace(dreamer.value, layers=2, bins=63),
        imag_last=16,
        actent=3e-3,
    )
    return replace(
        config,
        train=TrainConfig(ratio=64.0, batch_size=16, batch_length=32),
        replay=ReplayConfig(capacity=200_000),
        eval=EvalConfig(every=10_000),
        log=LogConfig(save_every=60.0, report_every=10_000),
        dreamer=dreamer,
    )


def cartpole() -> Config:
    """CartPole in less than ten minutes on two CPU cores; the learning rate falls, so that the end is steady."""
    config = gym()
    opt = replace(config.dreamer.opt, schedule="linear", anneal=2600)
    return replace(config, steps=22_000, dreamer=replace(config.dreamer, opt=opt))


def offline() -> Config:
    """A dataset of sensors, for two CPU cores; ours."""
    config = from_dataset(gym(), 6000)
    # Values of a nearer horizon are learned sooner, and the actor learns nothing before they are.
    return replace(config, dreamer=replace(config.dreamer, horizon=100, actent=3e-4))


def offline_vision() -> Config:
    """A dataset of pictures; ours."""
    return from_dataset(replace(dmc_vision(), size="12m"), 100_000)


def debug() -> Config:
    """Everything tiny, to find out quickly whether it runs."""
    config = official("dummy_mixed", 1000, 4, 8, "debug")
    dreamer = config.dreamer
    heads = {
        name: replace(getattr(dreamer, name), layers=1) for name in ("rewhead", "conhead", "policy", "value")
    }
    heads["rewhead"], heads["value"] = replace(heads["rewhead"], bins=5), replace(heads["value"], bins=5)
    dreamer = replace(dreamer, dyn=replace(dreamer.dyn, blocks=4), imag_length=3, **heads)
    return replace(
        config,
        train=TrainConfig(ratio=8.0, batch_size=8, batch_length=10),
        eval=EvalConfig(episodes=1, final_episodes=1, count=1),
        log=LogConfig(outputs=("console", "jsonl"), every=1.0, report_every=0),
        dreamer=dreamer,
    )


PRESETS: dict[str, Callable[[], Config]] = {
    make.__name__: make
    for make in (
        cartpole, gym, atari, atari100k, crafter, dmc_proprio, dmc_vision, minigrid,
        dmlab, procgen, minecraft, bsuite, loconav, offline, offline_vision, debug,
    )
}  # fmt: skip

# What a task starts from: by its name, or by its suite.
SUITES = {name: name for name in ("gym", "atari", "atari100k", "crafter", "minigrid")}
SUITES |= {"gym_CartPole-v1": "cartpole", "dmc": "dmc_proprio", "dummy": "debug"}


def nature(config: Config, preset: str) -> Config:
    """The settings of the published scores (April 2024), where they differ from today's code."""
    env, train = config.env, config.train
    if preset == "atari100k":
        train = replace(train, ratio=128.0)
    if preset in ("dmc_proprio", "dmc_vision"):
        train = replace(train, ratio=512.0)
        # Each action twice; the scores are of 500 k and of 1 M frames.
        steps = 300_000 if preset == "dmc_proprio" else 600_000
        config = replace(config, size="12m", steps=steps, replay=replace(config.replay, capacity=steps))
    if preset == "minecraft":
        env = replace(env, count=64)
    dreamer = variant(config.dreamer, "nature2024")
    return replace(config, variant="nature2024", env=env, train=train, dreamer=dreamer)
