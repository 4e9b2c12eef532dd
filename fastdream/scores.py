"""Scores of an agent: the loop that only plays, and what it came to."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdream.build import Parts, in_processes
from fastdream.config import Config
from fastdream.driver import Driver, Voice, warn_restart
from fastdream.episodes import Episode
from fastdream.lane import Restart
from fastdream.learner import Agent
from fastdream.progress import counted, tenths
from fastdream.replay_store import Array
from fastdream.schedule import Stop
from fastdream.workers import MakeEnv

PATIENCE = 100_000  # steps without an episode's end, after which it is said that there may never be one


@dataclass
class Scores:
    """Scores and lengths of evaluation episodes, and pictures of the first of them if they were asked for."""

    scores: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    frames: Array | None = None

    @property
    def mean(self) -> float:
        """Mean score; NaN without episodes."""
        return float(np.mean(self.scores)) if self.scores else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the scores; NaN without episodes."""
        return float(np.std(self.scores)) if self.scores else math.nan

    def __str__(self) -> str:
        return f"{tenths(self.mean)} ± {tenths(self.std)} over {counted(len(self.scores), 'episode')}"

    def summary(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON holds it."""
        return {"mean": self.mean, "std": self.std, "scores": self.scores, "lengths": self.lengths}

    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        return {
            "eval/score": self.mean,
            "eval/score_std": self.std,
            "eval/length": float(np.mean(self.lengths)),
        }


def evaluate(
    agent: Agent,
    make_env: MakeEnv,
    episodes: int,
    *,
    count: int = 4,
    parallel: bool = False,
    seed: int = 0,
    mode: str = "sample",
    video: bool = False,
    stop: Stop | None = None,
    on_restart: Callable[[Restart], None] = warn_restart,
    task: str = "",
) -> Scores:
    """Scores of exactly `episodes` episodes, none of them learned from.

    Each environment plays its share, so that short episodes do not count more often than long ones. The same
    seed and parameters give the same scores, and the agent's own random numbers stay where they were. Episodes
    whose environment died are played again. Warns where none ends for a long time. Ends early, with what there
    is, when `stop` becomes true. For `on_restart` and `task` see Driver.
    """
    count = min(count, episodes)
    left = np.array([episodes // count + (i < episodes % count) for i in range(count)])
    result, generator = Scores(), agent.generators["policy"]
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        with Driver(
            make_env,
            count,
            parallel=parallel,
            seed=seed,
            exact_resume=False,
            on_restart=on_restart,
            task=task,
        ) as driver:
            driver.record = video
            carry, obs, waited = agent.init_policy(count), driver.recv(), 0
            while left.any() and not stop:
                carry, action, _ = agent.policy(carry, obs, mode)
                obs = driver.step(action)
                waited += 1
                for episode in driver.episodes():
                    _count(result, left, episode)
                    waited = 0
                if waited == PATIENCE:
                    warnings.warn(
                        f"{task or 'the environment'} has played {PATIENCE:,} steps without an episode's end, "
                        "for which evaluation waits: limit them, as gymnasium.wrappers.TimeLimit does",
                        stacklevel=2,
                    )
    finally:
        generator.set_state(state)
    return result


def evaluate_run(config: Config, parts: Parts, episodes: int, voice: Voice, stop: Stop | None) -> Scores:
    """Episodes of a run's agent as its settings want them, on environments and with random numbers of their own."""
    return evaluate(
        parts.agent,
        parts.make_env,
        episodes,
        count=config.eval.count,
        parallel=in_processes(config),
        seed=config.seed + 1_000_003,
        mode=config.eval.mode,
        stop=stop,
        on_restart=voice,
        task=config.task,
    )


def _count(result: Scores, left: Array, episode: Episode) -> None:
    if episode.crashed or left[episode.worker] == 0:
        return
    left[episode.worker] -= 1
    result.scores.append(episode.score)
    result.lengths.append(episode.length)
    if result.frames is None:
        result.frames = episode.frames
