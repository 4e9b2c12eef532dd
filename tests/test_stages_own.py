"""Own environments in training by stages: pictures of any number of channels, and environments that die."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from fastdream import eval, train
from fastdream.driver import Driver
from fastdream.envs.from_gymnasium import FromGymnasium
from fastdream.lane import MOST_RESTARTS, RestartedTooOften
from fastdream.stages import collect
from fastdream.stages.command import assemble
from fastdream.stages.evolve import Evolve, Races

from .run_tools import CPU
from .stages_tools import StopIn, run, tiny

COMMAND = ["--agent", "world_models", "--preset", "debug", "--env.parallel", "no"]
COMMAND += ["--log.outputs", "jsonl", "console"]


class Pictures(gymnasium.Env):
    """Noise, for seven steps; an action of 1 is worth 1."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, channels: int) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, channels), np.uint8)

    def look(self) -> Any:
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.look(), float(action), self.steps == 7, False, {}


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_any_channels_are_learned_and_drawn(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("cma", reason="what the last stage is done by")
    module: Any = ModuleType("homemade")
    module.pictures = lambda: Pictures(channels)
    monkeypatch.setitem(sys.modules, "homemade", module)
    train.main([*COMMAND, "--task", "homemade:pictures", "--logdir", str(tmp_path)])
    assert "evaluation: " in capsys.readouterr().out
    media = {path.name.rpartition("_")[0] for path in (tmp_path / "media").iterdir()}
    assert {"reconstructions", "real_dream"} <= media
    with pytest.warns(UserWarning, match="no video: the environment draws no pictures"):
        eval.main(["--logdir", str(tmp_path), "--episodes", "1", "--video"])
    assert "1 episode" in capsys.readouterr().out


class Broken(Pictures):
    """Cannot begin."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise RuntimeError("no display")


def test_an_environment_that_cannot_begin_and_one_that_is_another_than_it_was_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module: Any = ModuleType("homemade")
    monkeypatch.setitem(sys.modules, "homemade", module)
    args = [*COMMAND, "--task", "homemade:pictures", "--logdir", str(tmp_path / "run")]
    module.pictures = lambda: Broken(3)
    with pytest.raises(SystemExit) as exit:
        train.main(args)
    assert exit.value.code == 2 and "no display" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    module.pictures = lambda: Pictures(3)
    train.main([*args, "--eval.final-episodes", "0"])
    assert (
        "control: generation 3/3 (100%)" in capsys.readouterr().out
    )  # the last thing that the console shows
    module.pictures = lambda: Pictures(1)
    with pytest.raises(SystemExit) as exit:
        train.main(["--logdir", str(tmp_path / "run")])
    assert exit.value.code == 2 and "holds a run whose environment showed" in capsys.readouterr().err


class Endless(Pictures):
    """Never ends."""

    def step(self, action: Any) -> Any:
        return self.look(), 0.0, False, False, {}


def test_episodes_that_do_not_end_are_not_kept_in_memory_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collect, "ENDLESS", 30)
    config = replace(tiny(), task="mine")
    with Driver(lambda seed: FromGymnasium(Endless(3), "mine"), 2) as driver:
        agent = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        parts, models, recording = assemble(tiny(), driver, agent, CPU, tmp_path)
        stage = collect.Collect(config, parts, models, recording)
        for _ in range(30):
            stage.advance()
        # Pictures of the other environment are not kept beside them.
        assert all(step["image"].base is None for steps in stage.steps for step in steps)
        with pytest.raises(ValueError, match="not ended in 30 steps"):
            stage.advance()
        parts.logger.close()


@pytest.mark.parametrize("where", ["dream", "real"])
def test_dreams_of_episodes_that_are_only_cut_short_are_refused(where: str, tmp_path: Path):
    pytest.importorskip("cma", reason="what the last stage is done by")
    config = tiny(where=where, length=3)
    config = replace(config, suite=replace(config.suite, terminal=False))
    if where == "real":
        assert run(config, tmp_path, StopIn("vision", 1))[1]
        return
    for _ in range(2):  # resuming changes nothing about it
        with pytest.raises(ValueError, match=r"none of the \d+ recorded episodes ended in a terminal state"):
            run(config, tmp_path)


class Dying(Pictures):
    """Dies at its third step so many times, counted for all of them."""

    left = 0

    def step(self, action: Any) -> Any:
        if self.steps == 2 and Dying.left:
            Dying.left -= 1
            raise RuntimeError("died")
        return super().step(action)


def test_the_picture_of_a_real_episode_ends_no_run_where_its_environment_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("cma", reason="what the last stage is done by")
    module: Any = ModuleType("homemade")
    module.dying = lambda: Dying(3)
    monkeypatch.setitem(sys.modules, "homemade", module)
    finish = Evolve.finish

    def finishing(stage: Evolve) -> str:
        monkeypatch.setattr(Dying, "left", 1)
        return finish(stage)

    monkeypatch.setattr(Evolve, "finish", finishing)
    train.main([*COMMAND, "--task", "homemade:dying", "--logdir", str(tmp_path)])
    text = capsys.readouterr().out
    assert "in evaluation, environment 0 " in text and "evaluation: " in text and not Dying.left
    assert list((tmp_path / "media").glob("real_dream*"))


class Failing(Pictures):
    """Its second reset fails, the first time that somebody asks for it."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        Failing.resets += 1
        if Failing.resets == 2:
            raise RuntimeError("died")
        return super().reset(seed=seed)


def test_an_episode_whose_first_reset_failed_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Failing, "resets", 0)
    told: list[Any] = []
    with Driver(lambda seed: FromGymnasium(Failing(3), "mine"), 1, on_restart=told.append) as driver:
        driver.recv()
        first = driver.restart([7])
        again = driver.restart([7])
        driver.step({"action": np.zeros(1, np.int32)})
        assert len(told) == 1 and np.array_equal(first["image"], again["image"])


