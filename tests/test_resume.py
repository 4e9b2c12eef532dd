"""A run that was stopped goes on as if it had not been: the same actions, batches and losses, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import config as configs
from fastdream.checkpoint import CheckpointError
from fastdream.config import Config
from fastdream.run import Training
from fastdream.schedule import Stop

from .run_tools import ListLogger, parts_of, tiny, train


class Losses:
    """Runs of the real agent, and the losses of every update that they made."""

    def __init__(self, logdir: Path) -> None:
        self.logdir, self.losses = logdir, []
        self.actions: list[dict[str, np.ndarray]] = []

    def run(self, config: Config, stop: Stop | None = None) -> Training:
        parts = parts_of(config, self.logdir, "real")
        update, policy = parts.agent.update, parts.agent.policy

        def noting_update(*args: Any) -> Any:
            out = update(*args)
            self.losses.append({key: value.item() for key, value in out[2].items()})
            return out

        def noting_policy(carry: Any, obs: Any, mode: str = "sample") -> Any:
            out = policy(carry, obs, mode)
            if len(obs["is_first"]) == config.env.count:
                self.actions.append(out[1])
            return out

        parts.agent.update, parts.agent.policy = noting_update, noting_policy
        training = Training(config, parts)
        try:
            training.run(stop or Stop())
        finally:
            training.close()
            parts.driver.close()
        return training


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("task", ["gym_CartPole-v1", "dummy_mixed"])
def test_a_stopped_run_computes_the_same_losses(task: str, tmp_path: Path):
    config = tiny(task, steps=120, train=dict(ratio=4.0), env=dict(count=3), replay=dict(capacity=90))
    whole, parts = Losses(tmp_path / "whole"), Losses(tmp_path / "parts")
    end = whole.run(config)
    # Stopped twice, not where an episode or an update ends, and looked at on the way.
    parts.run(replace(config, steps=47))
    looked_at = replace(
        config, steps=82, eval=replace(config.eval, every=10), log=replace(config.log, report_every=15)
    )
    middle = parts.run(looked_at)
    resumed = parts.run(config)
    assert middle.log.pictures and any("eval/score" in values for _, values in middle.log.values)
    assert len(whole.losses) == end.loop.learner.updates > 30
    assert parts.losses == whole.losses
    assert len(parts.actions) == len(whole.actions) == 40
    assert all((a[k] == b[k]).all() for a, b in zip(parts.actions, whole.actions, strict=True) for k in a)
    left, right = resumed.loop.agent.state_dict(), end.loop.agent.state_dict()
    del left["generators"]["report"], right["generators"]["report"]
    assert equal(left, right)


def test_all_counters_come_back(tmp_path: Path):
    config = tiny(steps=60)
    first = train(config, tmp_path)
    parts = parts_of(replace(config, steps=61), tmp_path)
    second = Training(replace(config, steps=61), parts)
    try:
        assert second.loop.step == 60 and second.loop.learner.updates == first.loop.learner.updates > 0
        assert second.loop.ratio.state_dict() == first.loop.ratio.state_dict()
        assert second.loop.agent.policies == 30
        assert second.loop.replay.steps == first.loop.replay.steps == 60
        assert second.notes() == [
            f"resumed at step 60 from {parts.checkpoint.directory / '000001-step000000060'}"
        ]
        assert equal(second.loop.learner.write_back.state_dict(), first.loop.learner.write_back.state_dict())
        assert torch.equal(torch.get_rng_state(), first_state(tmp_path)["random"]["torch"])
    finally:
        second.close()


def test_what_was_saved_on_a_gpu_goes_on_on_a_cpu(tmp_path: Path):
    """There a generator's state is of another kind, seed and offset alone, and a model's half as precise."""
    config = tiny(steps=40, train=dict(ratio=4.0))
    Losses(tmp_path).run(config)
    state = first_state(tmp_path)
    kept = state["agent"]["generators"]
    kept |= {name: torch.full((16,), i, dtype=torch.uint8) for i, name in enumerate(kept)}
    for part in (state["learner"], state["loop"]):
        part["carry"] = {key: value.bfloat16() for key, value in part["carry"].items()}
    more = Training(replace(config, steps=44), parts_of(config, tmp_path, "real"))
    try:
        loop = more.loop
        loop.load_state(state)
        assert {x.dtype for x in (*loop.carry.values(), *loop.learner.carry.values())} == {torch.float32}
        seeds = [generator.initial_seed() for generator in loop.agent.generators.values()]
        assert len({*seeds, config.seed + 1, config.seed + 2, config.seed + 3}) == 6
        loop.agent.load_state_dict(state["agent"])
        assert [generator.initial_seed() for generator in loop.agent.generators.values()] == seeds
        more.run(Stop())
        assert {x.dtype for x in loop.carry.values()} == {torch.float32}
    finally:
        more.close()
        more.parts.driver.close()


def first_state(logdir: Path) -> dict[str, Any]:
    loaded = parts_of(tiny(), logdir).checkpoint.load()
    assert loaded is not None
    return loaded.tree


def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(tmp_path: Path):
    config, stop = tiny(steps=60, eval=dict(every=20, count=1, episodes=2)), Stop()
    parts = parts_of(config, tmp_path)
    policy = parts.agent.policy

    def stopping(carry: Any, obs: Any, mode: str = "sample") -> Any:
        if len(obs["is_first"]) == 1:  # of the evaluation; the run has two environments
            stop.reason = "SIGINT"
        return policy(carry, obs, mode)

    parts.agent.policy = stopping  # type: ignore[method-assign]
    training = Training(config, parts)
    training.run(stop)
    training.close()
    assert training.loop.step == 20 and not evaluated(training)
    assert evaluated(train(config, tmp_path)) == [20, 40, 60] == evaluated(train(config, tmp_path / "whole"))


def evaluated(training: Training) -> list[int]:
    """Steps at which a run was evaluated."""
    return [step for step, values in training.log.values if "eval/score" in values]  # type: ignore[attr-defined]


@pytest.mark.parametrize("deterministic", [True, False])
def test_replay_has_every_end_that_was_scored(
    deterministic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where a run was stopped in that moment; and an episode that was cut short ends without a score."""
    monkeypatch.setattr("fastdream.envs.dummy.Dummy.deterministic", deterministic)
    parts = [train(tiny(steps=steps), tmp_path) for steps in (40, 66, 120)]
    scored = [len(part.log.scores) for part in parts]  # type: ignore[attr-defined]
    stream = parts[-1].loop.replay.stream(0)
    assert scored[0] == 2 and sum(scored) == 2 * stream["is_terminal"].sum()
    assert stream["is_last"].sum() == stream["is_terminal"].sum() + (not deterministic)
    assert (np.flatnonzero(stream["is_last"]) + 1 == np.flatnonzero(stream["is_first"])[1:]).all()


