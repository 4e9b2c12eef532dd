"""Learning from a dataset alone, through the same command and loop as everything else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import agents, cli, presets, train
from fastdream import eval as evaluation
from fastdream.agents import load
from fastdream.build import Parts, environment, make_agent
from fastdream.checkpoint import Checkpoint
from fastdream.config import Config
from fastdream.datasets import DatasetError
from fastdream.offline import BLOCK, dataset_replay, recorded
from fastdream.run import Training
from fastdream.schedule import Stop

from .dataset_tools import episode, save_hdf5, save_npz
from .run_tools import CPU, ListLogger
from .test_resume import equal

AGENTS = ["dreamer_v1", "dreamer_v2", "dreamer_v3", "offline_dv2"]
FLAGS = ["--train.batch-size", "2", "--train.batch-length", "4", "--log.outputs", "console", "--steps", "40"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five episodes as dummy_continuous could have shown them."""
    whole = [episode(20, seed, terminal=seed % 2 == 0, width=4) for seed in range(5)]
    return save_npz(tmp_path / "set", *whole)


def run(*args: str) -> None:
    train.main([*FLAGS, *args])


def settings(folder: Path, agent: str, **changes: Any) -> Config:
    config = presets.resolve("", "debug", agent=agent, dataset=str(folder))
    return replace(
        config,
        train=replace(config.train, batch_size=2, batch_length=4),
        log=replace(config.log, outputs=(), every=0.0, save_every=0.0),
        **changes,
    )


