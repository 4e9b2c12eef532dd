"""dummy_<name>: tiny environments to try things out with, and some that misbehave.

One rule for all: the observation shows a cue, one of a few classes, in each of its entries. An action that answers
the cue is rewarded with 1 and moves the cue on by one; any other answer draws a new cue. So rewards can be learnt
within minutes, and the next observation can be predicted exactly when the agent acts well.
"""

import os
import time
from dataclasses import dataclass

import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, transition, unknown
from fastdream.spaces import Space, Spaces

CUES = 4


@dataclass(frozen=True)
class Options:
    """Settings of dummy_<name>."""

    length: int = 20
    """Steps of an episode."""
    terminal: bool = True
    """Whether the episode's end is a terminal state or a time limit."""
    size: int = 64
    """Height and width of the picture."""
    at: int = 10
    """Step, counted since it was made, at which crash, raise, hang, nan and badobs misbehave."""
    delay: float = 0.01
    """Seconds that a step of dummy_slow takes."""

    def __post_init__(self) -> None:
        if min(self.length, self.size) < 1 or self.delay < 0:
            raise EnvError(f"need length and size >= 1 and delay >= 0, got {self}")


# What each of them shows, and what it takes.
TASKS: dict[str, tuple[str, str]] = {
    "vector": ("vector", "discrete"),
    "image": ("image", "discrete"),
    "discrete": ("discrete", "discrete"),
    "continuous": ("vector", "continuous"),
    "multidiscrete": ("vector", "multidiscrete"),
    "mixed": ("image vector other discrete", "continuous discrete multidiscrete"),
    **dict.fromkeys(("slow", "crash", "raise", "hang", "nan", "badobs"), ("vector", "discrete")),
}


def make(name: str, seed: int, options: Options) -> "Dummy":
    """One of them by its name."""
    if name not in TASKS:
        raise unknown("dummy", name, TASKS)
    return Dummy(name, seed, options)


class Dummy:
    """Shows cues, and rewards answers with the share of action entries that are right."""

    deterministic = True

    def __init__(self, name: str, seed: int, options: Options) -> None:
        self._name = name
        self._options = options
        self._rng = np.random.default_rng(seed)
        self._cue = self._step = self._total = 0
        shows, takes = (kinds.split() for kinds in TASKS[name])
        shapes: Spaces = {
            "image": Space("image", (options.size, options.size, 3)),
            "vector": Space("vector", (CUES,), low=0, high=1),
            "other": Space("vector", ()),
            "discrete": Space("discrete", (), CUES),
        }
        acts: Spaces = {
            "discrete": Space("discrete", (), CUES),
            "continuous": Space("vector", (2,), low=-1, high=1),
            "multidiscrete": Space("discrete", (2,), CUES),
        }
        self.obs_space = {key: shapes[key] for key in shows}
        self.act_space = (
            {f"act_{k}": acts[k] for k in takes} if len(takes) > 1 else {"action": acts[takes[0]]}
        )

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode with a random cue."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._step = 0
        self._cue = int(self._rng.integers(CUES))
        return transition(self._obs(), first=True)

    def step(self, action: Action) -> Obs:
        """Rewards the answer to the cue and shows the next one."""
        self._step += 1
        self._total += 1
        reward = self._reward(action)
        self._cue = (self._cue + 1) % CUES if reward > 0.9 else int(self._rng.integers(CUES))
        last = self._step >= self._options.length
        obs = transition(self._obs(), reward, last=last, terminal=last and self._options.terminal)
        obs["log/cue"] = self._cue
        return self._misbehave(obs)

    def render(self) -> np.ndarray:
        """A square whose place is the cue."""
        image = np.zeros((self._options.size, self._options.size, 3), np.uint8)
        half = self._options.size // 2
        row, column = divmod(self._cue, 2)
        image[row * half :, column * half :][:half, :half] = (255, 128, 64)
        return image

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Obs:
        obs: Obs = {"discrete": self._cue, "other": self._cue / CUES}
        if "vector" in self.obs_space:
            obs["vector"] = np.eye(CUES, dtype=np.float32)[self._cue]
        if "image" in self.obs_space:
            obs["image"] = self.render()
        return {key: obs[key] for key in self.obs_space}

    def _reward(self, action: Action) -> float:
        """Share of right entries; a continuous one is right at the cue's point of [-1, 1], and falls off linearly."""
        target = 2 * self._cue / (CUES - 1) - 1
        scores = []
        for key, space in self.act_space.items():
            value = np.asarray(action[key])
            if space.kind == "discrete":
                scores.append(float((value == self._cue).mean()))
            else:
                scores.append(1 - min(1.0, float(np.abs(np.clip(value, -1, 1) - target).mean())))
        return sum(scores) / len(scores)

    def _misbehave(self, obs: Obs) -> Obs:
        if self._name == "slow":
            time.sleep(self._options.delay)
        if self._total != self._options.at:
            return obs
        if self._name == "crash" and "FASTDREAM_WORKER" in os.environ:
            os._exit(3)
        if self._name in ("crash", "raise"):
            raise RuntimeError(f"dummy_{self._name} broke at step {self._total}, as it was told to")
        if self._name == "hang":
            time.sleep(3600)
        if self._name == "nan":
            return obs | {"reward": float("nan")}
        return obs | {"vector": np.zeros(CUES + 1)} if self._name == "badobs" else obs