def test_a_run_that_is_done_makes_no_more_steps(tmp_path: Path):
    train(tiny(steps=60), tmp_path)
    again = train(tiny(steps=60), tmp_path)
    assert again.loop.step == 60 and again.loop.agent.events == []
    assert again.log.values == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("victim", ["checkpoint", "replay"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, victim: str):
    train(tiny(steps=40), tmp_path)
    train(tiny(steps=60), tmp_path)
    if victim == "checkpoint":
        newest = max(tmp_path.glob("ckpt/*-step*"))
        path = newest / "agent.safetensors"
    else:
        path = max(tmp_path.glob("replay/data-*"), key=lambda path: path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:-5])
    parts = parts_of(tiny(steps=80), tmp_path)
    training = Training(tiny(steps=80), parts)
    try:
        assert training.loop.step == 40 and training.loop.replay.steps == 40
        notes = " ".join(training.notes())
        assert path.name in notes and "instead" in notes and "resumed at step 40" in notes
        training.run(Stop())
        assert training.loop.step == 80
    finally:
        training.close()


def test_nothing_is_overwritten_when_no_checkpoint_is_sound(tmp_path: Path):
    train(tiny(steps=40), tmp_path)
    for path in tmp_path.glob("ckpt/*-step*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="start again in another --logdir"):
        train(tiny(steps=60), tmp_path)


def test_old_replay_files_are_removed(tmp_path: Path):
    config = tiny(steps=50, log=dict(save_every=1e-9))
    train(config, tmp_path)
    kept = [extra["replay"]["files"] for extra in parts_of(config, tmp_path).checkpoint.kept()]
    wanted = {entry["file"] for files in kept for entry in files.values()}
    assert {path.name for path in (tmp_path / "replay").iterdir()} == wanted
    assert len(kept) == 2


def test_a_better_score_is_kept_as_the_best(tmp_path: Path):
    training = train(tiny(steps=60), tmp_path)
    training.save(3.0)
    training.loop.step += 1
    training.save(2.0)
    best = training.parts.checkpoint.load("best")
    assert best is not None and (best.score, best.step) == (3.0, 60)


def test_what_may_change_when_a_run_goes_on():
    saved = tiny()
    allowed = replace(
        saved,
        steps=5,
        device="cpu",
        ops="reference",
        threads=1,
        logdir="x",
        eval=replace(saved.eval, every=7),
        log=replace(saved.log, every=7.0),
        env=replace(saved.env, parallel="yes"),
    )
    assert configs.differences(saved, allowed) == []
    other = replace(saved, seed=1, train=replace(saved.train, batch_size=3), env=replace(saved.env, count=9))
    assert configs.differences(saved, other) == [
        "seed: 0 -> 1",
        "env.count: 2 -> 9",
        "train.batch_size: 2 -> 3",
    ]


def test_logging_sees_only_new_steps_after_a_resume(tmp_path: Path):
    train(tiny(steps=60), tmp_path)
    logger = train(tiny(steps=100), tmp_path).log
    assert isinstance(logger, ListLogger) and all(step > 60 for step, _ in logger.values + logger.scores)
