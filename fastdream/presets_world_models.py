"""Settings to start World Models from: those of its two experiments, and ours for small machines.

Steps are steps that are recorded of a random policy, unless a dataset is in its place; V, M and C learn from nothing
else but, where C is evolved in the environment, its scores. The experiments recorded 10,000 rollouts each.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastdream.agents.world_models_config import (
    CollectConfig,
    ControlConfig,
    MemoryConfig,
    VisionConfig,
)
from fastdream.agents.world_models_config import Config as AgentConfig
from fastdream.config import Config, EnvConfig, EvalConfig, LogConfig

# Options of the suite that differ from its defaults, by preset and variant.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("take_cover_small", "current"): dict(repeat=4),
    ("racing_small", "current"): dict(repeat=4),
    ("gym", "current"): dict(size=64, gray=False, obs="vision"),
}


def take_cover() -> Config:
    """Doom's fireballs: C is evolved in dreams alone, with the sizes and times of the authors' code."""
    return Config(
        agent="world_models",
        task="vizdoom_take_cover",
        size="6m",
        steps=2_500_000,
        env=EnvConfig(count=16),
        eval=EvalConfig(final_episodes=100),
        dreamer=AgentConfig(),
    )


def car_racing() -> Config:
    """CarRacing: C is evolved in the environment, with the sizes and times of the authors' code."""
    dreamer = AgentConfig(
        latents=32,
        collect=CollectConfig(actions="networks", shortest=2),
        memory=MemoryConfig(units=256, ends=False, passes=40.0, length=999, decay=1.0),
        control=ControlConfig(cell=False, bias=True, where="real"),
    )
    return replace(take_cover(), task="car_racing", size="5m", steps=10_000_000, dreamer=dreamer)


def take_cover_small() -> Config:
    """Doom's fireballs, in some thirteen minutes of a CPU core: four tics a step, smaller nets, few rollouts."""
    # Actions are held for long, so that the walls at both ends are seen: in dreams of what was never seen nobody dies.
    dreamer = AgentConfig(
        collect=CollectConfig(hold=10, shortest=25),
        vision=VisionConfig(passes=4.0, batch=32, lr=1e-3),
        memory=MemoryConfig(passes=60.0, batch=16, length=64, decay=0.998),
        control=ControlConfig(length=525, generations=100, population=32, test_every=10, test_rollouts=256),
    )
    config = replace(take_cover(), size="small", steps=40_000, dreamer=dreamer)
    return replace(config, env=EnvConfig(count=2), log=LogConfig(save_every=60.0))


def racing_small() -> Config:
    """CarRacing, in some forty minutes of a CPU core: four frames a step, smaller nets, few rollouts and generations.

    C is evolved on the first half of episodes, in which it can leave the track as well as in the whole.
    """
    config, small = car_racing(), take_cover_small()
    memory, control = config.dreamer.memory, config.dreamer.control
    dreamer = replace(
        config.dreamer,
        vision=VisionConfig(passes=2.0, batch=32, lr=1e-3),
        memory=replace(memory, batch=32, length=100, decay=0.998),
        control=replace(
            control,
            length=125,
            generations=40,
            population=24,
            rollouts=1,
            test_every=10,
            test_rollouts=16,
        ),
    )
    return replace(small, task="car_racing", dreamer=dreamer)


def gym() -> Config:
    """Any other environment with pictures: random actions are recorded, C is evolved in the environment."""
    config = car_racing()
    # No episode is broken off: those of Atari, which are the longest, have 108,000 frames.
    control = replace(config.dreamer.control, length=108_000)
    dreamer = replace(config.dreamer, collect=CollectConfig(shortest=2), control=control)
    return replace(config, task="atari_pong", steps=1_000_000, dreamer=dreamer)


def offline_vision() -> Config:
    """A dataset of 64 × 64 pictures whose episodes can end: V, M, and C in dreams, for two CPU cores; ours."""
    config = take_cover_small()
    collect = replace(config.dreamer.collect, shortest=2)
    # As many steps as the dataset has take their place.
    return replace(config, task="", steps=1, dreamer=replace(config.dreamer, collect=collect))


def debug() -> Config:
    """Everything tiny, to find out quickly whether it runs."""
    dreamer = AgentConfig(
        collect=CollectConfig(shortest=5),
        vision=VisionConfig(passes=0.5, batch=10),
        memory=MemoryConfig(passes=2.0, batch=4, length=10),
        control=ControlConfig(
            length=20, generations=3, population=4, rollouts=2, test_every=2, test_rollouts=4
        ),
    )
    return replace(
        take_cover(),
        task="dummy_image",
        size="debug",
        steps=100,
        env=EnvConfig(count=2),
        eval=EvalConfig(episodes=1, final_episodes=2, count=1),
        log=LogConfig(outputs=("console", "jsonl"), every=1.0),
        dreamer=dreamer,
    )


PRESETS: dict[str, Callable[[], Config]] = {
    make.__name__: make
    for make in (take_cover_small, take_cover, racing_small, car_racing, gym, offline_vision, debug)
}

# What a task starts from: by its name, or by its suite.
SUITES = {"vizdoom": "take_cover", "car": "car_racing", "dummy": "debug"}