class Run:
    """Runs of an agent on a dataset, and the metrics of every update that they made."""

    def __init__(self, logdir: Path) -> None:
        self.logdir, self.metrics = logdir, []

    def __call__(self, config: Config, interrupt: int = 0) -> Training:
        """Train; asked to stop, as by Ctrl-C, in the update of that number."""
        stop = Stop()
        data = recorded(config)
        agent = make_agent(config, data.obs_space, data.act_space, CPU)
        replay = dataset_replay(config, data, agent, self.logdir, CPU)
        logger: Any = ListLogger()
        checkpoint = Checkpoint(self.logdir / "ckpt")
        parts = Parts(agent, replay, data, environment(config), logger, checkpoint, CPU, self.logdir)
        update = agent.update

        def noting(*args: Any) -> Any:
            out = update(*args)
            self.metrics.append({key: value.item() for key, value in out[2].items()})
            if len(self.metrics) == interrupt:
                stop.reason = "SIGINT"
            return out

        agent.update = noting  # type: ignore[method-assign]
        training = Training(config, parts)
        try:
            training.run(stop)
        finally:
            training.close()
        return training


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_learns_from_a_folder_of_episodes(
    agent: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    logdir = tmp_path / "run"
    preset = ["--preset", "debug"]
    run(
        "--agent",
        agent,
        *preset,
        "--dataset",
        str(folder),
        "--logdir",
        str(logdir),
        "--log.report-every",
        "20",
    )
    text = capsys.readouterr().out
    assert f"dataset   {folder}: 5 episodes of 20 steps, return " in text
    assert "task      none, so no evaluation (--task)" in text and "evaluation:" not in text
    assert "done after 40 steps" in text and not (logdir / "eval.json").exists()
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss/policy" in line for line in lines)
    assert all(np.isfinite(v) for line in lines for k, v in line.items() if "loss" in k)
    assert list((logdir / "media").glob("openloop_vector*"))
    assert json.loads((logdir / "config.json").read_text())["dataset"]["episodes"] == 5
    # It goes on where it stopped, and acts.
    run("--logdir", str(logdir), "--steps", "60")
    assert "resumed at step 40" in capsys.readouterr().out
    one = load(logdir)
    assert type(one) is agents.find(agent)
    obs = {"vector": np.zeros((1, 4), np.float32), "is_first": np.ones(1, bool)}
    assert one.policy(one.init_policy(1), obs)[1]["action"].shape == (1, 2)
    # Without a task there is nothing to evaluate in, until one is given.
    with pytest.raises(SystemExit):
        evaluation.main(["--logdir", str(logdir)])
    assert "has no task: give the one to play with --task" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluation.main(["--logdir", str(logdir), "--task", "gym_CartPole-v1"])
    assert "gym_CartPole-v1 has" in capsys.readouterr().err
    evaluation.main(["--logdir", str(logdir), "--task", "dummy_continuous", "--episodes", "2"])
    assert "dummy_continuous: " in capsys.readouterr().out


def test_with_a_task_it_is_evaluated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    logdir = tmp_path / "run"
    data = [
        "--dataset",
        str(folder),
        "--task",
        "dummy_continuous",
        "--preset",
        "debug",
        "--logdir",
        str(logdir),
    ]
    run(*data, "--eval.every", "20", "--eval.final-episodes", "2")
    text = capsys.readouterr().out
    assert "task      dummy_continuous, for evaluation" in text
    mean = json.loads((logdir / "config.json").read_text())["dataset"]["return"]["mean"]
    assert f"over 2 episodes (sample actions); mean return of the dataset: {mean:.1f}" in text
    assert len(json.loads((logdir / "eval.json").read_text())["scores"]) == 2
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/score" in line] == [20, 40]
    evaluation.main(["--logdir", str(logdir), "--episodes", "1", "--video"])
    output = capsys.readouterr()
    assert "wrote" in output.out and "no open-loop predictions" not in output.err


@pytest.mark.parametrize("agent", AGENTS)
def test_a_stopped_run_computes_the_same_losses(agent: str, folder: Path, tmp_path: Path):
    config = settings(folder, agent, steps=50)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    end = whole(config)
    stopped = parts(config, interrupt=3)
    assert stopped.loop.step == BLOCK and stopped.parts.checkpoint.load() is not None
    # Looked at on the way, and stopped within the second phase, where there is one.
    parts(replace(config, steps=30, log=replace(config.log, report_every=10)))
    resumed = parts(config)
    assert len(whole.metrics) == 50 and parts.metrics == whole.metrics
    left, right = resumed.loop.agent.state_dict(), end.loop.agent.state_dict()
    del left["generators"]["report"], right["generators"]["report"]
    assert equal(left, right)
    kept = resumed.loop.replay.stream(0)
    assert all((value == kept[key]).all() for key, value in end.loop.replay.stream(0).items())


def test_a_run_keeps_no_copy_of_the_dataset(folder: Path, tmp_path: Path):
    Run(tmp_path / "run")(settings(folder, "dreamer_v3", steps=10))
    names = {path.name.partition("-")[0] for path in (tmp_path / "run" / "replay").iterdir()}
    assert names == {"latents"}


def test_a_run_makes_as_many_updates_as_it_was_told_and_then_ends_its_blocks_as_others_do(
    folder: Path, tmp_path: Path
):
    one, config = Run(tmp_path), settings(folder, "dreamer_v3", steps=13)
    assert one(config).loop.learner.updates == len(one.metrics) == 13
    assert one(replace(config, steps=40), interrupt=15).loop.step == 2 * BLOCK == len(one.metrics)
    assert one(replace(config, steps=23)).loop.step == 23


def test_a_dataset_may_move_but_not_change(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    logdir, moved = tmp_path / "run", tmp_path / "moved"
    run("--dataset", str(folder), "--preset", "debug", "--logdir", str(logdir))
    shutil.move(folder, moved)
    run("--dataset", str(moved), "--logdir", str(logdir), "--steps", "50")
    assert "resumed at step 40" in capsys.readouterr().out
    save_npz(moved, episode(20, 77, width=4))  # in place of the first
    with pytest.raises(SystemExit):
        run("--logdir", str(logdir), "--steps", "60")
    error = capsys.readouterr().err
    assert (
        f"{moved} is not what the run in {logdir} learned from: that had 5 episodes and 105 records" in error
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train.batch-length", "300"], "holds 105 records, fewer than one sequence of 301: shorten"),
        (
            ["--train.batch-length", "30", "--replay.windows", "episode"],
            "has no episode of 31 records (the longest has 21): shorten --train.batch-length",
        ),
        (["--task", "gym_CartPole-v1"], "'action/action' is float32 [2] a step where int32 [] is expected"),
        (["--task", "dummy_continuos"], "did you mean 'dummy_continuous'"),
        (["--dataset", "nowhere"], "there is no dataset nowhere"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_work(
    args: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    logdir = tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        run("--dataset", str(folder), "--preset", "debug", "--logdir", str(logdir), *args)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.startswith("error: ") and message in error
    assert not logdir.exists()


def test_a_dry_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run("--dataset", str(folder), "--preset", "debug", "--dry-run")
    assert f"{BLOCK} updates: loss" in capsys.readouterr().out and not (tmp_path / "runs").exists()


def test_settings_follow_from_the_dataset(folder: Path, tmp_path: Path):
    pictures = save_npz(tmp_path / "pictures", episode(5, picture=True))
    for agent in AGENTS:
        config = cli.parse(["--agent", agent, "--dataset", str(folder)]).config
        assert (config.preset, config.size, config.task, config.suite) == ("offline", "tiny", "", None)
        assert not config.replay.online and config.train.prefill == 0
        config = cli.parse(["--agent", agent, "--dataset", str(pictures), "--task", "dmc_walker_walk"]).config
        assert (config.preset, config.suite.obs, config.suite.repeat) == ("offline_vision", "vision", 2)
    message = "preset 'offline' of {} is for learning from a dataset: give --dataset"
    for args in (["--preset", "offline"], ["--preset", "offline", "--task", "gym_CartPole-v1"]):
        with pytest.raises(ValueError, match=message.format("dreamer_v3")):
            cli.parse(args)
    for args in ([], ["--task", "gym_CartPole-v1"]):
        with pytest.raises(ValueError, match=message.format("offline_dv2")):
            cli.parse(["--agent", "offline_dv2", *args])
    # Any other preset serves, too; its task is not that of the dataset.
    assert cli.parse(["--preset", "dmc_proprio", "--dataset", str(folder)]).config.task == ""


@pytest.mark.parametrize("agent", ["dreamer_v3", "dreamer_v2"])
def test_pictures_of_84_pixels_are_learned_from_at_64(
    agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = save_hdf5(tmp_path / "set.hdf5", *(episode(9, seed, picture=True, size=84) for seed in range(2)))
    args = ["--agent", agent, "--dataset", str(path), "--preset", "debug", "--logdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        run(*args)
    assert "84" in capsys.readouterr().err and not (tmp_path / "run").exists()
    run(*args, "--resize", "64", "--steps", "10")
    text = capsys.readouterr().out
    assert "observes  image (64 × 64 × 3 pixels)" in text and "done after 10 steps" in text
    with pytest.raises(ValueError, match="is of a dataset alone: for environments see --suite.size"):
        Config(resize=64)


def test_offline_dv2_as_v_d4rl_has_it():
    config = presets.resolve("", "offline_vision", agent="offline_dv2", dataset="somewhere")
    dreamer, offline = config.dreamer, config.dreamer.offline
    assert (config.train.batch_size, config.train.batch_length, config.size) == (64, 50, "15m")
    assert (dreamer.dyn.deter, dreamer.imag_length, dreamer.pred_discount) == (200, 5, False)
    assert [opt.lr for opt in (dreamer.model_opt, dreamer.policy_opt, dreamer.value_opt)] == [
        3e-4,
        8e-5,
        8e-5,
    ]
    assert (offline.models, offline.penalty, offline.lam, offline.tune) == (7, "disagreement", 10.0, 0.0)
    assert (offline.model_updates, config.steps) == (25_000, 225_000)


def test_a_dataset_that_does_not_fit_into_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fastdream.offline.available_memory", lambda: 1000)
    with pytest.raises(DatasetError, match="GiB are available: --replay.on-disk"):
        Run(tmp_path)(settings(folder, "dreamer_v3", steps=10))
    config = settings(folder, "dreamer_v3", steps=10)
    assert Run(tmp_path)(replace(config, replay=replace(config.replay, on_disk=True))).loop.step == 10
