"""C evolved in the environment: on the same episodes for both halves, broken off where it is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import train
from fastdream.driver import Driver, Voice
from fastdream.schedule import Stop
from fastdream.stages import pictures
from fastdream.stages.evolve import Evolve, Races
from fastdream.stages.session import Session

from .run_tools import CPU
from .stages_tools import opened, run, tiny
from .test_resume import equal

KEYS = ("mean", "best", "sigma", "test")

pytest.importorskip("cma", reason="what the last stage is done by")


def test_evolution_in_the_environment(tmp_path: Path):
    config = tiny(where="real", rollouts=1, test_rollouts=3, generations=2, length=3)
    # Nor need dreams end: they are only looked at.
    dreamer = replace(config.dreamer, memory=replace(config.dreamer.memory, ends=False))
    shown: dict[str, np.ndarray] = {}

    def use(session: Session) -> bool:
        session.log.video = lambda step, name, clip: shown.update({name: clip})  # type: ignore[method-assign]
        return session.run(Stop()) and bool(session.agent.controls.any())

    assert opened(replace(config, dreamer=dreamer), tmp_path, use)
    clip = shown["real_dream"]
    real, dream = clip[:, :, :64], clip[:, :, 64 + pictures.GAP :]
    assert len(clip) > 3 and clip.shape[1:] == (64, 2 * 64 + pictures.GAP, 3)
    assert all((x[-1] != x[-2]).any() for x in (real, dream))  # both go on to the end of the episode


class StopAfter(Stop):
    """Becomes true after so many pieces of the last stage."""

    def __init__(self, session: Session, pieces: int) -> None:
        super().__init__()
        self.session, self.left = session, pieces

    def __bool__(self) -> bool:
        if self.session.names[self.session.at] == "control":
            self.left -= 1
            self.reason = "test" if self.left < 0 else ""
        return bool(self.reason)


def test_it_stops_within_a_generation_and_within_a_test_and_goes_on_to_the_same_end(tmp_path: Path):
    config = tiny(where="real", rollouts=2, test_rollouts=5, generations=2, test_every=1, length=5)
    done, whole = run(config, tmp_path / "whole")
    assert done
    places = []

    def use(session: Session) -> None:
        assert not session.run(StopAfter(session, 3))
        stage = session.stage
        assert isinstance(stage, Evolve), stage
        places.append((stage.done, stage.testing, stage.trial.done))

    for _ in range(3):  # 4 controllers, 2 environments: 4 pieces a generation, 3 pieces a test
        opened(config, tmp_path / "parts", use)
    assert places == [(0, False, 6), (0, True, 4), (1, False, 4)]
    done, resumed = run(config, tmp_path / "parts")
    assert done and equal(resumed, whole)


def test_a_generation_is_logged_once_with_its_test(tmp_path: Path):
    """Also one that ended before a checkpoint that was saved within its test, where nothing had been logged."""
    config = tiny(where="real", rollouts=1, test_rollouts=4, generations=3, test_every=1, length=3)
    logged: list[tuple[int, set[str]]] = []

    def use(session: Session, pieces: int = 100) -> None:
        session.log.scalars = lambda step, values: logged.append((step, {*values}))  # type: ignore[method-assign]
        session.run(StopAfter(session, pieces))

    opened(config, tmp_path, lambda session: use(session, 3))
    opened(replace(config, log=replace(config.log, every=1e-9)), tmp_path, use)
    generations = [entry for entry in logged if "control/mean" in entry[1]]
    first = generations[0][0]
    assert generations == [(first + i, {f"control/{key}" for key in KEYS}) for i in range(3)]


def test_episodes_that_c_is_evolved_in_are_broken_off(tmp_path: Path):
    config = tiny(where="real", length=3)
    with train.make_driver(config, Voice()) as driver:
        assert isinstance(driver, Driver)
        agent = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        steps: list[dict[str, Any]] = []
        step = driver.step

        def counting(actions: dict[str, np.ndarray]) -> Any:
            steps.append(step(actions))
            return steps[-1]

        driver.step = counting  # type: ignore[method-assign]
        races = Races(config, agent, driver)  # type: ignore[arg-type]
        scores = races(np.zeros((2, agent.controller.count)), np.arange(2), (4, 0))  # type: ignore[attr-defined]
    assert len(steps) == 3 and not any(obs["is_last"].any() for obs in steps)
    assert np.allclose(scores, sum(obs["reward"] for obs in steps))


def test_antithetic_halves_meet_the_same_episodes_of_their_own_controllers(monkeypatch: pytest.MonkeyPatch):
    config, noises = tiny(where="real"), []
    played = Races.played

    def noting(self: Races, controls: Any, seeds: Any, noise: int) -> Any:
        noises.append(noise)
        return played(self, controls, seeds, noise)

    monkeypatch.setattr(Races, "played", noting)
    with train.make_driver(replace(config, env=replace(config.env, count=3)), Voice()) as driver:
        agent = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        races = Races(config, agent, driver)  # type: ignore[arg-type]
        controls = np.zeros((8, agent.controller.count))  # type: ignore[attr-defined]
        controls[4:] = np.random.default_rng(0).standard_normal(controls[4:].shape)
        scores = races(controls, np.array([0, 1, 2, 3] * 2), (4, 0))
        again = races(controls, np.array([0, 1, 2, 3] * 2), (4, 0))
        same = races(np.zeros((8, controls.shape[1])), np.array([0, 1, 2, 3] * 2), (4, 0))
        other = races(np.zeros((8, controls.shape[1])), np.array([0, 1, 2, 3] * 2), (4, 1))
        parts = [
            races(controls[i : i + 3], np.array([0, 1, 2, 3] * 2)[i : i + 3], (4, 0), i) for i in (0, 3, 6)
        ]
    assert np.array_equal(np.concatenate(parts), scores)
    assert noises[:3] == noises[3:6] == noises[-3:] and len(set(noises)) == 2 * 3  # of two generations
    assert np.array_equal(scores, again) and len(set(scores)) > 1
    assert np.array_equal(same[:4], same[4:]) and np.array_equal(same[:4], scores[:4])
    assert not np.array_equal(same, other)


def test_restarted_environments_begin_the_episodes_that_were_asked_for(tmp_path: Path):
    config = tiny()
    with train.make_driver(config, Voice()) as driver:
        assert isinstance(driver, Driver)
        first = driver.restart([5, 6])
        driver.step({"action": np.zeros(2, np.int32)})
        assert not driver.episodes() and first["is_first"].all()
        again, other = driver.restart([5, 6]), driver.restart([6, 7])
        assert np.array_equal(first["image"], again["image"])
        assert np.array_equal(other["image"][0], again["image"][1])
