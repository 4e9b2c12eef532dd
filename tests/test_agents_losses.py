"""Every agent computes the same first losses with the reference's ops and with those that `auto` takes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fastdream import presets
from fastdream.config import Config
from fastdream.stages.session import Session

from .dataset_tools import episode, save_npz
from .stages_tools import StopIn, opened
from .stages_tools import tiny as staged_settings
from .test_offline import Run
from .test_offline import settings as offline_settings
from .test_resume import Losses

replace = dataclasses.replace

# Rounding differs from the start, and grows through every update.
TOLERANCES = 1e-5, 1e-4, 1e-3


def differ(config: Config, first: Any) -> list[int]:
    """The updates of which losses differ; `first(config)` gives those of the first updates, by name."""
    ours, theirs = (first(replace(config, ops=ops)) for ops in ("auto", "reference"))
    found = []
    for update, tolerance in enumerate(TOLERANCES):
        one, other = ({k: v for k, v in run[update].items() if "loss" in k} for run in (ours, theirs))
        if not one or one != pytest.approx(other, rel=tolerance, abs=tolerance):
            found.append(update)
    return found


@pytest.mark.parametrize("agent", ["dreamer_v1", "dreamer_v2", "dreamer_v3"])
@pytest.mark.parametrize("task", ["dummy_vector", "dummy_mixed"])
def test_online(agent: str, task: str, tmp_path: Path):
    base = presets.resolve(task, "debug", agent=agent)
    config = replace(
        base,
        steps=60,
        env=replace(base.env, count=2, parallel="no"),
        train=replace(base.train, batch_size=2, batch_length=4, prefill=40),
        log=replace(base.log, outputs=(), every=0.0, save_every=0.0),
        eval=replace(base.eval, final_episodes=0),
    )

    def first(config: Config) -> list[dict[str, float]]:
        run = Losses(tmp_path / config.ops)
        run.run(config)
        return run.losses

    assert not differ(config, first)


@pytest.mark.parametrize("agent", ["dreamer_v1", "dreamer_v2", "dreamer_v3", "offline_dv2"])
def test_from_a_dataset(agent: str, tmp_path: Path):
    folder = save_npz(tmp_path / "set", *(episode(20, seed, width=4) for seed in range(3)))

    def first(config: Config) -> list[dict[str, float]]:
        run = Run(tmp_path / config.ops)
        run(config)
        return run.metrics

    assert not differ(offline_settings(folder, agent, steps=3), first)


def test_in_stages(tmp_path: Path):
    pytest.importorskip("cma", reason="what the last stage is done by")

    def first(config: Config) -> list[dict[str, float]]:
        stop = StopIn("vision", 0)

        def use(session: Session) -> list[dict[str, float]]:
            stop.session, losses = session, []
            session.run(stop)
            for _ in TOLERANCES:
                session.stage.advance()
                losses.append(session.stage.metrics())
            return losses

        return opened(config, tmp_path / config.ops, use)

    assert not differ(staged_settings(), first)
