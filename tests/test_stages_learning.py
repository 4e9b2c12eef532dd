"""How M and C learn in their stages: what begins a pass or a dream, how large steps are, which controller is kept."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdream.stages.evolve import Dreams, Evolve
from fastdream.stages.fit import FitMemory, Latents
from fastdream.stages.session import Session

from .run_tools import CPU
from .stages_tools import StopIn, opened, run, tiny

pytest.importorskip("cma", reason="what the last stage is done by")


def test_memory_forgets_between_passes_and_learns_in_small_and_falling_steps(tmp_path: Path):
    config = tiny()
    memory = replace(config.dreamer.memory, clip=1e-3, lr=0.1, lr_end=0.01, decay=0.5)
    config = replace(config, dreamer=replace(config.dreamer, memory=memory))
    run(config, tmp_path, StopIn("memory", 1))

    def use(session: Session) -> None:
        latents = Latents(tmp_path / "latents.npy", session.recording.rows)
        fit = FitMemory(config, session.agent, session.recording, latents)
        began, rates, clipped = [], [], []
        updated = fit.updated

        def noting(batch: Any, state: Any) -> Any:
            began.append(not state["hidden"].any())
            return updated(batch, state)

        def step(rate: Any) -> None:
            rates.append(float(rate))
            clipped.append(max(float(p.grad.abs().max()) for p in fit.opt.params))
            for p in fit.opt.params:
                p.grad = None

        fit.updated = noting
        fit.opt.step = step  # type: ignore[method-assign]
        for _ in range(2 * fit.chunks):
            fit.advance()
        assert fit.chunks > 1 and began == 2 * [True, *[False] * (fit.chunks - 1)]
        assert rates == pytest.approx([0.09 * 0.5**i + 0.01 for i in range(2 * fit.chunks)])
        assert clipped == pytest.approx([1e-3] * len(clipped))

    opened(config, tmp_path, use)


@pytest.mark.parametrize("steps", [100, 101, 1000, 3000])
def test_memory_sees_few_rollouts_as_often_as_it_was_told(steps: int, tmp_path: Path):
    config = replace(tiny(), steps=steps)
    memory = replace(config.dreamer.memory, batch=100, length=20, passes=60.0)
    config = replace(config, dreamer=replace(config.dreamer, memory=memory))

    def use(session: Session) -> None:
        recording: Any = SimpleNamespace(rows=steps)
        fit = FitMemory(config, session.agent, recording, None)  # type: ignore[arg-type]
        assert fit.units * fit.streams * fit.length == pytest.approx(60 * steps, rel=0.02)
        assert session.planned[3] == fit.units

    opened(config, tmp_path, use)


def test_the_best_mean_is_kept_and_the_last_generation_tested(tmp_path: Path):
    config = tiny(generations=3, test_every=2)

    def use(session: Session) -> None:
        evolve, agent = Evolve(config, session.agent, SimpleNamespace()), session.agent  # type: ignore[arg-type]
        tested, kept = [], []
        for score in (5.0, 4.0):
            while not evolve.testing:
                trial, half = evolve.trial, len(evolve.trial.seeds) // 2
                assert np.array_equal(trial.seeds[:half], trial.seeds[half:]), "both halves meet the same"
                trial.scores[:] = trial.controls.sum(1)
                evolve.finish_generation(trial)
            tested.append((evolve.done + 1, evolve.evolution.mean))
            assert (evolve.trial.controls == tested[-1][1]).all()
            evolve.trial.scores[:] = score
            evolve.finish_test(evolve.trial)
            kept.append(agent.controls.clone())
        assert [count for count, _ in tested] == [2, 3] and evolve.best == 5.0
        assert kept[0].any() and torch.equal(*kept) and np.allclose(kept[0], tested[0][1])

    opened(config, tmp_path, use)


def test_dreams_begin_where_recorded_episodes_did(tmp_path: Path):
    encoded = np.full((9, 2, 4), -60, np.float16)  # almost certain
    encoded[:, 0] = np.arange(9)[:, None]
    np.save(tmp_path / "latents.npy", encoded)
    begun: list[np.ndarray] = []

    def dream(controls: torch.Tensor, start: torch.Tensor, *_: Any) -> torch.Tensor:
        begun.append(start.numpy())
        return torch.arange(len(controls))

    agent: Any = SimpleNamespace(config=tiny().dreamer, device=CPU, dream=dream)
    dreams = Dreams(tiny(), agent, Latents(tmp_path / "latents.npy", 9), np.array([2, 5, 7]))
    seeds = np.array([0, 1, 2, 3] * 2)
    assert dreams(np.zeros((8, 3)), seeds, (4, 0)).tolist() == [*range(8)]
    dreams(np.zeros((8, 3)), seeds, (4, 1))
    for start in begun:
        assert np.array_equal(start[:4], start[4:]) and set(start.round(4).flat) <= {2, 5, 7}
    assert not np.array_equal(*begun)
