"""The commands from end to end, on environments that are there to be tried out with."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import eval as evaluation
from fastdream import rundir, train
from fastdream.agents import load
from fastdream.agents.dreamer_v3 import DreamerV3
from fastdream.checkpoint import Checkpoint
from fastdream.run import Online

SMALL = ["--preset", "debug", "--train.batch-size", "2", "--train.batch-length", "4", "--env.count", "2"]
SMALL += ["--eval.final-episodes", "2", "--log.outputs", "jsonl", "console"]


def command(logdir: Path, *args: str, task: str = "dummy_vector", steps: int = 60) -> list[str]:
    return ["--task", task, "--logdir", str(logdir), "--steps", str(steps), *SMALL, *args]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", ["dummy_vector", "dummy_image", "dummy_mixed", "dummy_multidiscrete"])
def test_a_run_leaves_what_it_should(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.main(command(tmp_path, "--log.report-every", "40", task=task))
    text = capsys.readouterr().out
    for fact in (f"task      {task}", "parameters", "device    cpu", "replay    ", f"run       {tmp_path}"):
        assert fact in text
    assert "evaluation: " in text and " ± " in text
    saved = json.loads((tmp_path / "eval.json").read_text())
    assert len(saved["scores"]) == 2 and saved["step"] == 60 and saved["mean"] == np.mean(saved["scores"])
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["command"].startswith(f"python -m fastdream.train --task {task}")
    assert about["versions"]["torch"] and {row["op"] for row in about["ops"]} >= {"observe", "imagine"}
    metrics = [entry for entry in lines(tmp_path / "metrics.jsonl") if "train/opt/loss" in entry]
    assert metrics and all(np.isfinite(v) for e in metrics for k, v in e.items() if "loss" in k)
    assert len(lines(tmp_path / "scores.jsonl")) == 2 * (30 // 21)
    assert len(list((tmp_path / "media").glob("openloop_*_000000040*"))) >= 1


def test_the_first_lines_say_what_is_seen_and_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.main(command(tmp_path, "--env.count", "1", task="dummy_mixed", steps=2))
    text = capsys.readouterr().out
    for fact in (
        "task      dummy_mixed, 1 environment, in this process\n",
        "observes  image (64 × 64 × 3 pixels), vector (4 numbers), other (1 number), discrete (1 of 4)\n",
        "acts      act_continuous (2 numbers), act_discrete (1 of 4), act_multidiscrete (2 × 1 of 4)\n",
        " float32 matrix products, ",
    ):
        assert fact in text


def test_a_run_without_a_logdir_gets_one_and_is_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--task", "dummy_vector", "--steps", "20", *SMALL])
    (run,) = (tmp_path / "runs" / "dummy_vector").iterdir()
    assert run.name.startswith("debug-s0-") and (tmp_path / "runs" / "latest").resolve() == run


@pytest.mark.parametrize("given", ["runs/latest", "runs/recorded"])
def test_what_the_latest_run_recorded_is_learned_from(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By a run of its own, beside that one, which is the latest from then on and can be resumed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    train.main(["--task", "dummy_vector", "--steps", "60", "--logdir", "runs/recorded", *SMALL])
    (tmp_path / "runs" / "latest").symlink_to("recorded")
    before = sorted(x.name for x in (tmp_path / "runs" / "recorded").iterdir())
    train.main(["--dataset", given, "--steps", "10", *SMALL[:6]])
    (run,) = (tmp_path / "runs" / "dataset_recorded").iterdir()
    assert (tmp_path / "runs" / "latest").resolve() == run
    assert sorted(x.name for x in (tmp_path / "runs" / "recorded").iterdir()) == before
    capsys.readouterr()
    train.main(["--logdir", "runs/latest", "--steps", "20"])
    assert "resumed at step 10" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", ["32", "0", "1e-12"])
def test_dry_run_makes_one_update_and_leaves_nothing(
    ratio: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Also of a run that would make none, or none for very long."""
    monkeypatch.chdir(tmp_path)
    train.main(["--task", "dummy_mixed", "--preset", "debug", "--train.ratio", ratio, "--dry-run"])
    text = capsys.readouterr().out
    assert "parameters" in text and "one update: loss" in text and "MB" in text
    assert "run       tried out; nothing is kept" in text
    assert list(tmp_path.iterdir()) == []


def test_environments_in_processes_train_too(tmp_path: Path):
    few = ["--env.count", "1", "--eval.final-episodes", "1"]
    train.main(command(tmp_path, "--env.parallel", "yes", *few))
    assert json.loads((tmp_path / "eval.json").read_text())["lengths"] == [20]


def test_the_first_signal_saves_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    advance, before = Online.advance, signal.getsignal(signal.SIGINT)

    def interrupted(self: Online, obs: Any) -> None:
        advance(self, obs)
        if self.step == 40:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Online, "advance", interrupted)
    train.main(command(tmp_path))
    text = capsys.readouterr().out
    assert f"stopped by SIGINT at step 40; to resume: python -m fastdream.train --logdir {tmp_path}" in text
    assert f"run       {tmp_path} (new)\n" in text
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "eval.json").exists()
    monkeypatch.undo()
    train.main(["--logdir", str(tmp_path)])
    text = capsys.readouterr().out
    assert f"run       {tmp_path} (continues)\n" in text
    assert "resumed at step 40" in text and "evaluation: " in text
    assert json.loads((tmp_path / "eval.json").read_text())["step"] == 60


