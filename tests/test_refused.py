"""Runs that cannot begin, go on or be looked at: said in words, nothing written over, nothing half-true kept."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdream import agents, scores, train
from fastdream import eval as evaluation
from fastdream.checkpoint import Checkpoint
from fastdream.schedule import Stop
from fastdream.scores import Scores
from fastdream.scores import evaluate as real_evaluate

from . import run_tools
from .run_tools import tiny
from .test_badinput import SMALL, in_order, refused

Capture = pytest.CaptureFixture[str]


def test_a_disk_without_place_for_the_replay(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30, 1000))
    args = ["--task", "dummy_vector", "--replay.on-disk", "--logdir", str(tmp_path / "run")]
    error = refused(capsys, *args)
    assert in_order(error, "--replay.on-disk", str(tmp_path), "0.00 GiB free", "--replay.capacity")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["--replay.on-disk", "--replay.no-on-disk"])
def test_a_replay_that_holds_no_batch_leaves_no_directory(place: str, tmp_path: Path, capsys: Capture):
    args = ["--task", "dummy_vector", "--logdir", str(tmp_path / "a" / "run"), place]
    assert in_order(refused(capsys, *args, "--replay.capacity", "6"), "--replay.capacity 6", "too small")
    assert not any(tmp_path.iterdir())


def test_memory_without_place_for_the_replay(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fastdream.replay.available_memory", lambda: 1000)
    error = refused(capsys, "--task", "dummy_vector", "--logdir", str(tmp_path / "run"))
    assert in_order(error, "GiB of RAM", "0.00 GiB are available", "--replay.capacity", "--replay.on-disk")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["dreamer_v3", "world_models"])
def test_a_disk_without_place_for_a_checkpoint(
    agent: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30, 1000))
    with pytest.raises(SystemExit) as stopped:
        train.main(
            ["--agent", agent, "--task", "dummy_image", "--preset", "debug", "--logdir", str(tmp_path)]
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert in_order(error, "cannot write", str(tmp_path / "ckpt"), "the disk is full (needs", "0.0 MB free")
    assert not (tmp_path / "config.json").exists()


@pytest.fixture
def two_runs(tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """Makes runs of two agents that observe the same."""

    def make() -> tuple[Path, Path]:
        folders = tmp_path / "first", tmp_path / "second"
        for agent, folder in zip(("dreamer_v3", "dreamer_v1"), folders, strict=True):
            train.main([*SMALL, "--task", "dummy_vector", "--agent", agent, "--logdir", str(folder)])
        return folders

    return make


def test_checkpoints_without_their_settings_are_not_taken_for_a_new_run(
    two_runs: Callable[[], tuple[Path, Path]], capsys: Capture
):
    _, folder = two_runs()
    (folder / "config.json").unlink()
    capsys.readouterr()
    for args in ([], ["--task", "dummy_vector"]):
        with pytest.raises(SystemExit) as exit:
            train.main(["--logdir", str(folder), *args])
        assert exit.value.code == 2
        assert in_order(capsys.readouterr().err, str(folder), "holds checkpoints", "config.json", "--logdir")
    assert not (folder / "config.json").exists()


def test_settings_of_another_agent_are_said_and_not_shown_as_a_traceback(
    two_runs: Callable[[], tuple[Path, Path]], capsys: Capture
):
    first, second = two_runs()
    shutil.copy(first / "config.json", second / "config.json")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        evaluation.main(["--logdir", str(second), "--episodes", "1"])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert in_order(error, str(second / "ckpt"), "of another agent than", "config.json") and len(error) < 500
    with pytest.raises(RuntimeError, match="of another agent"):
        agents.load(second)


def test_another_agent_is_one_difference(two_runs: Callable[[], tuple[Path, Path]], capsys: Capture):
    first, _ = two_runs()
    capsys.readouterr()
    error = refused(capsys, "--task", "dummy_vector", "--agent", "dreamer_v2", "--logdir", str(first))
    assert "agent: dreamer_v3 -> dreamer_v2" in error and "dreamer." not in error


def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has evaluations stopped by a signal after their first episode."""

    def evaluate(*args: Any, stop: Stop, **kwargs: Any) -> Scores:
        result = real_evaluate(*args, stop=stop, **kwargs)
        stop.reason = "SIGINT"
        return Scores(result.scores[:1], result.lengths[:1])

    monkeypatch.setattr(scores, "evaluate", evaluate)


def test_an_evaluation_that_was_stopped_is_no_score(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    args = [*SMALL, "--task", "dummy_vector", "--logdir", str(tmp_path), "--eval.final-episodes", "3"]
    with monkeypatch.context() as patch:
        stopping(patch)
        train.main(args)
    output = capsys.readouterr().out
    assert in_order(output, "done after 60 steps", "stopped by SIGINT in the evaluation", "to resume: ")
    assert not (tmp_path / "eval.json").exists()
    loaded = Checkpoint(tmp_path / "ckpt").load()
    assert loaded is not None and loaded.score is None
    train.main(args)
    assert "over 3 episodes" in capsys.readouterr().out and (tmp_path / "eval.json").exists()


def test_an_evaluation_that_was_stopped_on_the_way_is_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stopping(monkeypatch)
    training = run_tools.train(tiny(steps=60, eval={"every": 20, "episodes": 2}), tmp_path)
    assert training.loop.step == 20
    assert not (tmp_path / "ckpt" / "best").exists()
