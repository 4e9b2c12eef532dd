"""The rollouts of a random policy: which episodes are kept, what was done in them, and that no two are alike."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream.recording import Recording
from fastdream.stages import collect
from fastdream.stages.collect import Collect
from fastdream.stages.session import Session

from .stages_tools import StopIn, opened, run, tiny

pytest.importorskip("cma", reason="what the last stage is done by")


def first_actions(session: Session) -> list[float]:
    """The first action of every episode that a run records, in their order."""
    recording = session.recording
    while session.stage.done < session.stage.units:
        session.stage.advance()
    return recording["action"][recording.starts(), 0].tolist()


def test_what_is_recorded_is_what_was_done(tmp_path: Path):
    config = tiny()

    def use(session: Session) -> None:
        stage, given = session.stage, []
        assert isinstance(stage, Collect)
        send = stage.driver.send
        stage.driver.send = lambda actions: [given.append(actions["action"]), send(actions)][-1]  # type: ignore[method-assign]
        taken = first_actions(session)
        actions, decode = session.recording["action"], session.agent.controller.decode
        for worker in range(stage.driver.n):
            mine = np.array([episode["worker"] == worker for episode in session.recording.episodes])
            kept = np.concatenate(
                [
                    actions[start : start + rows]
                    for start, rows in zip(
                        session.recording.starts()[mine], session.recording.lengths()[mine], strict=True
                    )
                ]
            )
            done = np.stack(given)[: len(kept), worker]
            assert np.array_equal(decode(kept)["action"], done) and len(set(done.tolist())) > 1
        assert len(set(taken)) == len(taken) > 3
        assert min(taken) < 0 < max(taken)
        first, last = session.recording["first"], session.recording["terminal"]
        assert np.flatnonzero(first).tolist() == session.recording.starts().tolist()
        ends = session.recording.starts() + session.recording.lengths() - 1
        assert np.flatnonzero(last).tolist() == ends.tolist()

    opened(config, tmp_path, use)
    other = opened(replace(config, seed=config.seed + 1), tmp_path / "other", first_actions)
    recording = Recording(tmp_path / "rollouts", {"action": ((1,), np.dtype(np.float32))}, appends=False)
    assert not {*other} & {*recording["action"][recording.starts(), 0].tolist()}


def test_short_episodes_and_those_whose_environment_died_are_not_kept(tmp_path: Path):
    def use(session: Session) -> None:
        stage: Any = session.stage
        shortest = session.agent.config.collect.shortest
        for steps, crashed, kept in (
            (shortest - 1, False, 0),
            (shortest, False, shortest),
            (9, True, shortest),
        ):
            stage.steps[0].clear()
            for _ in range(steps):
                stage.advance()
            stage.finish_episode(0, 1.0, steps - 1, crashed)
            assert session.recording.rows == kept, (steps, crashed)
        told = stage.finish()
        assert "recorded 5 steps in 1 of 3 episodes; the random policy scored 1.0 ± 0.0" in told
        assert stage.metrics() == {"collect/score": 1.0}

    opened(tiny(where="real"), tmp_path, use)


def test_how_long_the_longest_was_is_said_in_the_steps_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collect, "HOPELESS", 4)
    config = tiny()
    rollouts = replace(config.dreamer.collect, shortest=21)  # an episode of 20 actions has 21 observations
    assert run(
        replace(config, dreamer=replace(config.dreamer, collect=rollouts)),
        tmp_path / "a",
        StopIn("vision", 0),
    )
    rollouts = replace(rollouts, shortest=22)
    with pytest.raises(ValueError) as error:
        run(replace(config, dreamer=replace(config.dreamer, collect=rollouts)), tmp_path / "b")
    assert re.search(r"none of 4 .* the 22 steps of .*; the longest had 21: choose less", str(error.value))
    assert len(Recording(tmp_path / "b" / "rollouts", {}, appends=False).episodes) == 4


def test_metrics_wait_for_an_episode(tmp_path: Path):
    assert opened(tiny(), tmp_path, lambda session: session.stage.metrics()) == {}
