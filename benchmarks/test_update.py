"""A whole agent: its update on sensors and on images, and its policy's step.

    pytest benchmarks/test_update.py -m "slow or not slow" --benchmark-json=update.json

`native` stands for the native ops where there are any and the reference for the rest.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdream import ops as fd

from . import floors
from .shapes import backends, entries, job, random_batch

UPDATES = ("cartpole", "proprio-1m-16x64", "proprio-12m-4x16", "pixels-1m-4x16", "pixels-12m-4x16")
SLOW_UPDATES = ("pixels-12m-nature2024-4x16", "pixels-1m-16x64", "proprio-12m-16x64", "proprio-25m-4x16")
POLICIES = ("cartpole", "proprio-1m", "proprio-12m", "pixels-1m", "pixels-12m")


def tables(*used: str) -> list[str]:
    """Backends that have any of the ops that are used: with none of them it would be the reference once more."""
    return list(dict.fromkeys(name for op in used for name in backends(op)))


@pytest.mark.parametrize("backend", tables(*fd.OPS))
@pytest.mark.parametrize("name", [*UPDATES, *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW_UPDATES)])
def test_update(timed: Callable[..., Any], name: str, backend: str):
    task = job(name)
    agent = task.agent(fd.load(backend))
    batch, carry = random_batch(agent, task.batch, task.length), agent.init_train(task.batch)
    floor = floors.update(agent, batch, task.batch, task.length)
    about = {"what": "update", "preset": name, "mode": "all", "backend": backend}
    _, _, metrics = timed(lambda: agent.update(carry, batch), floor, **about)
    assert metrics["opt/loss"].isfinite()


@pytest.mark.parametrize("backend", tables("norm_act", "observe_step"))
@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("name", POLICIES)
def test_policy(timed: Callable[..., Any], name: str, n: int, backend: str):
    task = job(name if name == "cartpole" else f"{name}-{n}x1")
    agent, rng = task.agent(fd.load(backend)), np.random.default_rng(0)
    obs = {key: entries(space, (n,), rng) for key, space in agent.obs_space.items()}
    obs["is_first"] = np.zeros(n, bool)
    carry = agent.init_policy(n)
    about = {"what": "policy", "preset": f"{name}-{n}", "mode": "all", "backend": backend}
    _, action, _ = timed(lambda: agent.policy(carry, obs), floors.policy(agent, n), **about)
    assert len(action["action"]) == n
