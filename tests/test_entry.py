"""Commands as a shell runs them: output that nobody reads on, Ctrl-C, warnings, and flags with wrong values."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastdream import cli, entry, train
from fastdream import eval as evaluation
from fastdream.config import Config
from fastdream.logger import Logger
from fastdream.progress import Goal

from .test_badinput import SMALL, in_order

Capture = pytest.CaptureFixture[str]
# This copy of the package, from another working directory.
ELSEWHERE = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
COMMANDS = ["train --help", "train --preset list", "eval --help", "doctor", "published", "datasets --help"]


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_nobody_reads_on_is_no_error(command: str, tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    module, *args = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"fastdream.{module}", *args],
        stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ELSEWHERE,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


@pytest.mark.parametrize(
    "command", ["train --task dummy_vector --preset debug --dry-run", "train -h", "doctor"]
)
def test_a_terminal_without_our_letters_shows_others(command: str, tmp_path: Path):
    module, *args = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"fastdream.{module}", *args],
        capture_output=True, text=True, cwd=tmp_path, env=ELSEWHERE | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    assert "--dry-run" not in args or "steps ? " in done.stdout


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (train.main, ["--logdir", "x" * 300]),
        (evaluation.main, ["--logdir", "x" * 300]),
        (train.main, ["--dataset", "x" * 300]),
    ],
)
def test_a_name_that_no_disk_takes(main: Any, args: list[str], capsys: Capture):
    with pytest.raises(SystemExit) as exit:
        main(args)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and in_order(error, "error: cannot look for ", "xxx", "File name too long")


def test_ctrl_c_before_a_run_has_begun(capsys: Capture):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        entry.run(interrupted)
    assert exit.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_our_warnings_are_lines_and_those_of_others_are_as_they_were(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    entry.plain_warnings()
    assert warnings.formatwarning("a word", UserWarning, entry.__file__, 3) == "warning: a word\n"
    assert "elsewhere.py:3: UserWarning: a word" in warnings.formatwarning(
        "a word", UserWarning, "elsewhere.py", 3
    )


def test_environments_in_processes_warn_once(tmp_path: Path):
    (tmp_path / "floats.py").write_text(
        textwrap.dedent("""
            import gymnasium, numpy as np
            class Env(gymnasium.Env):
                observation_space = gymnasium.spaces.Box(0, 1, (16, 16, 1))
                action_space = gymnasium.spaces.Discrete(2)
                def reset(self, *, seed=None, options=None):
                    return np.zeros((16, 16, 1), np.float32), {}
                def step(self, action):
                    return np.zeros((16, 16, 1), np.float32), 1.0, True, False, {}
        """)
    )
    args = [*SMALL, "--task", "floats:Env", "--steps", "8", "--logdir", "run", "--eval.final-episodes", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "fastdream.train", *args],
        capture_output=True, text=True, cwd=tmp_path, env=ELSEWHERE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert in_order(line, "warning: the observation 'vector' is float32 [16, 16, 1]", "must be uint8")


@pytest.mark.parametrize(
    "flag, value, least",
    [
        ("--steps", "0", 1),
        ("--seed", "-1", 0),
        ("--env.count", "0", 1),
        ("--train.ratio", "nan", 0),
        ("--train.ratio", "inf", 0),
        ("--train.batch-length", "1", 2),
        ("--eval.final-episodes", "-1", 0),
        ("--log.save-every", "-2.5", 0),
        ("--dreamer.value.units", "0", 1),
        ("--dreamer.policy.layers", "-1", 0),
        ("--dreamer.dyn.blocks", "0", 1),
        ("--dreamer.rewhead.bins", "1", 2),
    ],
)
def test_a_number_that_is_too_small_names_its_flag_alone(flag: str, value: str, least: int, capsys: Capture):
    with pytest.raises(SystemExit) as exit:
        train.main(["--dry-run", flag, value])
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert exit.value.code == 2
    assert f"{flag} {value}: it must be a number of at least {least}" in error and "Config(" not in error


@pytest.mark.parametrize(
    "flag, most", [("--env.count", "10,000"), ("--eval.count", "10,000"), ("--threads", "1,024")]
)
def test_a_number_that_no_machine_has_a_use_for(flag: str, most: str, capsys: Capture):
    with pytest.raises(SystemExit) as exit:
        train.main([flag, "99999999"])
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert exit.value.code == 2 and f"{flag} 99999999: it must be at most {most}" in error


def test_a_seed_that_no_generator_takes():
    with pytest.raises(ValueError, match="--seed 99999999999999999999: it must be less than 4,611"):
        Config(seed=99999999999999999999)
    assert Config(seed=2**62 - 1).seed == 2**62 - 1


def test_a_word_without_a_flag(capsys: Capture):
    for main, word, meant in (
        (train.main, "gym_CartPole-v1", "--task gym_CartPole-v1"),
        (evaluation.main, "runs/latest", "--logdir runs/latest"),
    ):
        with pytest.raises(SystemExit) as exit:
            main([word])
        assert exit.value.code == 2
        assert f"error: '{word}' is no flag: did you mean {meant}?" in capsys.readouterr().err


def test_an_agent_that_is_like_no_other_is_answered_with_all():
    with pytest.raises(
        ValueError, match="unknown agent 'ppo': there are dreamer_v1, dreamer_v2, dreamer_v3, "
    ):
        cli.parse(["--agent", "ppo"])


def test_presets_stand_in_columns(capsys: Capture):
    for agent in ("dreamer_v3", "world_models"):
        with pytest.raises(SystemExit):
            cli.parse(["--agent", agent, "--preset", "list"])
        lines = capsys.readouterr().out.splitlines()
        units = [re.search(" (?:steps|updates) ", line) for line in lines]
        assert len({unit and unit.start() for unit in units}) == 1 and all(units)
        assert not any(" 1 envs" in line for line in lines)


def test_no_lines_before_the_last_where_none_are_asked_for(tmp_path: Path, capsys: Capture):
    logger = Logger(tmp_path, ("console",), interval=0)
    logger.console.start(Goal("task", 100))  # type: ignore[union-attr]
    for step in range(50):
        logger.progress(step, 0)
    logger.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert "step 49/100" in line


def test_threads_of_a_program_may_read_flags_at_once():
    """As a sweep of several runs in one process does."""
    with ThreadPoolExecutor(4) as threads:
        parsed = threads.map(lambda seed: cli.parse(["--preset", "debug", "--seed", str(seed)]), range(8))
        assert [one.config.seed for one in parsed] == list(range(8))
