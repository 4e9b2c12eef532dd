"""A run of World Models that goes on from another one's rollouts, V and M."""

import errno
import os
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from fastdream import train
from fastdream.agents import load
from fastdream.agents.world_models import WorldModels
from fastdream.recording import Recording
from fastdream.rundir import StorageError
from fastdream.stages import command
from fastdream.stages.session import Session

from .stages_tools import opened, tiny

COMMAND = [
    "--agent",
    "world_models",
    "--task",
    "dummy_image",
    "--env.parallel",
    "no",
    "--log.outputs",
    "jsonl",
]
COMMAND += ["--eval.final-episodes", "0"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cma", reason="what the last stage is done by")
    folder = tmp_path_factory.mktemp("first") / "run"
    train.main([*COMMAND, "--logdir", str(folder)])
    return folder


def both(agent: WorldModels) -> dict[str, torch.Tensor]:
    """Parameters of V and M."""
    return {**agent.vision.state_dict(prefix="vision."), **agent.memory.state_dict(prefix="memory.")}


def test_it_begins_with_what_the_other_had(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, seen = load(first), []
    warm = command.warm

    def noting(agent, start):
        warm(agent, start)
        seen.append({name: value.clone() for name, value in both(agent).items()})

    monkeypatch.setattr(command, "warm", noting)
    args = [*COMMAND, "--logdir", str(tmp_path / "second"), "--dreamer.start", str(first), "--steps", "200"]
    train.main(args)
    (taken,) = seen
    assert all(torch.equal(taken[name], value) for name, value in both(before).items())
    one, two = (Recording(folder / "rollouts", {}).episodes for folder in (first, tmp_path / "second"))
    assert two[: len(one)] == one and len(two) > len(one)
    after = load(tmp_path / "second")
    assert not torch.equal(after.memory.weight_hh, before.memory.weight_hh)
    train.main(["--logdir", str(tmp_path / "second")])  # resumes, and does not begin again
    assert len(seen) == 1
    assert [e["rows"] for e in Recording(tmp_path / "second/rollouts", {}).episodes] == [
        e["rows"] for e in two
    ]


def test_it_begins_with_what_was_the_latest_run(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    latest = tmp_path / "runs" / "latest"
    latest.parent.mkdir()
    latest.symlink_to(first)
    # Fewer environments go on where those of the same numbers had come to.
    train.main([*COMMAND, "--dreamer.start", "runs/latest", "--env.count", "1", "--steps", "200"])
    assert latest.resolve().parent == tmp_path / "runs" / "dummy_image"
    one, two = (Recording(folder / "rollouts", {}).episodes for folder in (first, latest))
    assert two[: len(one)] == one and {episode["worker"] for episode in two[len(one) :]} == {0}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rollouts_are_taken_over_whole_or_not_at_all(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def ended_by(error: BaseException) -> None:
        def copy(source: str, target: str, **_: Any) -> None:
            Path(target).write_bytes(b"half")
            raise error

        with monkeypatch.context() as patch, pytest.raises((StorageError, KeyboardInterrupt)) as raised:
            patch.setattr(command.shutil, "copyfile", copy)
            command.take_over(first, tmp_path)
        assert not (tmp_path / "rollouts").exists()
        if isinstance(error, OSError):
            assert "the disk is full" in str(raised.value)

    ended_by(KeyboardInterrupt())
    ended_by(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    command.take_over(first, tmp_path)
    assert files_of(tmp_path / "rollouts") == files_of(first / "rollouts")
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts"]


def test_a_run_that_was_killed_when_it_had_taken_them_over_begins_with_them(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    args = [*COMMAND, "--logdir", str(tmp_path), "--dreamer.start", str(first), "--steps", "200"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(command, "describe", MagicMock(side_effect=KeyboardInterrupt))
        train.main(args)
    train.main(args)
    one, two = (Recording(folder / "rollouts", {}).episodes for folder in (first, tmp_path))
    assert two[: len(one)] == one


def test_it_goes_on_from_them_though_the_latest_run_is_another_by_now(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped with Ctrl-C twice, say, before a checkpoint was due."""
    monkeypatch.chdir(tmp_path)
    latest = tmp_path / "runs" / "latest"
    latest.parent.mkdir()
    latest.symlink_to(first)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "run", raising := MagicMock(side_effect=KeyboardInterrupt))
        train.main([*COMMAND, "--dreamer.start", "runs/latest"])
    raising.assert_called_once()
    parameters, begun = both(load(first)), []
    run = Session.run

    def noting(session: Session, stop: Any) -> bool:
        now = both(session.agent)
        begun.append(all(torch.equal(now[name], value) for name, value in parameters.items()))
        return run(session, stop)

    monkeypatch.setattr(Session, "run", noting)
    monkeypatch.chdir(tmp_path.parent)
    train.main(["--logdir", str(latest.resolve())])
    assert begun == [True]


@pytest.mark.parametrize(
    ("start", "size", "message"),
    [
        ("nowhere", "debug", "nowhere holds no rollouts"),
        ("first", "small", "is a run of another size"),
        ("unsaved", "debug", "holds no checkpoint yet"),
    ],
)
def test_what_cannot_be_begun_from_is_refused(
    start: str, size: str, message: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "unsaved" / "rollouts").mkdir(parents=True)
    where = first if start == "first" else tmp_path / start
    args = [*COMMAND, "--size", size, "--logdir", str(tmp_path / "second"), "--dreamer.start", str(where)]
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as exit:
            train.main([*args, *more])
        assert exit.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
    # Nothing of it stays, so that runs/latest is what it was, and the same command begins with another run's rollouts.
    assert not (tmp_path / "second").exists()


def test_an_episode_whose_environment_died_has_no_score(tmp_path: Path):
    """What the random policy scores is what a controller is held against."""

    def play(session: Session) -> list[float]:
        stage: Any = session.stage
        for score, crashed in ((5.0, True), (7.0, False)):
            stage.advance()
            stage.finish_episode(0, score, 1, crashed)
        assert (
            f"of {len(stage.recording.episodes):,} episodes; the random policy scored 7.0 ± 0.0"
            in stage.finish()
        )
        return stage.scores()

    assert opened(tiny(), tmp_path, play) == [7.0]
    again = opened(tiny(), tmp_path, lambda session: (session.stage.scores(), session.stage.finished[0]))
    assert again == ([7.0], 2)
    assert (tmp_path / "scores.jsonl").read_text().count("episode/score") == 1
