"""The first stage: rollouts of a random policy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdream.agents.world_models import WorldModels
from fastdream.build import Parts
from fastdream.config import Config
from fastdream.driver import Driver
from fastdream.progress import tenths
from fastdream.recording import Recording
from fastdream.replay_store import Array

HOPELESS = 100  # episodes of which none was long enough
ENDLESS = 108_000  # steps in which an episode did not end: as many frames as the longest of Atari has


class RandomActions:
    """Actions [A] in [-1, 1] of one episode: drawn and held, or what a random network makes of noise.

    The networks are what random weights of V, M and C come to in the authors' code, where those of V and M are next
    to nothing: a linear map of standard normal noise through tanh, with weights of a Cauchy distribution times a scale
    below 0.01.
    """

    def __init__(self, agent: WorldModels, rng: np.random.Generator) -> None:
        self.settings, self.actions, self.rng = agent.config.collect, agent.controller.actions, rng
        self.left, self.action = 0, np.zeros(self.actions, np.float32)
        shape = self.actions, agent.config.latents + 1
        self.weights = rng.standard_cauchy(shape) * rng.uniform(0, 0.01)

    def __call__(self) -> Array:
        if self.settings.actions == "networks":
            seen = [*self.rng.standard_normal(self.weights.shape[1] - 1), 1.0]
            return np.tanh(self.weights @ seen).astype(np.float32)
        if not self.left:
            self.left = int(self.rng.integers(1, self.settings.hold + 1))
            self.action = self.rng.uniform(-1, 1, self.actions).astype(np.float32)
        self.left -= 1
        return self.action


class Collect:
    """Records episodes of a random policy until they have so many steps; interruptions change nothing about them."""

    def __init__(self, config: Config, parts: Parts, agent: WorldModels, recording: Recording) -> None:
        self.config, self.parts, self.agent, self.recording = config, parts, agent, recording
        self.units = config.steps
        assert isinstance(parts.driver, Driver), parts.driver
        self.driver = parts.driver
        n = self.driver.n
        self.finished = np.bincount([e["worker"] for e in recording.episodes], minlength=n)[:n]
        # Every environment begins the episode after those that are recorded of it.
        begun = {str(i): {"episode": int(count), "exact": 0} for i, count in enumerate(self.finished)}
        self.driver.load_state_dict(begun)
        self.policies = [self.policy(worker) for worker in range(n)]
        self.steps: list[list[dict[str, Any]]] = [[] for _ in range(n)]

    @property
    def done(self) -> int:
        """Steps that are recorded."""
        return self.recording.rows

    def policy(self, worker: int) -> RandomActions:
        """Of the worker's current episode."""
        seed = self.config.seed, 0, worker, int(self.finished[worker])
        return RandomActions(self.agent, np.random.default_rng(seed))

    def advance(self) -> None:
        """One step of every environment. Raises ValueError where episodes do not end."""
        driver, controller = self.driver, self.agent.controller
        obs = driver.recv()
        ended = driver.episodes()
        actions = np.stack([policy() for policy in self.policies])
        for worker, steps in enumerate(self.steps):
            steps.append(self.row(obs, worker, actions[worker]))
        for episode in ended:
            self.finish_episode(episode.worker, episode.score, episode.length, episode.crashed)
        # Whole episodes are recorded, and one is kept in memory until it is over.
        if max(map(len, self.steps)) > ENDLESS:
            raise ValueError(
                f"an episode of a random policy has not ended in {ENDLESS:,} steps, and it is recorded when it ends: "
                f"give the environment a time limit (gymnasium.wrappers.TimeLimit)"
            )
        driver.send(controller.decode(actions))

    def row(self, obs: Mapping[str, Array], worker: int, action: Array) -> dict[str, Any]:
        """A step as it is recorded: the observation, and the action that follows it."""
        flags = {key: obs[f"is_{key}"][worker] for key in ("first", "terminal")}
        # A copy, for a view would keep the pictures of all environments until this one's episode ends.
        return {"image": obs[self.agent.key][worker].copy(), "action": action, **flags}

    def finish_episode(self, worker: int, score: float, length: int, crashed: bool) -> None:
        """Record the episode, unless it was too short, and make another policy.

        Raises ValueError when so many were too short that no other can be expected.
        """
        steps, self.steps[worker] = self.steps[worker], []
        long = len(steps) >= self.agent.config.collect.shortest and not crashed
        episode = {key: np.stack([step[key] for step in steps]) for key in steps[0]} if long else None
        dead = {"crashed": True} if crashed else {}
        self.recording.add(episode, worker=worker, score=score, length=length, **dead)
        if not self.recording.rows and len(self.recording.episodes) >= HOPELESS:
            longest = 1 + max(episode["length"] for episode in self.recording.episodes)  # with the first one
            raise ValueError(
                f"none of {HOPELESS} episodes of a random policy had the {self.agent.config.collect.shortest} steps of "
                f"--dreamer.collect.shortest; the longest had {longest}: choose less"
            )
        self.finished[worker] += 1
        self.policies[worker] = self.policy(worker)
        if not crashed:
            self.parts.logger.episode(min(self.done, self.units), score, length)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is recorded is on the disk."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What is recorded was read already."""

    def scores(self) -> list[float]:
        """Scores of the episodes that no environment's death ended."""
        return [episode["score"] for episode in self.recording.episodes if not episode.get("crashed")]

    def metrics(self) -> dict[str, float]:
        """How the random policy does."""
        scores = self.scores()
        return {"collect/score": float(np.mean(scores))} if scores else {}

    def finish(self) -> str:
        """What came of it, which the checkpoints of later stages count on.

        Raises ValueError if C is to be evolved in dreams, and none of them could end.
        """
        dreams = self.agent.config.control.where == "dream"
        if dreams and self.recording.rows and not self.recording["terminal"].any():
            raise ValueError(
                f"none of the {len(self.recording.lengths()):,} recorded episodes ended in a terminal state, so M "
                f"learns no end, every dream lasts as long, and nothing tells one controller from another: begin a "
                f"run with --dreamer.control.where real, or with episodes that can end"
            )
        self.recording.sync()
        scores, kept, all_of = self.scores(), len(self.recording.lengths()), len(self.recording.episodes)
        return (
            f"recorded {self.recording.rows:,} steps in {kept:,} of {all_of:,} episodes; the random policy "
            f"scored {tenths(float(np.mean(scores)))} ± {tenths(float(np.std(scores)))}"
        )


def recording_spec(agent: WorldModels) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """What is recorded of a step."""
    return {
        "image": (agent.obs_space[agent.key].shape, np.dtype(np.uint8)),
        "action": ((agent.controller.actions,), np.dtype(np.float32)),
        "first": ((), np.dtype(bool)),
        "terminal": ((), np.dtype(bool)),
    }