def test_the_same_command_once_more_evaluates_and_saves_nothing_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
):
    def saved() -> dict[Path, bytes]:
        files = [*(finished / "ckpt").rglob("*"), *(finished / "replay").rglob("*")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    before, result = saved(), (finished / "eval.json").read_bytes()
    (finished / "eval.json").unlink()
    train.main(["--logdir", str(finished)])
    assert "resumed at step 60" in capsys.readouterr().out
    assert (finished / "eval.json").read_bytes() == result
    assert saved() == before


def test_a_second_signal_aborts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def impatient(self: Online, obs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Online, "advance", impatient)
    with pytest.raises(KeyboardInterrupt):
        train.main(command(tmp_path))
    assert Checkpoint(tmp_path / "ckpt").load() is None
    rundir.RunLock(tmp_path).release()


def test_a_killed_run_goes_on_with_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    args = command(tmp_path, "--log.save-every", "0.01", steps=1_000_000)
    process = subprocess.Popen([sys.executable, "-m", "fastdream.train", *args], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ckpt/[0-9]*-step*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = int((tmp_path / "ckpt" / "latest").read_text()[-9:])
    train.main(command(tmp_path, "--log.save-every", "0.01", steps=step + 40))
    assert f"resumed at step {step:,}" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval.json").read_text())["step"] == step + 40
    steps = [entry["step"] for entry in lines(tmp_path / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[-1] == step + 40


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("run")
    train.main(command(logdir, task="dummy_mixed"))
    return logdir


def test_eval_prints_scores(finished: Path, capsys: pytest.CaptureFixture[str]):
    evaluation.main(["--logdir", str(finished), "--episodes", "3"])
    assert "over 3 episodes (step 60, sample actions)" in capsys.readouterr().out


def test_eval_prints_the_same_json_for_the_same_seed(finished: Path, capsys: pytest.CaptureFixture[str]):
    outputs = []
    for seed in ("3", "3", "4"):
        args = ["--logdir", str(finished), "--episodes", "3", "--json", "--mode", "mode", "--seed", seed]
        evaluation.main([*args, "--checkpoint", "best"])
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == outputs[1] and outputs[0]["scores"] != outputs[2]["scores"]
    assert outputs[0]["mode"] == "mode" and outputs[0]["lengths"] == [20] * 3 and outputs[0]["videos"] == []


def test_eval_writes_videos(finished: Path, capsys: pytest.CaptureFixture[str]):
    evaluation.main(["--logdir", str(finished), "--episodes", "1", "--video", "--json"])
    files = [Path(name) for name in json.loads(capsys.readouterr().out)["videos"]]
    names = sorted(file.stem for file in files)
    assert names == [
        f"{name}_000000060" for name in ("episode", "openloop_image", "openloop_other", "openloop_vector")
    ]
    assert all(file.stat().st_size > 100 for file in files)


def test_eval_predicts_from_the_newest_replay_where_the_own_one_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = ["--eval.final-episodes", "0"]
    train.main(command(tmp_path, steps=40))
    for steps in (60, 80):
        train.main(command(tmp_path, *few, steps=steps))
    best = ["--logdir", str(tmp_path), "--episodes", "1", "--checkpoint", "best", "--video"]
    capsys.readouterr()
    evaluation.main(best)
    out, err = capsys.readouterr()
    assert "openloop_vector_000000040.png" in out
    assert err == "open-loop predictions begin from the replay of step 80; that of step 40 is gone\n"
    shutil.rmtree(tmp_path / "replay")
    evaluation.main(best)
    out, err = capsys.readouterr()
    assert "over 1 episode (step 40" in out and "episode_000000040" in out and "openloop" not in out
    assert err.startswith("no open-loop predictions: ") and err.count("\n") == 1


def test_eval_says_before_it_plays_that_nothing_writes_videos(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SystemExit) as exit:
        evaluation.main(["--logdir", str(finished), "--episodes", "1", "--video"])
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and not out and err.startswith("error: --video: ") and "pip install" in err


def test_eval_keeps_its_scores_where_the_disk_is_full(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluation.video, "write_video", full)
    evaluation.main(["--logdir", str(finished), "--episodes", "1", "--video"])
    out, err = capsys.readouterr()
    assert "over 1 episode" in out and err.startswith("no videos: cannot write") and "disk is full" in err


def test_a_trained_agent_acts_in_five_lines(finished: Path):
    agent = load(finished)
    obs = {key: np.zeros((1, *space.shape), space.dtype) for key, space in agent.obs_space.items()}
    carry = agent.init_policy(1)
    carry, action, _ = agent.policy(carry, obs | {"is_first": np.array([True])})
    carry, action, _ = agent.policy(carry, obs | {"is_first": np.array([False])})
    assert isinstance(agent, DreamerV3)
    assert {key: value.shape for key, value in action.items()} == {
        key: (1, *space.shape) for key, space in agent.act_space.items()
    }
