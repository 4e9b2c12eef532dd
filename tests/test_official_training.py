"""The official code's training with a run's settings: what they are called there, what it plays, what is refused."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from fastdream import presets
from fastdream.config import to_dict

from .bench_tools import load

ROOT = Path(__file__).parents[1]


@pytest.fixture
def official() -> ModuleType:
    return load("official")


@pytest.fixture
def run() -> dict[str, Any]:
    return to_dict(presets.resolve("gym_CartPole-v1"))


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for key, value in tree.items()
        for leaf in (leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)])
    ]


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    return value + value[:1] if isinstance(value, list | str) else 2 * value + 1


def test_settings_go_by_their_official_names(official: ModuleType, run: dict[str, Any]):
    found = official.overrides(run)
    assert found["agent.opt"]["anneal"] == 2600 and found["agent.opt"]["schedule"] == "linear"
    assert found["agent.dyn.rssm"]["deter"] == 128 and found["agent.rewhead"]["bins"] == 63
    assert found["agent.policy"]["minstd"] == 0.1 and found["agent.imag_loss"]["actent"] == 3e-3
    assert found["agent.repl_loss"] == {"slowtar": False, "lam": 0.95, "slowreg": 1.0}
    assert (found["run.train_ratio"], found["run.envs"], found["run.steps"]) == (64.0, 4, 22_000)
    assert (found["batch_size"], found["batch_length"], found["replay.size"]) == (16, 32, 200_000)


def test_no_setting_is_left_out(official: ModuleType, run: dict[str, Any]):
    """Whatever is set otherwise changes what the official code is told, or is refused."""
    before = copy.deepcopy(official.overrides(run))
    parts = [("dreamer", *leaf) for leaf in leaves(run["dreamer"])] + [("train", x) for x in run["train"]]
    parts += [
        ("env", "count"),
        ("replay", "capacity"),
        ("replay", "online"),
        ("steps",),
        ("task",),
        ("variant",),
    ]
    # Its precision and CUDA graphs are the benchmark's own; one setting of the encoder counts for the decoder.
    parts = [
        x for x in parts if x not in {("dreamer", "dtype"), ("train", "graph"), ("dreamer", "dec", "symlog")}
    ]
    assert len(parts) > 100
    for part in parts:
        other = copy.deepcopy(run)
        place = other
        for key in part[:-1]:
            place = place[key]
        place[part[-1]] = changed(place[part[-1]])
        try:
            assert official.overrides(other) != before, f"{part} changes nothing"
        except ValueError:
            continue


class Memory(gymnasium.Env):
    """Of one step, rewarded by its action."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.ones(3, np.float32), float(action), True, False, {}


def test_it_plays_what_a_function_makes(
    official: ModuleType, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """A user's own environment, which a run of ours takes as module:function, and the official driver must, too."""
    for module, members in (
        ("elements", {"Space": lambda *args: args}),
        ("embodied", {"Env": object}),
        ("own", {"memory": Memory}),
    ):
        stand_in = ModuleType(module)
        vars(stand_in).update(members)
        monkeypatch.setitem(sys.modules, module, stand_in)
    run["task"] = "own:memory"
    assert official.overrides(run)["task"] == "own:memory"
    assert official.environment("gym_CartPole-v1", 0).obs_space["vector"] == (np.float32, (4,))
    env = official.environment("own:memory", 0)
    assert env.act_space["action"] == (np.int32, (), 0, 2) and env.obs_space["vector"] == (np.float32, (3,))
    first, last = (env.step({"action": 1, "reset": reset}) for reset in (True, False))
    assert first["is_first"] and not first["is_last"] and first["reward"] == 0.0
    assert last["is_terminal"] and last["reward"] == 1.0 and last["vector"].tolist() == [1.0, 1.0, 1.0]


def test_what_it_cannot_run_is_one_line(tmp_path: Path, run: dict[str, Any]):
    run["dreamer"]["policy"]["unimix"] = 0.01
    (tmp_path / "config.json").write_text(json.dumps({"config": run}))
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "official.py"),
        "--path",
        ".",
        "--like",
        str(tmp_path),
    ]
    for logdir, remedy in (
        (tmp_path, "--logdir must be new"),
        (tmp_path / "new", "dreamer.policy.unimix is 0.0 in the official code, and 0.01 in the run"),
    ):
        done = subprocess.run([*command, "--logdir", str(logdir)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and remedy in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
