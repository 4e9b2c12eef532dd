"""How M and C learn in their stages: what begins a pass or a dream, how large steps are, which controller is kept."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdream.stages.evolve import Dreams, Evolve
from fastdream.stages.fit import FitMemory, FitVision, Latents, memory_updates, vision_updates
from fastdream.stages.session import Session

from .run_tools import CPU
from .stages_tools import StopIn, opened, run, tiny

pytest.importorskip("cma", reason="what the last stage is done by")


def test_vision_sees_pictures_as_often_as_it_was_told_and_both_learn_once_at_least():
    config = replace(tiny(), steps=100)
    for passes, units in ((3.0, 30), (0.5, 5), (0.01, 1)):
        vision = replace(config.dreamer.vision, passes=passes, batch=10)
        assert vision_updates(replace(config, dreamer=replace(config.dreamer, vision=vision))) == units
    memory = replace(config.dreamer.memory, passes=0.01)
    assert memory_updates(replace(config, dreamer=replace(config.dreamer, memory=memory))) == 1


def test_vision_learns_from_all_pictures_and_draws_others_at_every_update(tmp_path: Path):
    config = tiny()
    run(config, tmp_path, StopIn("vision", 1))

    def use(session: Session) -> None:
        drawn: list[dict[str, torch.Tensor]] = []
        for seed in (config.seed, config.seed + 1):
            fit = FitVision(replace(config, seed=seed), session.agent, session.recording)
            updated = fit.updated
            fit.updated = lambda batch, updated=updated: [drawn.append(batch), updated(batch)][-1]
            before = {name: value.clone() for name, value in session.agent.vision.named_parameters()}
            fit.advance()
            moved = [
                (value - before[name]).abs().detach()
                for name, value in session.agent.vision.named_parameters()
            ]
            # Adam's first step is as long as the learning rate, wherever there is a gradient.
            assert all(float(x.max()) == pytest.approx(fit.settings.lr, rel=0.01) for x in moved)
            for _ in range(29):
                fit.advance()
        assert len({float(batch["noise"].double().square().sum()) for batch in drawn}) == 60
        assert 0.5 < float(torch.stack([batch["noise"] for batch in drawn]).std()) < 2
        shown = {x.numpy().tobytes() for batch in drawn[:30] for x in batch["image"]}
        recorded = {x.tobytes() for x in session.recording["image"]}
        assert shown <= recorded and len(shown) > 0.8 * len(recorded)
        assert not torch.equal(drawn[0]["image"], drawn[30]["image"])

    opened(config, tmp_path, use)


def test_memory_forgets_between_passes_and_learns_in_small_and_falling_steps(tmp_path: Path):
    config = tiny()
    memory = replace(config.dreamer.memory, clip=1e-3, lr=0.1, lr_end=0.01, decay=0.5)
    config = replace(config, dreamer=replace(config.dreamer, memory=memory))
    run(config, tmp_path, StopIn("memory", 1))

    def use(session: Session) -> None:
        latents = Latents(tmp_path / "latents.npy", session.recording.rows)
        fit = FitMemory(config, session.agent, session.recording, latents)
        began, rates, clipped, drawn = [], [], [], set()
        updated = fit.updated

        def noting(batch: Any, state: Any) -> Any:
            began.append(not state["hidden"].any())
            drawn.add(float(batch["noise"].double().square().sum()))
            for key in ("action", "first", "terminal"):
                assert np.array_equal(batch[key], session.recording[key][fit.rows(fit.done)])
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
        assert len(drawn) == 2 * fit.chunks and min(drawn) > 1
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
        starts, lengths = np.array([0, 7, 40]), np.array([7, 33, steps - 40])
        recording: Any = SimpleNamespace(rows=steps, starts=lambda: starts, lengths=lambda: lengths)
        fit = FitMemory(config, session.agent, recording, None)  # type: ignore[arg-type]
        assert fit.units * fit.streams * fit.length == pytest.approx(60 * steps, rel=0.02)
        assert session.planned[3] == fit.units
        shapes = {fit.rows(update).shape for update in range(fit.chunks)}
        assert shapes == {(fit.streams, fit.length + 1)}
        seen = np.concatenate([fit.rows(update)[:, :-1] for update in range(fit.chunks)], 1).ravel()
        assert len(set(seen)) == len(seen) and set(seen) < set(range(steps))
        assert fit.width - fit.chunks * fit.length <= fit.length  # no more would fit

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


def test_fitness_is_the_mean_of_a_controller_s_own_rollouts(tmp_path: Path):
    config = tiny(rollouts=3, test_rollouts=5, generations=1)

    def use(session: Session) -> None:
        evolve = Evolve(config, session.agent, SimpleNamespace())  # type: ignore[arg-type]
        told: list[np.ndarray] = []
        asked, tell = evolve.evolution.ask(), evolve.evolution.tell
        evolve.evolution.tell = lambda fitness: [told.append(fitness), tell(fitness)][-1]  # type: ignore[method-assign]
        trial, count = evolve.trial, len(asked)
        assert np.array_equal(trial.controls.reshape(count, 3, -1), np.stack([asked] * 3, 1))
        assert (
            len(set(trial.seeds[: 3 * count // 2])) == 3 * count // 2
        )  # no dream or episode of one is another's
        trial.scores[:] = np.random.default_rng(0).standard_normal(3 * count)
        fitness = [sum(trial.scores[3 * i : 3 * i + 3]) / 3 for i in range(count)]
        evolve.finish_generation(trial)
        assert np.allclose(told, [fitness])
        assert len(set(evolve.trial.seeds)) == 5
        evolve.trial.scores[:] = 0, 0, 0, 0.25, 1
        sigma = evolve.evolution.sigma
        evolve.finish_test(evolve.trial)
        logged = {"mean": sum(fitness) / count, "best": max(fitness), "sigma": sigma, "test": 0.25}
        assert evolve.metrics() == pytest.approx({f"control/{key}": value for key, value in logged.items()})
        assert "best mean scored 0.25 in dreams after 1 generations" in evolve.finish()

    opened(config, tmp_path, use)


def test_no_generation_and_no_test_meets_the_random_numbers_of_another(tmp_path: Path):
    config, met = tiny(generations=3, test_every=1), []

    def fitness(controls: np.ndarray, seeds: np.ndarray, key: tuple[int, ...], begin: int) -> np.ndarray:
        met.append((key, begin))
        return np.zeros(len(seeds))

    def use(session: Session) -> None:
        evolve = Evolve(config, session.agent, fitness)  # type: ignore[arg-type]
        while evolve.done < evolve.units:
            evolve.advance()

    fitness.at_once = 2  # type: ignore[attr-defined]
    opened(config, tmp_path, use)
    begun = [key for key, begin in met if not begin]
    assert len(begun) == len(set(begun)) == 2 * 3 and len(met) == len(set(met)) == 3 * (8 // 2 + 4 // 2)


def test_dreams_begin_where_recorded_episodes_did(tmp_path: Path):
    encoded = np.full((9, 2, 4), -60, np.float16)  # almost certain
    encoded[:, 0] = np.arange(9)[:, None]
    np.save(tmp_path / "latents.npy", encoded)
    begun: list[np.ndarray] = []
    drawn: list[float] = []

    def dream(controls: Any, start: Any, seeds: Any, generator: Any, temperature: float, length: int) -> Any:
        assert (seeds.tolist(), temperature, length) == ([0, 1, 2, 3] * 2, 1.5, 7)
        begun.append(start.numpy())
        drawn.append(float(torch.rand((), generator=generator)))
        return torch.arange(len(controls))

    config = tiny(temperature=1.5, length=7)
    agent: Any = SimpleNamespace(config=config.dreamer, device=CPU, dream=dream)
    dreams = Dreams(config, agent, Latents(tmp_path / "latents.npy", 9), np.array([2, 5, 7]))
    seeds = np.array([0, 1, 2, 3] * 2)
    assert dreams(np.zeros((8, 3)), seeds, (4, 0)).tolist() == [*range(8)]
    dreams(np.zeros((8, 3)), seeds, (4, 1))
    for start in begun:
        assert np.array_equal(start[:4], start[4:]) and set(start.round(4).flat) <= {2, 5, 7}
    assert not np.array_equal(*begun) and drawn[0] != drawn[1]
    dreams.config = replace(config, seed=config.seed + 1)  # what another run dreams
    dreams(np.zeros((8, 3)), seeds, (4, 0))
    assert len(set(drawn)) == 3
    encoded[:, 1] = 0  # uncertain: each begins elsewhere around there
    np.save(tmp_path / "latents.npy", encoded)
    dreams.latents = Latents(tmp_path / "latents.npy", 9)
    for _ in range(2):
        dreams(np.zeros((8, 3)), seeds, (4, 0))
    (*_, one, two) = begun
    assert np.array_equal(one, two) and len(np.unique(one)) == 4 * 4
