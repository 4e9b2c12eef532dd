"""crafter_reward and crafter_noreward: the open-world survival game of Hafner (2021)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, need, transition, unknown
from fastdream.spaces import Space

TASKS = ("reward", "noreward")  # with the game's reward, or with none


@dataclass(frozen=True)
class Options:
    """Settings of crafter_reward and crafter_noreward."""

    size: int = 64
    """Height and width of the picture."""
    logs: bool = True
    """Log how often each of the 22 achievements was unlocked."""

    def __post_init__(self) -> None:
        if self.size < 18:
            raise EnvError(f"the view is 9 × 9 tiles of at least 2 pixels, so size >= 18, got {self.size}")


def make(name: str, seed: int, options: Options) -> "Crafter":
    """The game, with or without its reward."""
    if name not in TASKS:
        raise unknown("crafter", name, TASKS)
    return Crafter(name == "reward", seed, options)


class Crafter:
    """An episode ends with death (terminal) or after 10,000 steps (only last)."""

    # The game walks through sets of objects, whose order depends on addresses in memory.
    deterministic = False

    def __init__(self, rewarded: bool, seed: int, options: Options) -> None:
        package = need("crafter", "crafter")
        self._rewarded = rewarded
        self._logs = options.logs
        self._env = package.Env(size=(options.size, options.size), reward=rewarded, seed=seed)
        self._none = {name: 0 for name in package.constants.achievements}
        self.obs_space = {"image": Space("image", (options.size, options.size, 3))}
        self.act_space = {"action": Space("discrete", (), self._env.action_space.n)}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode in a new world."""
        if seed is not None:
            # The world is drawn from (seed, episode), and only the constructor takes a seed.
            self._env._seed, self._env._episode = seed, 0
        return transition(
            self._obs(self._env.reset(), {"achievements": self._none, "reward": 0.0}), first=True
        )

    def step(self, action: Action) -> Obs:
        """Takes one action."""
        image, reward, done, info = self._env.step(int(action["action"]))
        return transition(self._obs(image, info), reward, last=done, terminal=info["discount"] == 0)

    def render(self) -> np.ndarray:
        """The player's view."""
        return self._env.render()

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self, image: np.ndarray, info: dict[str, Any]) -> Obs:
        logs = {f"log/achievement_{k}": v for k, v in info["achievements"].items()} if self._logs else {}
        if not self._rewarded:
            logs["log/reward"] = info["reward"]
        return {"image": image, **logs}
