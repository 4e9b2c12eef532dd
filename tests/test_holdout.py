"""Episodes of a dataset that are held out: nothing is learned from them, and the losses on them are reported."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastdream import cli, train
from fastdream.config import Config
from fastdream.datasets import DatasetError
from fastdream.offline import UNSEEN, Updates, dataset_replay, recorded, split

from .dataset_tools import episode, save_hdf5, save_npz
from .run_tools import CPU
from .test_offline import FLAGS, Run, settings
from .test_resume import equal

EPISODES = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten episodes, each with a reward of its own."""
    return save_npz(tmp_path / "set", *map(numbered, range(EPISODES)))


def numbered(number: int, picture: bool = False) -> dict[str, np.ndarray]:
    data = episode(12 + number, number, picture, width=4)
    return data | {"reward": np.where(np.arange(len(data["reward"])) > 0, number, 0).astype(np.float32)}


def rewards(config: Config, unseen: bool) -> tuple[set[float], int]:
    """The rewards in one of the two replays, and how many steps it holds."""
    data = recorded(config)
    spaces = {"obs_space": data.obs_space, "act_space": data.act_space}
    agent: Any = SimpleNamespace(**spaces, latent_spec={}, replay_context=0)
    replay = dataset_replay(config, data, agent, None, CPU, unseen)
    steps = replay.stream(0)
    assert len(steps["reward"]) == replay.capacity  # full, and nothing was overwritten
    return set(steps["reward"][steps["reward"] > 0].tolist()) | {0.0}, replay.capacity


@pytest.mark.parametrize("shard", [False, True], ids=["npz", "hdf5"])
def test_every_episode_is_on_one_side(shard: bool, folder: Path, tmp_path: Path):
    path = folder
    if shard:  # all episodes one after another
        path = save_hdf5(tmp_path / "set.hdf5", *(numbered(i, picture=True) for i in range(EPISODES)))
    config = settings(path, "dreamer_v2", holdout=0.2)
    data = recorded(config)
    kept, held = split(config, data)
    assert len(held) == 2 and sorted(kept + held) == list(range(EPISODES))
    assert split(config, data) == (kept, held)
    assert split(replace(config, seed=1), data)[1] != held
    (learned, steps), (unseen, rest) = rewards(config, False), rewards(config, True)
    assert learned == {0.0, *map(float, kept)} and unseen == {0.0, *map(float, held)}
    assert steps + rest == data.survey.steps
    assert rewards(replace(config, holdout=0.0), False)[1] == data.survey.steps


def test_losses_on_them_are_means_and_change_nothing(folder: Path, tmp_path: Path):
    config = settings(folder, "offline_dv2", holdout=0.2, steps=40)
    plain, looked = Run(tmp_path / "plain"), Run(tmp_path / "looked")
    plain(replace(config, log=replace(config.log, report_every=0)))
    end = looked(replace(config, log=replace(config.log, report_every=10)))
    assert plain.metrics == looked.metrics
    loop = end.loop
    assert isinstance(loop, Updates) and loop.unseen is not None
    before = loop.agent.state_dict()["offline"]
    sampled: list[Any] = []
    report = loop.agent.report

    def noting(*args: Any) -> Any:
        sampled.append(report(*args))
        return sampled[-1]

    loop.agent.report = noting  # type: ignore[method-assign]
    losses = loop.losses_unseen()
    assert len(sampled) == UNSEEN and {"unseen/loss/model", "unseen/loss/kl"} <= losses.keys()
    for key, value in losses.items():
        each = [float(metrics[key.removeprefix("unseen/")]) for metrics, _ in sampled]
        assert value == pytest.approx(np.mean(each)) and (len(set(each)) > 1 or key == "unseen/loss/dis")
    assert equal(loop.agent.state_dict()["offline"], before)


def test_the_command_says_and_logs_them(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    args = ["--agent", "dreamer_v1", "--preset", "debug", "--dataset", str(folder), "--holdout", "0.2"]
    train.main([*FLAGS, *args, "--logdir", str(tmp_path / "run"), "--log.report-every", "20"])
    assert "; 2 episodes held out" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "report/unseen/loss/model" in line]
    assert [line["step"] for line in found] == [20, 40]
    assert all(np.isfinite(value) for line in found for value in line.values())
    train.main(["--logdir", str(tmp_path / "run"), "--steps", "60"])
    assert "resumed at step 40" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main(["--logdir", str(tmp_path / "run"), "--holdout", "0.3"])
    assert "holdout: 0.2 -> 0.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("agent", "share", "message"),
    [
        ("dreamer_v3", 0.2, "--holdout is not for dreamer_v3, whose sequences begin from states"),
        ("dreamer_v2", 0.04, "holds 10 episodes, of which --holdout 0.04 makes 0: choose a share"),
        ("dreamer_v2", 0.96, "holds 10 episodes, of which --holdout 0.96 makes 10"),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    agent: str, share: float, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--agent", agent, "--preset", "debug", "--dataset", str(folder), "--holdout", str(share)]
    with pytest.raises(SystemExit) as exit:
        train.main([*FLAGS, *args, "--log.report-every", "10", "--logdir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and not (tmp_path / "run").exists()


def test_held_out_episodes_that_are_too_short_are_named(folder: Path, tmp_path: Path):
    config = settings(folder, "dreamer_v2", holdout=0.1)
    config = replace(config, train=replace(config.train, batch_length=40))
    with pytest.raises(
        DatasetError, match=r"\(1 of its episodes\) holds \d+ records, fewer than one sequence of 40"
    ):
        rewards(config, True)
    with pytest.raises(ValueError, match="must be a share below 1 of the episodes that --dataset gives"):
        Config(holdout=0.2)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"holdout={share} must be a share"):
            replace(config, holdout=share)
    message = "--holdout: losses on what is held out are reported, and --log.report-every is 0"
    with pytest.raises(ValueError, match=message):
        cli.parse(["--dataset", str(folder), "--holdout", "0.2", "--log.report-every", "0"])
