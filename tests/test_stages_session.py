"""What a run in stages logs and keeps beside its work, and when: steps in one order, checkpoints, what came of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdream import checkpoint, train
from fastdream.config import Config
from fastdream.lane import RestartedTooOften
from fastdream.rundir import RunLock
from fastdream.schedule import Stop
from fastdream.stages import command
from fastdream.stages.fit import FitMemory, FitVision
from fastdream.stages.session import Session

from .stages_tools import StopIn, opened, run, tiny
from .test_refused import stopping

COMMAND = ["--agent", "world_models", "--task", "dummy_image", "--env.parallel", "no"]
COMMAND += ["--log.outputs", "jsonl", "--eval.final-episodes", "0"]

pytest.importorskip("cma", reason="what the last stage is done by")


def timed(**log: float) -> Config:
    config = tiny()
    return replace(config, log=replace(config.log, **log))


class Noted:
    """What a session logs and saves, in a run that may be stopped."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, set[str]]] = []
        self.episodes: list[int] = []
        self.saves: list[str] = []
        self.resumed: list[int] = []

    def __call__(self, session: Session, stop: Stop | None = None) -> int:
        log: Any = session.log
        log.scalars = lambda step, values: self.metrics.append((step, set(values)))
        log.episode = lambda step, score, length: self.episodes.append(step)
        log.saved = lambda: self.saves.append(session.names[session.at])
        if isinstance(stop, StopIn):
            stop.session = session
        session.run(stop or Stop())
        return sum(session.planned)


def test_metrics_and_checkpoints_each_have_an_interval_of_their_own(tmp_path: Path):
    often, seldom = Noted(), Noted()
    opened(timed(every=1e-9, save_every=1e9), tmp_path / "metrics", often)
    opened(timed(every=1e9, save_every=1e-9), tmp_path / "saves", seldom)
    stages = ["vision", "encode", "memory", "control", "control"]  # saved as each begins, and in the end
    assert often.saves == stages and len(often.metrics) > 10
    assert [
        name for name, last in zip(seldom.saves, [*seldom.saves[1:], ""], strict=True) if name != last
    ] == [
        "collect",
        *stages[:4],
    ]
    assert len(seldom.saves) > 40
    assert [
        (
            "collect/score" in names,
            "loss/vision_loss" in names,
            "loss/memory_loss" in names,
            "control/mean" in names,
        )
        for _, names in seldom.metrics
    ] == [tuple(i == j for j in range(4)) for i in range(4)]


def test_steps_go_on_from_stage_to_stage_and_nothing_is_logged_twice(tmp_path: Path):
    noted, config = Noted(), timed(every=1e-9)
    for place in (("collect", 30), ("memory", 2), ("control", 1), ("", 0)):
        end = opened(config, tmp_path, lambda session, place=place: noted(session, StopIn(*place)))
    steps = [step for step, _ in noted.metrics]
    assert steps == sorted(set(steps)) and steps[-1] == end
    assert noted.episodes == sorted(noted.episodes) and noted.episodes[-1] == config.steps
    # One that is done is not gone through again.
    again = Noted()
    opened(config, tmp_path, again)
    assert not again.metrics and not again.saves


def test_a_run_that_is_killed_as_a_stage_begins_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(self: FitMemory) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FitMemory, "advance", killed)
        run(tiny(), tmp_path)
    name, notes = opened(tiny(), tmp_path, lambda session: (session.names[session.at], session.notes()))
    assert name == "memory" and notes[-1].startswith("resumed in stage memory, 0 of 5, from ")


def test_a_run_that_another_process_works_at_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with RunLock(tmp_path), pytest.raises(SystemExit) as exit:
        train.main([*COMMAND, "--logdir", str(tmp_path)])
    assert exit.value.code == 2 and str(tmp_path) in capsys.readouterr().err


def test_the_number_of_steps_may_change_until_they_are_recorded(tmp_path: Path):
    config = tiny()

    def use(session: Session) -> None:
        train.describe(config, session.parts, "")
        stop.session = session
        session.run(stop)

    stop = StopIn("collect", 21)
    opened(config, tmp_path, use)
    for steps in (50, 300):
        command.refuse_other_steps(replace(config, steps=steps), tmp_path)
    stop = StopIn("vision", 1)
    opened(config, tmp_path, use)
    for steps in (50, 300):
        with pytest.raises(ValueError, match=f"--steps: 100 -> {steps}: .* has recorded its steps"):
            command.refuse_other_steps(replace(config, steps=steps), tmp_path)


def failed(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit status and message of a command that cannot go on."""
    with pytest.raises(SystemExit) as exit:
        train.main([*args])
    assert isinstance(exit.value.code, int)
    return exit.value.code, " ".join(capsys.readouterr().err.split())


def test_why_a_run_ended_and_how_it_goes_on_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run_of = [*COMMAND, "--logdir", str(tmp_path)]
    hint = f"to resume: python -m fastdream.train --logdir {tmp_path}"

    def poisoned(self: FitMemory) -> None:
        self.losses.add({"loss/memory_loss": torch.tensor(torch.nan)}, self.done)
        self.done += 1

    def died(self: FitVision) -> None:
        raise RestartedTooOften("it died again")

    with monkeypatch.context() as patch:
        patch.setattr(FitVision, "advance", died)
        assert failed(capsys, *run_of) == (1, f"error: it died again {hint}")
    with monkeypatch.context() as patch:
        patch.setattr(FitMemory, "advance", poisoned)
        status, error = failed(capsys, *run_of)
    assert status == 1 and "loss/memory_loss became NaN" in error and "The last good checkpoint is " in error
    assert failed(capsys, *run_of, "--dreamer.latents", "5") == (
        2,
        f"error: {tmp_path} holds a run with other settings (saved -> asked): dreamer.latents: 4 -> 5 "
        "Leave those flags out to resume it, or choose another --logdir.",
    )
    status, error = failed(capsys, *run_of, "--steps", "300")
    assert status == 2 and "--steps: 100 -> 300" in error and f"--dreamer.start {tmp_path}" in error
    with monkeypatch.context() as patch:
        stopping(patch)
        train.main(["--logdir", str(tmp_path), "--eval.final-episodes", "2"])
    output = capsys.readouterr().out
    assert "stopped by SIGINT in the evaluation" in output and output.rstrip().endswith(hint)
    assert "resumed in stage memory" in output and not (tmp_path / "eval.json").exists()
    for episodes in (2, 3):  # what is asked for of a finished run is evaluated
        train.main(["--logdir", str(tmp_path), "--eval.final-episodes", str(episodes)])
        assert len(json.loads((tmp_path / "eval.json").read_text())["scores"]) == episodes
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/score" in entry for entry in metrics) == 2
    best = checkpoint.load(tmp_path / "ckpt", "best")
    assert best is not None and best.score == json.loads((tmp_path / "eval.json").read_text())["mean"]
