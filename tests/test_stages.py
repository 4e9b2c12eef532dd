"""Training in stages: it ends, stops and goes on as if it had not stopped, and says what it cannot do."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdream import cli, eval, presets, train
from fastdream.agents import load
from fastdream.agents.world_models import WorldModels
from fastdream.driver import Voice
from fastdream.learner import NonFinite
from fastdream.progress import Goal
from fastdream.recording import Recording
from fastdream.schedule import Stop
from fastdream.stages import collect, fit, pictures
from fastdream.stages.collect import RandomActions, recording_spec
from fastdream.stages.fit import FitMemory, Latents
from fastdream.stages.session import Session

from .stages_tools import StopIn, opened, run, tiny
from .test_benchmarks import load as load_benchmark
from .test_resume import equal

COMMAND = ["--agent", "world_models", "--task", "dummy_image", "--env.parallel", "no"]

pytest.importorskip("cma", reason="what the last stage is done by")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_command_goes_through_all_stages_and_can_be_loaded(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train.main([*COMMAND, "--logdir", str(tmp_path), "--log.every", "0", "--device", device])
    text = capsys.readouterr().out
    assert "agent     world_models, preset debug, size debug" in text and "evaluation: " in text
    for stage in (
        "collect: recorded",
        "vision: V has",
        "encode: ",
        "memory: M has",
        "control: C's best mean",
    ):
        assert stage in text
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {key for entry in metrics for key in entry}
    assert {"loss/vision_error", "loss/memory_end", "control/test", "eval/score"} <= logged
    media = [path.name.rpartition("_")[0] for path in (tmp_path / "media").iterdir()]
    assert sorted(media) == ["openloop", "real_dream", "reconstructions"]
    # The same command once more has nothing left to do but to evaluate, with the same result.
    scores = json.loads((tmp_path / "eval.json").read_text())["scores"]
    lines, saved = (tmp_path / "metrics.jsonl").read_bytes(), sorted((tmp_path / "ckpt").iterdir())
    train.main(["--logdir", str(tmp_path)])
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    assert sorted((tmp_path / "ckpt").iterdir()) == saved
    assert "resumed in stage control, 3 of 3" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval.json").read_text())["scores"] == scores
    agent = load(tmp_path)
    assert isinstance(agent, WorldModels) and agent.controls.any()
    eval.main(["--logdir", str(tmp_path), "--episodes", "2", "--video", "--json", "--checkpoint", "best"])
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["scores"]) == 2
    assert any("openloop_image" in file for file in facts["videos"])


def test_stopped_anywhere_it_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "ENCODED", 32)
    config = tiny()
    done, whole = run(config, tmp_path / "whole")
    assert done
    folder = tmp_path / "parts"
    for place in (("collect", 21), ("vision", 2), ("encode", 32), ("memory", 2), ("control", 1)):
        done, _ = run(config, folder, StopIn(*place))
        stage, so_far = opened(
            config, folder, lambda session: (session.names[session.at], session.stage.done)
        )
        assert not done and (stage, so_far >= place[1], so_far > 0) == (place[0], True, place[1] > 0)
    done, resumed = run(config, folder)
    assert done
    both = [Recording(path / "rollouts", {}).episodes for path in (tmp_path / "whole", folder)]
    assert both[0] == both[1]
    files = [(path / "latents.npy").read_bytes() for path in (tmp_path / "whole", folder)]
    assert files[0] == files[1]
    assert equal(resumed, whole)


def test_the_display_counts_what_each_stage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    goals: list[Goal] = []
    seen: dict[str, list[int]] = {}

    def use(session: Session) -> list[int]:
        goals.append(session.goal())
        monkeypatch.setattr(session.log, "turn", goals.append)
        monkeypatch.setattr(
            session.log, "progress", lambda done, _: seen.setdefault(goals[-1].stage, []).append(done)
        )
        session.run(Stop())
        return session.planned

    collected, vision, _, memory, control = opened(tiny(generations=2), tmp_path, use)
    encoded = np.load(tmp_path / "latents.npy", mmap_mode="r").shape[0]
    assert [(goal.stage, goal.unit, goal.start, goal.steps) for goal in goals] == [
        ("collect", "step", 0, collected),
        ("vision", "update", 0, vision),
        ("encode", "step", 0, encoded),
        ("memory", "update", 0, memory),
        ("control", "generation", 0, control),
    ]
    assert {stage: max(done) for stage, done in seen.items()} == {goal.stage: goal.steps for goal in goals}


def test_memory_sees_every_step_once_a_pass_and_each_where_the_last_batch_ended(tmp_path: Path):
    config = tiny()
    run(config, tmp_path, StopIn("memory", 1))

    def use(session: Session) -> None:
        latents = Latents(tmp_path / "latents.npy", session.recording.rows)
        fit = FitMemory(config, session.agent, session.recording, latents)
        batches = [fit.rows(update) for update in range(fit.chunks)]
        assert all(batch.shape == (4, fit.length + 1) for batch in batches)
        for before, after in zip(batches, batches[1:], strict=False):
            assert np.array_equal(before[:, -1], after[:, 0])
        seen = np.concatenate([batch[:, :-1] for batch in batches], 1).ravel()
        assert len(set(seen)) == len(seen) > 0.7 * session.recording.rows
        assert not np.array_equal(fit.rows(0), fit.rows(fit.chunks))  # another order

    opened(config, tmp_path, use)


def test_the_benchmark_scores_each_temperature_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.main([*COMMAND, "--logdir", str(tmp_path / "run"), "--log.outputs", "jsonl"])
    args = ["--logdir", str(tmp_path / "run"), "--episodes", "2", "--out", str(tmp_path / "scores.csv")]
    benchmark = load_benchmark("world_models")
    benchmark.main([*args, "--temperatures", "1.0", "1.5", "--generations", "2"])
    head, *lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == "temperature,generations,dream,dream_std,real,real_std,episodes"
    assert [line.split(",")[:2] for line in lines] == [["random", "0"], ["1.0", "2"], ["1.5", "2"]]
    assert all(line.endswith(",2") and np.isfinite(float(line.split(",")[4])) for line in lines)
    benchmark.main([*args, "--temperatures", "1.5"])
    assert (tmp_path / "scores.csv").read_text().splitlines() == [head, *lines]
    alone = tmp_path / "random.csv"
    benchmark.main(["--logdir", args[1], "--episodes", "3", "--temperatures", "--out", str(alone)])
    assert [line.split(",")[0] for line in alone.read_text().splitlines()] == ["temperature", "random"]
    assert "tau 1.0: generation 2" in capsys.readouterr().out


def test_the_benchmark_draws_a_random_policy_for_every_episode():
    config = tiny().dreamer
    with train.make_driver(tiny(), Voice()) as driver:
        random = load_benchmark("world_models").RandomAgent(
            WorldModels(driver.obs_space, driver.act_space, config)
        )
    random.init_policy(2)
    random.policy({}, {"is_first": np.array([True, True])})
    before = list(random.policies)
    random.policy({}, {"is_first": np.array([False, True])})
    assert random.policies[0] is before[0] and random.policies[1] is not before[1]


def test_a_test_is_logged_though_generations_follow_it_before_the_next_line(tmp_path: Path):
    def use(session: Session) -> None:
        stage = session.makers["control"]()
        while stage.done < 3:
            stage.advance()
        assert "control/test" in stage.metrics()
        assert not stage.metrics()  # of which nothing is said twice

    config = tiny(test_every=2, generations=4)
    run(config, tmp_path, StopIn("memory", 1))
    opened(config, tmp_path, use)


@pytest.mark.parametrize("actions", ["held", "networks"])
def test_random_policies(actions: str):
    config = tiny().dreamer
    config = replace(config, collect=replace(config.collect, actions=actions, hold=3))
    with train.make_driver(tiny(), Voice()) as driver:
        agent = WorldModels(driver.obs_space, driver.act_space, config)
        policy = RandomActions(agent, np.random.default_rng(0))
        taken = np.stack([policy() for _ in range(300)])[:, 0]
        assert recording_spec(agent)["action"] == ((1,), np.float32)
    assert abs(taken).max() <= 1 and len(set(taken)) > 50
    runs = np.diff(np.flatnonzero(np.diff(taken) != 0))
    assert runs.max() == (3 if actions == "held" else 1)
    assert (abs(taken).max() > 0.5) == (actions == "held")  # networks whose weights are small do little


def test_episodes_that_are_all_too_short_are_not_recorded_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collect, "HOPELESS", 4)
    args = [*COMMAND, "--logdir", str(tmp_path), "--dreamer.collect.shortest", "1000"]
    with pytest.raises(SystemExit) as exit:
        train.main(args)
    text = " ".join(capsys.readouterr().err.split())
    assert exit.value.code == 2 and re.search(
        r"none of 4 .* 1000 steps .* the longest had \d+: choose less", text
    )


@pytest.mark.parametrize("due", [False, True], ids=["at the end of the stage", "after every update"])
@pytest.mark.parametrize("stage", ["vision", "memory"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(stage: str, due: bool, tmp_path: Path):
    config = tiny()
    run(config, tmp_path, StopIn(stage, 2))

    def use(session: Session) -> None:
        assert session.names[session.at] == stage, session.names[session.at]
        session.save_due = lambda: due  # type: ignore[assignment]
        with torch.no_grad():
            next(getattr(session.agent, stage).parameters()).fill_(torch.nan)
        with pytest.raises(NonFinite, match=f"loss/{stage}_loss became NaN"):
            session.run(Stop())
        loaded = session.parts.checkpoint.load()
        assert loaded is not None and all(x.isfinite().all() for x in loaded.tree["agent"][stage].values())

    opened(config, tmp_path, use)


def test_open_loop_needs_episodes_that_are_long_enough(tmp_path: Path):
    spec = {"image": ((64, 64, 3), np.dtype(np.uint8))}
    with pytest.raises(ValueError, match="more than 20 steps"):
        pictures.open_loop(None, Recording(tmp_path, spec), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train.ratio", "5"], r"--train\.ratio: world_models learns in stages"),
        (["--task", "dummy_vector"], "sees one picture of 64 × 64 pixels"),
        (["--dreamer.memory.no-ends"], "choose control.where=real"),
        (["--size", "12m"], "unknown size '12m'"),
    ],
)
def test_what_it_cannot_do_is_refused(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit:
        train.main([*COMMAND, "--logdir", str(tmp_path / "run"), *args])
    text = " ".join(capsys.readouterr().err.split())
    assert exit.value.code == 2 and re.search(message, text), text
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    train.main([*COMMAND, "--dry-run"])
    assert "one update of V and of M: vision_loss" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_presets_are_the_paper_s():
    doom, car = (presets.resolve(task, agent="world_models") for task in ("vizdoom_take_cover", "car_racing"))
    for config in (doom, car):
        control = config.dreamer.control
        assert (control.population, control.rollouts, control.sigma, control.test_rollouts) == (
            64,
            16,
            0.1,
            1024,
        )
        assert config.suite.repeat == 1 and config.dreamer.vision.lr == 1e-4
    memory, control = doom.dreamer.memory, doom.dreamer.control
    assert (memory.units, memory.length, memory.passes, memory.ends, control.cell) == (
        512,
        500,
        400,
        True,
        True,
    )
    assert (control.where, control.temperature, control.length) == ("dream", 1.15, 2100)
    memory, control = car.dreamer.memory, car.dreamer.control
    assert (memory.units, memory.length, memory.ends, control.bias) == (256, 999, False, True)
    assert (control.where, car.dreamer.collect.actions, control.cell) == ("real", "networks", False)
    updates = memory.passes * car.steps / (memory.batch * memory.length)
    assert abs(updates - 4000) < 10
    pong = presets.resolve("atari_pong", agent="world_models")
    assert pong.suite.size == 64 and pong.dreamer.control.length * pong.suite.repeat >= 108_000
    assert cli.parse(["--agent", "world_models"]).config.preset == "take_cover_small"