def raced(deaths: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Scores of two controllers, of which one acts always and one never, and how often somebody died."""
    monkeypatch.setattr(Dying, "left", deaths)
    config, told = tiny(where="real", length=100), []
    make: Callable[[int], Any] = lambda seed: FromGymnasium(Dying(3), "mine")  # noqa: E731
    with Driver(make, 2, on_restart=told.append) as driver:
        agent: Any = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        agent.controller.decode = lambda action: {"action": np.array([1, 0], np.int32)}
        controls = np.zeros((2, agent.controller.count))
        return Races(config, agent, driver)(controls, np.arange(2), (4, 0)).tolist(), len(told)


class Lasting(Pictures):
    """Lasts for so many steps."""

    def __init__(self, length: int) -> None:
        super().__init__(3)
        self.length = length

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.look(), float(action), self.steps == self.length, False, {}


def test_an_episode_counts_to_its_end_and_no_further_whatever_others_last():
    config, lengths, steps = tiny(where="real", length=100), iter((2, 6, 3)), []
    make: Callable[[int], Any] = lambda seed: FromGymnasium(Lasting(next(lengths)), "mine")  # noqa: E731
    with Driver(make, 3) as driver:
        agent: Any = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        agent.controller.decode = lambda action: steps.append(action) or {"action": np.ones(3, np.int32)}
        controls = np.zeros((3, agent.controller.count))
        assert Races(config, agent, driver)(controls, np.arange(3), (4, 0)).tolist() == [2.0, 6.0, 3.0]
    assert len(steps) == 6


def test_an_episode_whose_environment_died_is_no_fitness(monkeypatch: pytest.MonkeyPatch):
    assert raced(0, monkeypatch) == ([7.0, 0.0], 0)
    assert raced(1, monkeypatch) == ([7.0, 0.0], 1)
    assert raced(3, monkeypatch) == ([7.0, 0.0], 3)
    with pytest.raises(RestartedTooOften):
        raced(1000, monkeypatch)


def test_environments_that_die_after_many_steps_every_time_are_not_raced_for_ever(
    monkeypatch: pytest.MonkeyPatch,
):
    tries = []
    config = replace(tiny(where="real"))

    def play(self: Races, controls: Any, seeds: Any) -> Any:
        tries.append(self.agent.generators["policy"].initial_seed())
        return np.zeros(2), True

    monkeypatch.setattr(Races, "play", play)
    with train.make_driver(config, print) as driver:  # type: ignore[arg-type]
        agent: Any = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        with pytest.raises(RestartedTooOften, match="same episodes"):
            Races(config, agent, driver)(np.zeros((2, agent.controller.count)), np.arange(2), (4, 0))  # type: ignore[arg-type]
    assert len(tries) == MOST_RESTARTS and len(set(tries)) == 1
