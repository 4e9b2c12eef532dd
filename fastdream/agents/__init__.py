"""The agents by name, imported when they are asked for; and how to use one that was trained.

from fastdream.agents import load

agent = load("runs/latest")
carry = agent.init_policy(1)
carry, action, _ = agent.policy(carry, obs)  # obs: arrays [1, ...] by key, and is_first [1]

Observations and actions are as `fastdream.envs.make(task)` has them: nested entries by one name, classes from 0, and
actions with finite bounds in [-1, 1].
"""

import difflib
import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

# Name -> module and class.
AGENTS = {
    "dreamer_v1": ("fastdream.agents.dreamer_v1", "DreamerV1"),
    "dreamer_v2": ("fastdream.agents.dreamer_v2", "DreamerV2"),
    "dreamer_v3": ("fastdream.agents.dreamer_v3", "DreamerV3"),
    "offline_dv2": ("fastdream.agents.dreamer_v2_offline", "OfflineDV2"),
    "world_models": ("fastdream.agents.world_models", "WorldModels"),
}

# Those that learn in the stages of fastdream.stages, from rollouts on disk, and not while they act.
STAGED = ("world_models",)


def find(name: str) -> Any:
    """The class of an agent; ValueError with the nearest name if there is none."""
    module, attribute = _entry(name)
    return getattr(importlib.import_module(module), attribute)


def settings(name: str) -> Any:
    """The module of an agent's settings: its `Config`, its `SIZES` by name, and `size`, which sets one of them.

    ValueError with the nearest name if there is no such agent.
    """
    return importlib.import_module(f"{_entry(name)[0]}_config")


def _entry(name: str) -> tuple[str, str]:
    refuse_unknown("agent", name, AGENTS)
    return AGENTS[name]


def refuse_unknown(what: str, name: str, known: Collection[str]) -> None:
    """ValueError for a name of nothing that there is, with the nearest one, or with all where none is near."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise ValueError(f"unknown {what} {name!r}: {hint}")


def load(logdir: str | Path, device: str = "cpu", checkpoint: str = "last") -> Any:
    """The agent of a run as it was last saved ("best": as it scored best), ready to act.

    Raises ValueError if the folder holds no run, and CheckpointError if no checkpoint in it can be used.
    """
    restore = importlib.import_module("fastdream.restore")
    return restore.load_agent(Path(logdir), device, checkpoint)[0]
