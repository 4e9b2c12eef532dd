"""The command that evaluates: environments that die, signals, and how many play at once."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastdream import eval as evaluation
from fastdream import train
from fastdream.envs import make
from fastdream.envs.base import Wrapper

from .test_badinput import SMALL, in_order

Capture = pytest.CaptureFixture[str]


class Homemade(Wrapper):
    """Episodes of 6 steps, whose every step does what `before` does."""

    made = 0
    before: Callable[["Homemade"], None] = lambda self: None

    def __init__(self, seed: int) -> None:
        super().__init__(make("dummy_vector", seed, length=6))
        Homemade.made += 1
        self.steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.before()
        return super().step(action)


@pytest.fixture
def logdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in such environments."""
    module: Any = ModuleType("homemade")
    module.env = Homemade
    monkeypatch.setitem(sys.modules, "homemade", module)
    args = ["--task", "homemade:env", "--env.parallel", "no", "--steps", "8", "--log.outputs", "jsonl"]
    train.main([*SMALL, *args, "--eval.final-episodes", "0", "--logdir", str(tmp_path / "run")])
    return tmp_path / "run"


def test_environments_that_die_are_said_and_end_it_only_if_they_do_again_and_again(
    logdir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    left = [1]

    def dying(env: Homemade) -> None:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("gone")

    monkeypatch.setattr(Homemade, "before", dying)
    args = ["--logdir", str(logdir), "--episodes", "2", "--count", "1"]
    evaluation.main([*args, "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["lengths"] == [6, 6] and in_order(err, "environment 0 ", "gone", "Traceback")
    left[0] = 1000
    with pytest.raises(SystemExit) as exit:
        evaluation.main(args)
    out, err = capsys.readouterr()
    assert exit.value.code == 1 and not out and "error: " in err


def test_as_many_play_at_once_as_are_asked_for(
    logdir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    for count, made in ((1, 1), (3, 3), (9, 5)):
        monkeypatch.setattr(Homemade, "made", 0)
        evaluation.main(["--logdir", str(logdir), "--episodes", "5", "--count", str(count), "--json"])
        assert Homemade.made == made and json.loads(capsys.readouterr().out)["lengths"] == [6] * 5


@pytest.mark.parametrize(("after", "ended"), [(4, 0), (7, 1)])
def test_one_that_is_stopped_says_so_and_what_is_missing(
    after: int, ended: int, logdir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    def stopping(env: Homemade) -> None:
        if env.steps == after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Homemade, "before", stopping)
    args = ["--logdir", str(logdir), "--episodes", "3", "--count", "1", "--json"]
    if not ended:
        with pytest.raises(SystemExit) as exit:
            evaluation.main(args)
        assert exit.value.code == 2
        assert "stopped by SIGINT before an episode had ended" in capsys.readouterr().err
        return
    evaluation.main(args)
    out, err = capsys.readouterr()
    assert json.loads(out)["lengths"] == [6]
    assert err == "stopped by SIGINT after 1 of 3 episodes, of which the short ones are the first to end\n"
