"""Whatever the user or the machine gets wrong: one clear error, before work starts where that can be known."""

import errno
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdream import config as configs
from fastdream import eval as evaluation
from fastdream import rundir, train, tree_files
from fastdream.checkpoint import Checkpoint

SMALL = ["--preset", "debug", "--train.batch-size", "2", "--train.batch-length", "4", "--env.count", "2"]
SMALL += ["--eval.final-episodes", "0", "--log.outputs", "console", "--steps", "60"]

ENVIRONMENTS = """
    import gymnasium
    import numpy as np
    from gymnasium import spaces

    class Base(gymnasium.Env):
        observation_space = spaces.Dict({"good": spaces.Box(-1, 1, (2,)), "bad": spaces.Box(-1, 1, (2,))})
        action_space = spaces.Discrete(2)
        made = 0

        def __init__(self):
            self.steps, Base.made = 0, Base.made + 1

        def observe(self):
            return {"good": np.zeros(2, np.float32), "bad": np.zeros(2, np.float32)}

        def reset(self, seed=None, options=None):
            return self.observe(), {}

        def step(self, action):
            self.steps += 1
            return self.observe(), 1.0, self.steps % 5 == 0, False, {}

    class Text(Base):
        observation_space = spaces.Dict({"good": spaces.Box(-1, 1, (2,)), "bad": spaces.Text(5)})

    class OddImage(Base):
        observation_space = spaces.Dict({"bad": spaces.Box(0, 255, (50, 50, 3), np.uint8)})

    class Graph(Base):
        action_space = spaces.Sequence(spaces.Discrete(2))

    class Dies(Base):
        def step(self, action):
            if self.steps == 3 and Base.made == 2:
                raise ConnectionError("the simulator went away")
            return super().step(action)

    class NeverBegins(Base):
        def reset(self, seed=None, options=None):
            raise OSError("no display")

    def broken():
        raise OSError("no display")

    class AlwaysDies(Base):
        def step(self, action):
            raise ConnectionError("the simulator went away")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"environments_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(ENVIRONMENTS))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """The error of a command that is refused; nothing but one error, and no traceback."""
    with pytest.raises(SystemExit) as exit:
        train.main([*SMALL, *args])
    error = capsys.readouterr().err
    assert exit.value.code == code, error
    assert error.startswith("error: ") and error.count("error: ") == 1 and "Traceback" not in error
    return error


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_a_missing_extra_is_named_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "crafter", None)
    error = refused(
        capsys, "--task", "crafter_reward", "--env.parallel", "no", "--logdir", str(tmp_path / "run")
    )
    assert in_order(error, "'crafter'", "not installed", "pip install 'fastdream[crafter]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind, named", [("Text", "'bad'"), ("OddImage", "'bad'"), ("Graph", "action")])
def test_spaces_that_cannot_be_served_are_named(
    kind: str, named: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    task = ["--task", f"{module}:{kind}", "--env.parallel", "no"]
    error = refused(capsys, *task, "--logdir", str(tmp_path / "run"))
    assert named in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task, named", [("dummy_nan", "the reward is nan"), ("dummy_badobs", "'vector'")])
def test_an_environment_that_breaks_its_promises_stops_the_run_and_loses_nothing(
    task: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    error = refused(capsys, "--task", task, "--logdir", str(tmp_path), "--suite.at", "15", code=1)
    assert in_order(error, task, named) and "step 15" in error
    loaded = Checkpoint(tmp_path / "ckpt").load()
    assert loaded is not None and loaded.step == 30


@pytest.mark.parametrize("parallel", ["yes", "no"])
@pytest.mark.parametrize("name, place", [("broken", "in broken"), ("NeverBegins", "in reset")])
def test_an_environment_that_does_not_start_is_one_error(
    name: str, place: str, parallel: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    logdir = tmp_path / "run"
    args = ["--task", f"{module}:{name}", "--env.parallel", parallel, "--logdir", str(logdir)]
    with pytest.raises(SystemExit) as exit:
        train.main([*SMALL, *args])
    first, *trace = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and not logdir.exists()
    assert first == f"error: environment '{module}:{name}' did not start: OSError: no display"
    assert trace[0].startswith("Traceback") and trace[-1] == "OSError: no display"
    assert [line.endswith(place) for line in trace if line.startswith("  File")] == [True]


def test_an_environment_that_dies_is_restarted_and_said(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train.main([*SMALL, "--task", f"{module}:Dies", "--env.parallel", "no", "--logdir", str(tmp_path)])
    output = capsys.readouterr().out
    assert in_order(
        output, "environment ", "was restarted (number 1)", "the simulator went away", "done after 60 steps"
    )


def test_an_environment_that_always_dies_ends_the_run(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--task", f"{module}:AlwaysDies", "--env.parallel", "no", "--logdir", str(tmp_path)]
    with pytest.raises(SystemExit) as exit:
        train.main([*SMALL, *args])
    output, error = capsys.readouterr()
    assert exit.value.code == 1 and in_order(
        error, "error: ", "had to be restarted", "the simulator went away"
    )
    assert output.count("was restarted") > 10 and output.count("Traceback") == 1
    assert f"to resume: python -m fastdream.train --logdir {tmp_path}" in error
    assert Checkpoint(tmp_path / "ckpt").load() is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    error = refused(capsys, "--device", "cuda", "--task", "dummy_vector", "--logdir", str(tmp_path / "run"))
    assert in_order(error, "--device cuda", "CUDA", "--device cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "args, named",
    [
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--size", "13m"], "did you mean '1"),
        (["--agent", "dreamer_v4"], "did you mean 'dreamer_v3'"),
        (["--task", "dummy_vectr"], "did you mean 'dummy_vector'"),
        (["--replay.capacity", "10"], "--replay.capacity 10 is too small for one batch"),
        (["--replay.capacity", "1000000000000"], "or keep it on disk with --replay.on-disk"),
        (["--replay.capacity", "1e18"], "or keep it on disk with --replay.on-disk"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_work(
    args: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    error = refused(capsys, "--task", "dummy_vector", "--logdir", str(tmp_path), *args)
    assert named in error
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("not a directory")
    error = refused(capsys, "--task", "dummy_vector", "--logdir", str(tmp_path / "file" / "run"))
    assert in_order(error, "cannot write", "file", "--logdir")


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    args = ["--task", "dummy_vector", "--logdir", str(tmp_path)]
    train.main([*SMALL, *args])

    def full(path: Path, tensors: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(tree_files, "write_tensors", full)
    error = refused(capsys, *args, "--steps", "80")
    assert in_order(error, "cannot write", "the disk is full")
    monkeypatch.undo()
    capsys.readouterr()
    train.main([*SMALL, *args, "--steps", "80"])
    assert "resumed at step 60" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--task", "dummy_vector", "--logdir", str(tmp_path)]
    train.main([*SMALL, *args])
    train.main([*SMALL, *args, "--steps", "80"])
    newest = tmp_path / "ckpt" / (tmp_path / "ckpt" / "latest").read_text()
    agent = newest / "agent.safetensors"
    agent.write_bytes(agent.read_bytes()[:-10])
    capsys.readouterr()
    train.main([*SMALL, *args, "--steps", "80"])
    output = capsys.readouterr().out
    assert in_order(
        output, "agent.safetensors", "using", "step 60) instead", "resumed at step 60", "done after 80"
    )


def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--task", "dummy_vector", "--logdir", str(tmp_path)]
    train.main([*SMALL, *args])
    before = (tmp_path / "config.json").read_bytes()
    error = refused(capsys, *args, "--seed", "3", "--dreamer.opt.lr", "0.1")
    assert in_order(error, "seed: 0 -> 3", "dreamer.opt.lr: 4e-05 -> 0.1", "another --logdir")
    assert "batch_size" not in error and (tmp_path / "config.json").read_bytes() == before


def test_a_run_that_died_before_its_first_checkpoint_blocks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--task", "dummy_vector", "--logdir", str(tmp_path)]
    train.main([*SMALL, *args])
    shutil.rmtree(tmp_path / "ckpt")
    assert "did you mean" in refused(capsys, *args, "--task", "dummy_imag")
    train.main(["--logdir", str(tmp_path), "--dry-run"])
    assert "task      dummy_vector, 2 environments" in capsys.readouterr().out
    train.main([*SMALL, "--task", "dummy_image", "--seed", "3", "--logdir", str(tmp_path)])
    output = capsys.readouterr().out
    assert "done after 60 steps" in output and "resumed" not in output
    asked = configs.load(tmp_path)
    assert (asked.task, asked.seed, asked.env.count) == ("dummy_image", 3, 2)
    assert "task: dummy_image -> dummy_vector" in refused(capsys, *args)


def test_a_directory_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with rundir.RunLock(tmp_path):
        error = refused(capsys, "--task", "dummy_vector", "--logdir", str(tmp_path))
    assert in_order(error, str(tmp_path), "in use by process", "--logdir")


def test_a_loss_that_is_not_finite_names_step_loss_and_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--task", "dummy_vector", "--logdir", str(tmp_path), "--log.save-every", "0.001"]
    blow_up = ["--dreamer.opt.lr", "1e37", "--dreamer.opt.warmup", "0"]
    error = refused(capsys, *args, *blow_up, code=1)
    checkpoint = Checkpoint(tmp_path / "ckpt").load()
    assert checkpoint is not None
    assert in_order(
        error, "became NaN or infinite in update", "step", f"last good checkpoint is {checkpoint.path}"
    )
    assert all(value.isfinite().all() for value in checkpoint.tree["agent"]["nets"].values())


def test_evaluation_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        evaluation.main(["--logdir", str(tmp_path)])
    assert exit.value.code == 2 and "holds no run" in capsys.readouterr().err
    train.main([*SMALL, "--task", "dummy_vector", "--logdir", str(tmp_path), "--steps", "20"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        evaluation.main(["--logdir", str(tmp_path), "--checkpoint", str(tmp_path / "ckpt" / "other")])
    assert exit.value.code == 2 and "there is no checkpoint" in capsys.readouterr().err
