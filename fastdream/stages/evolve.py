"""The last stage: CMA-ES evolves C, by how long it lasts in dreams or by what it scores in the environment.

The paper's appendix, "Evolution Strategies". As in the authors' code it is the distribution's mean that is tested every
25 generations; the paper speaks of the best of the population.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdream.agents.world_models import WorldModels
from fastdream.agents.world_models_nets import draw
from fastdream.config import Config
from fastdream.driver import Driver
from fastdream.evolution import Evolution
from fastdream.graphs import capture_dreams
from fastdream.lane import MOST_RESTARTS, RestartedTooOften
from fastdream.progress import tenths
from fastdream.replay_store import Array
from fastdream.stages.fit import Latents, stream


class Dreams:
    """Fitness in dreams alone: steps survived, at most `length`. All of a generation dream in one batch."""

    at_once: int | None = None  # episodes that belong together; None: all

    def __init__(self, config: Config, agent: WorldModels, latents: Latents, starts: Array) -> None:
        self.config, self.agent, self.latents, self.starts = config, agent, latents, starts
        if agent.device.type == "cuda":
            capture_dreams(agent)

    def __call__(self, controls: Array, seeds: Array, key: tuple[int, ...], begin: int = 0) -> Array:
        """Of controllers [N, P], each in the dream of a seed [N]; key: of the random numbers behind the seeds."""
        assert not begin, begin
        settings, agent = self.agent.config.control, self.agent
        rng, host = stream(self.config, *key)
        count = int(seeds.max()) + 1
        first = self.latents.at(rng.choice(self.starts, count), torch.device("cpu"))
        start = draw(first["mean"], first["logvar"], torch.randn(first["mean"].shape, generator=host))
        generator = torch.Generator(agent.device).manual_seed(host.initial_seed())
        lasted = agent.dream(
            torch.from_numpy(controls).to(agent.device, torch.float32),
            start[torch.from_numpy(seeds)].to(agent.device),
            torch.from_numpy(seeds).to(agent.device),
            generator,
            settings.temperature,
            settings.length,
        )
        return lasted.double().cpu().numpy()


class Races:
    """Fitness in the environment: scores of episodes, as many at once as there are environments."""

    def __init__(self, config: Config, agent: WorldModels, driver: Driver) -> None:
        self.config, self.agent, self.driver = config, agent, driver
        self.at_once: int | None = driver.n

    def __call__(self, controls: Array, seeds: Array, key: tuple[int, ...], begin: int = 0) -> Array:
        """Of controllers [N, P], each in the episode of a seed [N], with as many before them that have the same key."""
        rng, _ = stream(self.config, *key)
        episode_seeds = rng.integers(2**31, size=int(seeds.max()) + 1)[seeds]
        scores, n = np.zeros(len(seeds)), self.driver.n
        for first in range(0, len(seeds), n):
            _, noise = stream(self.config, *key, begin + first)
            # The last environments may have nothing new to do.
            rows = np.minimum(np.arange(first, first + n), len(seeds) - 1)
            scores[rows] = self.played(controls[rows], episode_seeds[rows], noise.initial_seed())
        return scores

    def played(self, controls: Array, seeds: Array, noise: int) -> Array:
        """Scores [n] of `play`, once more where an environment died: what it had come to is no fitness.

        Raises RestartedTooOften if one dies every time.
        """
        for _ in range(MOST_RESTARTS):
            self.agent.generators["policy"].manual_seed(noise)
            scores, died = self.play(controls, seeds)
            if not died:
                return scores
        raise RestartedTooOften(
            f"environments died {MOST_RESTARTS} times in the same episodes that C is evolved in"
        )

    def play(self, controls: Array, seeds: Array) -> tuple[Array, bool]:
        """An episode in each environment, at most `length` steps of it, with a controller of its own.

        Returns scores [n], and whether an environment died.
        """
        agent, driver, n = self.agent, self.driver, self.driver.n
        weights = torch.from_numpy(controls).to(agent.device, torch.float32)
        carry, obs = agent.init_policy(n), driver.restart(seeds.tolist())
        scores, playing, died = np.zeros(n), np.ones(n, bool), False
        for _ in range(agent.config.control.length):
            carry, action, _ = agent.control(weights, carry, obs)
            obs = driver.step(action)
            scores += np.where(playing, obs["reward"], 0)
            died |= any(episode.crashed and playing[episode.worker] for episode in driver.episodes())
            playing &= ~obs["is_last"]
            if not playing.any():
                break
        return scores, died


@dataclass
class Trial:
    """Controllers [N, P] and the seeds [N] of what they go through; scores [N], of which the first `done` are known."""

    controls: Array
    seeds: Array
    scores: Array
    done: int = 0


class Evolve:
    """Generation after generation; now and then the distribution's mean is tested, and the best mean is kept."""

    def __init__(self, config: Config, agent: WorldModels, fitness: Dreams | Races) -> None:
        self.config, self.agent, self.fitness = config, agent, fitness
        self.settings = settings = agent.config.control
        self.units, self.done = settings.generations, 0
        self.evolution = Evolution(
            agent.controller.count, settings.population, settings.sigma, seed=config.seed
        )
        self.testing, self.trial = False, self.generation()
        self.best = -np.inf  # of the tests
        self.recent: dict[str, float] = {}

    def generation(self) -> Trial:
        """The next generation, whose two halves meet the same dreams or episodes: antithetic."""
        count, rollouts = self.settings.population, self.settings.rollouts
        pairs = np.arange(count) % (count // 2)
        seeds = (pairs[:, None] * rollouts + np.arange(rollouts)).ravel()
        return Trial(self.evolution.ask().repeat(rollouts, 0), seeds, np.zeros(len(seeds)))

    def test(self) -> Trial:
        """A test of the distribution's mean."""
        count, mean = self.settings.test_rollouts, self.evolution.mean
        controls = np.broadcast_to(mean, (count, len(mean))).copy()
        return Trial(controls, np.arange(count), np.zeros(count))

    def advance(self) -> None:
        """As many episodes as there are environments; of dreams, a whole generation or test."""
        trial = self.trial
        count = len(trial.seeds)
        rows = slice(trial.done, min(trial.done + (self.fitness.at_once or count), count))
        key = 4 + self.testing, self.done + self.testing
        trial.scores[rows] = self.fitness(trial.controls[rows], trial.seeds[rows], key, trial.done)
        trial.done = rows.stop
        if trial.done == count:
            self.finish_test(trial) if self.testing else self.finish_generation(trial)

    def finish_generation(self, trial: Trial) -> None:
        """Tell how fit it was; a test may be due before the next one."""
        fitness = trial.scores.reshape(self.settings.population, self.settings.rollouts).mean(1)
        self.evolution.tell(fitness)
        self.recent |= {"mean": np.mean(fitness), "best": np.max(fitness), "sigma": self.evolution.sigma}
        count = self.done + 1
        if count % self.settings.test_every == 0 or count == self.units:
            self.testing, self.trial = True, self.test()
        else:
            self.begin_next()

    def finish_test(self, trial: Trial) -> None:
        """The agent's controller is the mean that did best."""
        score = float(trial.scores.mean())
        self.recent |= {"test": score}
        if score > self.best:
            self.best = score
            self.agent.controls.copy_(torch.from_numpy(self.evolution.mean))
        self.begin_next()

    def begin_next(self) -> None:
        """A generation and its test are done."""
        self.done += 1
        self.testing, self.trial = False, self.generation()

    def state_dict(self) -> dict[str, Any]:
        """Generations so far, the evolution, the best test, and what is known of the trial that is under way."""
        return {
            "done": self.done,
            "best": self.best,
            "evolution": self.evolution.state_dict(),
            "testing": self.testing,
            "scores": self.trial.scores[: self.trial.done],
            "recent": self.recent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.done, self.best = int(state["done"]), float(state["best"])
        self.evolution.load_state_dict(state["evolution"])
        self.testing = bool(state["testing"])
        self.trial = self.test() if self.testing else self.generation()
        scores = np.asarray(state["scores"])
        self.trial.scores[: len(scores)], self.trial.done = scores, len(scores)
        self.recent = dict(state.get("recent", {}))

    def metrics(self) -> dict[str, float]:
        """Fitness in the last generation and in the last test, of those that ended since the last call.

        None in a test, which belongs to its generation.
        """
        if self.testing:
            return {}
        recent, self.recent = self.recent, {}
        return {f"control/{key}": float(value) for key, value in recent.items()}

    def finish(self) -> str:
        """What came of it."""
        where = "dreams" if self.settings.where == "dream" else "the environment"
        return f"C's best mean scored {tenths(self.best)} in {where} after {self.done:,} generations"
