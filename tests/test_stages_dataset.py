"""World Models from a dataset alone: what is read, what is learned, where it stops and goes on, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import cli, envs, presets, train
from fastdream.agents import load
from fastdream.agents.world_models_config import Config as AgentConfig
from fastdream.agents.world_models_nets import Controller
from fastdream.config import Config
from fastdream.datasets import find, survey
from fastdream.recording import Recording
from fastdream.spaces import Space
from fastdream.stages.collect import recording_spec

from .dataset_tools import Arrays, episode, save_npz
from .stages_tools import StopIn, opened, run, tiny
from .test_resume import equal

pytest.importorskip("cma", reason="what the last stage is done by")

LENGTHS = (12, 30, 25, 3)


def played(folder: Path, terminal: bool = True) -> list[Arrays]:
    """Episodes with pictures, the last of them of 4 records, in this folder."""
    found = [episode(length, seed, picture=True, terminal=terminal) for seed, length in enumerate(LENGTHS)]
    save_npz(folder, *found)
    return found


def settings(folder: Path, shortest: int = 5) -> Config:
    config = presets.resolve("", "debug", agent="world_models", dataset=str(folder))
    dreamer = replace(config.dreamer, collect=replace(config.dreamer.collect, shortest=shortest))
    return replace(config, log=tiny().log, dreamer=dreamer)


def command(folder: Path, *args: str) -> list[str]:
    return ["--agent", "world_models", "--dataset", str(folder), "--preset", "debug", *args]


def test_no_environment_is_made_and_the_agent_can_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    played(tmp_path / "set")
    monkeypatch.setattr(envs, "make", lambda *_, **__: pytest.fail("an environment was made"))
    train.main(command(tmp_path / "set", "--logdir", str(tmp_path / "run"), "--log.every", "0"))
    text, mean = capsys.readouterr().out, survey(find(str(tmp_path / "set"))).mean
    assert "none, so no evaluation (--task)" in text
    assert f"read: 70 steps of 3 episodes; mean return of the dataset: {mean:.1f}" in text
    assert "control: C's best mean" in text and "evaluation:" not in text
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    assert {"loss/vision_error", "loss/memory_end", "control/test"} <= logged
    media = [path.name.rpartition("_")[0] for path in (tmp_path / "run" / "media").iterdir()]
    assert sorted(media) == ["dream", "openloop", "reconstructions"]
    assert load(tmp_path / "run").controls.any()
    train.main(["--logdir", str(tmp_path / "run")])
    assert "resumed in stage control, 3 of 3" in capsys.readouterr().out


def test_what_is_read_is_what_was_recorded_with_the_actions_that_follow(tmp_path: Path):
    episodes = played(tmp_path / "set")[:3]  # the last one is too short
    config = settings(tmp_path / "set")
    run(config, tmp_path / "run", StopIn("vision", 0))

    def recorded(session: Any) -> Recording:
        return Recording(tmp_path / "run" / "rollouts", recording_spec(session.agent), appends=False)

    found = opened(config, tmp_path / "run", recorded)
    assert found.lengths().tolist() == [13, 31, 26]
    assert [e["score"] for e in found.episodes] == pytest.approx([data["reward"].sum() for data in episodes])
    for start, data in zip(found.starts(), episodes, strict=True):
        rows = slice(start, start + len(data["reward"]))
        assert (found["image"][rows] == data["image"]).all()
        *follow, last = found["action"][rows]
        assert (follow == data["action"][1:]).all() and not last.any()
        assert found["first"][rows].nonzero()[0].tolist() == [0]
        assert found["terminal"][rows].nonzero()[0].tolist() == [len(data["reward"]) - 1]


def test_stopped_anywhere_it_goes_on_to_the_same_end(tmp_path: Path):
    played(tmp_path / "set")
    config = settings(tmp_path / "set")
    done, whole = run(config, tmp_path / "whole")
    assert done
    for place in (("read", 20), ("vision", 2), ("memory", 2), ("control", 1)):
        done, _ = run(config, tmp_path / "parts", StopIn(*place))
        assert not done
    done, resumed = run(config, tmp_path / "parts")
    assert done and equal(resumed, whole)
    both = [Recording(tmp_path / name / "rollouts", {}).episodes for name in ("whole", "parts")]
    assert both[0] == both[1] and len(both[0]) == 3


def test_with_a_task_it_is_evaluated_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "source"
    args = ["--preset", "debug", "--steps", "200", "--train.ratio", "0.01", "--log.outputs", "jsonl"]
    train.main(["--task", "dummy_image", *args, "--logdir", str(source)])
    capsys.readouterr()
    args = ["--task", "dummy_image", "--env.parallel", "no", "--logdir", str(tmp_path / "run")]
    train.main(command(source, *args))
    text = capsys.readouterr().out
    assert "dummy_image, for evaluation" in text and "(sample actions); mean return of the dataset: " in text
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["scores"]
    assert any("real_dream" in path.name for path in (tmp_path / "run" / "media").iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--dreamer.control.where", "real"],
            "there is no environment where a dataset is learned from; evolve C in",
        ),
        (["--dreamer.collect.shortest", "40"], "has the 40 records of .*; the longest has 31: choose less"),
        (["--steps", "9"], "--steps: all steps of a dataset are learned from"),
        (["--dreamer.start", "x"], "--dreamer.start: nothing is collected where a dataset is learned from"),
        (["--holdout", "0.5"], "--holdout: world_models learns in stages"),
        (["--resize", "32"], r"one picture of 64 × 64 pixels.*\(32, 32, 3\).*of a dataset, --resize 64"),
    ],
)
def test_what_cannot_be_is_refused_before_there_is_a_run(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    played(tmp_path / "set")
    with pytest.raises(SystemExit) as caught:
        train.main(command(tmp_path / "set", *args, "--logdir", str(tmp_path / "run")))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and not (tmp_path / "run").exists()
    assert re.search(message, error), error


def test_a_dataset_in_which_nothing_ends_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nor does anything where only an episode ends that is left out."""
    played(tmp_path / "set", terminal=False)
    save_npz(tmp_path / "set" / "more", episode(3, 9, picture=True, terminal=True))
    with pytest.raises(SystemExit):
        train.main(command(tmp_path / "set", "--logdir", str(tmp_path / "run")))
    assert "none of the 3 episodes of" in (error := capsys.readouterr().err) and "terminal state" in error
    assert not (tmp_path / "run").exists()


def test_without_a_preset_it_takes_that_of_datasets(tmp_path: Path):
    played(tmp_path / "set")
    config = cli.parse(["--agent", "world_models", "--dataset", str(tmp_path / "set")]).config
    assert (config.preset, config.task, config.dreamer.control.where) == ("offline_vision", "", "dream")


def test_actions_that_are_encoded_are_decoded_to_the_same():
    spaces = {
        "turn": Space("vector", (2,), low=-1, high=1),
        "move": Space("discrete", (3,), 4),
        "fire": Space("discrete", (), 2),
    }
    rng, controller = np.random.default_rng(0), Controller(spaces, AgentConfig())
    actions = {
        "turn": rng.uniform(-1, 1, (50, 2)).astype(np.float32),
        "move": rng.integers(0, 4, (50, 3)),
        "fire": rng.integers(0, 2, 50),
    }
    flat = controller.encode(actions)
    assert flat.shape == (50, controller.actions) and flat.dtype == np.float32 and np.abs(flat).max() < 1
    for key, value in controller.decode(flat).items():
        assert (value == actions[key]).all(), key
