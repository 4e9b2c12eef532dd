"""Settings to start from, one function a task family: those of the official code, and ours for small machines.

Each function gives the settings of DreamerV3's official code today. `nature` then changes what differed when the
published scores were made. Steps are steps of the agent, before action repeat. The presets of the other agents are in
files of their own; `resolve` chooses among all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from fastdream import (
    agents,
    presets_dreamer_v1,
    presets_dreamer_v2,
    presets_offline_dv2,
    presets_world_models,
)
from fastdream.agents.dreamer_v3_config import variant
from fastdream.config import Config, EnvConfig, EvalConfig, LogConfig, ReplayConfig, TrainConfig
from fastdream.envs import options_of
from fastdream.presets_shared import from_dataset

VARIANTS = ("current", "nature2024")


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

# What a task starts from: by its name, or by its suite, which is what stands before the first underscore.
SUITES = {name: name for name in ("gym", "atari", "atari100k", "crafter", "minigrid")}
SUITES |= {"gym_CartPole-v1": "cartpole", "dmc": "dmc_proprio", "dummy": "debug"}


class Catalogue(NamedTuple):
    """The presets of an agent."""

    presets: Mapping[str, Callable[[], Config]]
    suites: Mapping[str, str]
    options: Mapping[tuple[str, str], Mapping[str, Any]]


CATALOGUES = {
    "dreamer_v3": Catalogue(PRESETS, SUITES, OPTIONS),
    **{
        name: Catalogue(module.PRESETS, module.SUITES, module.OPTIONS)
        for name, module in (
            ("dreamer_v2", presets_dreamer_v2),
            ("dreamer_v1", presets_dreamer_v1),
            ("offline_dv2", presets_offline_dv2),
            ("world_models", presets_world_models),
        )
    },
}


def preset_of(task: str, agent: str = "dreamer_v3") -> str:
    """The preset that a task starts from, if none is given; `gym` if its suite has none, `offline` without that."""
    presets, suites, _ = CATALOGUES[agent]
    return suites.get(task) or suites.get(task.split("_")[0]) or ("gym" if "gym" in presets else "offline")


def resolve(
    task: str = "",
    preset: str = "",
    model: str = "",
    kind: str = "current",
    agent: str = "dreamer_v3",
    dataset: str = "",
) -> Config:
    """The settings for a task, a preset, a size, a variant, an agent and a dataset, of which any may be left out.

    Raises ValueError for a name that does not exist, with the nearest one that does.
    """
    settings = agents.settings(agent)
    presets = CATALOGUES[agent].presets
    # Without a task or a preset, what trains soonest.
    preset = preset or (preset_of(task, agent) if task else next(iter(presets)))
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r}: {nearest(preset, presets, 'preset')}")
    if kind not in VARIANTS:
        raise ValueError(f"unknown variant {kind!r}: {nearest(kind, VARIANTS, 'variant')}")
    config = presets[preset]()
    if kind == "nature2024":
        if agent != "dreamer_v3":
            raise ValueError(f"variant {kind!r} is one of dreamer_v3; {agent} has none")
        config = nature(config, preset)
    if not config.task and not dataset:
        raise ValueError(f"preset {preset!r} of {agent} is for learning from a dataset: give --dataset")
    # What is learned from a dataset has a task only where it is to be evaluated.
    task = task if dataset else task or config.task
    config = replace(config, preset=preset, task=task, dataset=dataset, size=model or config.size)
    if config.size not in settings.SIZES:
        raise ValueError(f"unknown size {config.size!r}: {nearest(config.size, settings.SIZES, 'size')}")
    options = suite_options(config.task, CATALOGUES[agent].options.get((preset, kind), {}))
    return replace(config, suite=options, dreamer=settings.size(config.dreamer, config.size))


def suite_options(task: str, changes: Mapping[str, Any]) -> Any:
    """Options of the task's suite, with what a preset changes where the suite has it; None without a task.

    Raises EnvError, a ValueError, for a task that no suite offers, with the nearest one.
    """
    if not task:
        return None
    kind_of_options = options_of(task)
    known = {field.name for field in fields(kind_of_options)}
    return kind_of_options(**{k: v for k, v in changes.items() if k in known})


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


def nearest(name: str, known: Any, what: str) -> str:
    """'did you mean ...?' with the nearest known name, or the list of all."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return (
        f"did you mean {close[0]!r}?" if close else f"there is no such {what}; known are {', '.join(known)}"
    )


def describe(agent: str = "dreamer_v3") -> str:
    """A line for each preset of an agent, for `--preset list`."""
    agents.settings(agent)  # says which agents there are
    lines, wide = [], max(map(len, CATALOGUES[agent].presets))
    for name, make in CATALOGUES[agent].presets.items():
        config = make()
        unit, envs = "steps  ", "env " if config.env.count == 1 else "envs"
        learns = "in stages" if agent in agents.STAGED else f"ratio {config.train.ratio:g}"
        learns = f"{config.env.count:>2} {envs}  {learns}"
        if not config.task:
            unit, learns = "updates", "from a dataset"
        about = (make.__doc__ or "").splitlines()[0]
        lines.append(f"{name:{wide}} {config.size:>5}  {config.steps:>14,} {unit}  {learns:<21}  {about}")
    return "\n".join(lines)
