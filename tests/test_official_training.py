"""The official code's training with a run's settings: what they are called there, and what is refused."""

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastdream import presets
from fastdream.config import to_dict

ROOT = Path(__file__).parents[1]


@pytest.fixture
def official() -> ModuleType:
    """benchmarks/official.py, which is in no installed package."""
    package = sys.modules.setdefault("benchmarks", ModuleType("benchmarks"))
    package.__path__ = [str(ROOT / "benchmarks")]
    return importlib.import_module("benchmarks.official")


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
