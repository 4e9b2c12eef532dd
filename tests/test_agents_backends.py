"""Every agent in whole runs with either choice of ops: what they compute first is the same."""

import dataclasses
from pathlib import Path

import pytest

from fastdream import agents, presets

from .test_resume import Losses


@pytest.mark.parametrize("agent", agents.AGENTS)
@pytest.mark.parametrize("task", ["dummy_vector", "dummy_mixed"])
def test_a_run_has_the_same_first_losses_with_the_reference_and_with_auto(
    agent: str, task: str, tmp_path: Path
):
    base = presets.resolve(task, "debug", agent=agent)
    replace, first = dataclasses.replace, []
    for ops in ("reference", "auto"):
        config = replace(
            base,
            ops=ops,
            steps=60,
            env=replace(base.env, count=2, parallel="no"),
            train=replace(base.train, batch_size=2, batch_length=4, prefill=40),
            log=replace(base.log, outputs=(), every=0.0, save_every=0.0),
            eval=replace(base.eval, final_episodes=0),
        )
        run = Losses(tmp_path / ops)
        run.run(config)
        assert len(run.losses) >= 3
        first.append([{k: v for k, v in entry.items() if "loss" in k} for entry in run.losses[:3]])
    # Rounding differs from the start, and grows through every update.
    for update, tolerance in enumerate((1e-5, 1e-4, 1e-3)):
        assert first[0][update] == pytest.approx(first[1][update], rel=tolerance, abs=tolerance)
