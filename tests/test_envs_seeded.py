"""Environments that draw from the generators of their whole process, which nobody but a run can seed for them."""

import random
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream.build import environment, in_processes
from fastdream.cli import parse
from fastdream.driver import Driver
from fastdream.envs import make

from .driver_tools import alike, roll

LUCK = """
    import random

    import gymnasium
    import numpy as np

    class Luck(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (3,))
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self):
            self.born, self.steps = random.random(), 0

        def observe(self):
            return np.array([self.born, random.random(), np.random.rand()], np.float32)

        def reset(self, seed=None, options=None):
            return self.observe(), {}

        def step(self, action):
            self.steps += 1
            return self.observe(), np.random.randn(), self.steps % 7 == 0, False, {}
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "luck_of_the_draw.py").write_text(textwrap.dedent(LUCK))
    monkeypatch.syspath_prepend(tmp_path)
    return "luck_of_the_draw:Luck"


def played(task: str, steps: int, state: Any = None, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    """What the environments of a run show, and the state they are left in."""
    config = parse(["--task", task, "--preset", "debug"]).config
    assert in_processes(config)
    with Driver(environment(config), **{"n": 2, "parallel": True, "seed": 3} | options) as driver:
        if state is not None:
            driver.load_state_dict(state)
        return [driver.recv(), *roll(driver, steps - 1, np.random.default_rng(0))], driver.state_dict()


def test_the_same_seed_is_the_same_run(task: str):
    random.seed(0)
    np.random.seed(0)
    (first, _), (again, _), (other, _) = played(task, 20), played(task, 20), played(task, 20, seed=4)
    assert alike(first, again) and not alike(first, other)
    draws = np.array([obs["vector"][:, 1:] for obs in first])
    assert len(np.unique(draws)) == draws.size  # of either environment, in any episode
    random.seed(1)
    np.random.seed(1)
    (alone, _), (here, _) = played(task, 20, n=1), played(task, 20, n=1, parallel=False)
    assert alike(alone, here)


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(task: str):
    whole, _ = played(task, 24)
    start, state = played(task, 10)
    rest, _ = played(task, 14, state)
    later, _ = played(task, 14, state)
    assert alike(start, whole[:10]) and alike(rest, later)

    def begun(steps: list[dict[str, Any]]) -> list[Any]:
        return [obs["vector"][0] for obs in steps if obs["is_first"][0]]

    assert np.array_equal(begun(whole)[2], begun(rest)[0])  # the third episode's, whatever came of the second


def test_an_environment_by_itself_leaves_the_generators_alone(task: str):
    random.seed(0)
    np.random.seed(0)
    env = make(task)
    shown = [env.reset(seed=1)["vector"].tolist() for _ in range(2)]
    random.seed(0)
    np.random.seed(0)
    born = random.random()
    assert np.allclose(shown, [[born, random.random(), np.random.rand()] for _ in range(2)])
