"""car_racing: Gymnasium's CarRacing as World Models takes it, from its picture without the dashboard.

The lower 12 of 96 rows show speed and steering as bars; they are cut off. Actions in [-1, 1] are steering, gas (from
none at -1 to all at 1) and brake (none below 0).
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, need, transition, unknown
from fastdream.envs.images import resize
from fastdream.spaces import Space

TASKS = ("racing",)
ROWS = 84  # above the dashboard


@dataclass(frozen=True)
class Options:
    """Settings of car_racing."""

    size: int = 64
    """Height and width of the picture."""
    repeat: int = 1
    """Frames that each action is held for; the reward is their sum."""
    length: int = 1000
    """Frames after which an episode is cut short."""

    def __post_init__(self) -> None:
        if min(self.size, self.repeat, self.length) < 1:
            raise EnvError(f"need size, repeat and length >= 1, got {self}")


def make(name: str, seed: int, options: Options) -> "CarRacing":
    """The race by its name."""
    if name not in TASKS:
        raise unknown("car", name, TASKS)
    return CarRacing(options)


class CarRacing:
    """A track of random bends: 1000 points for all of its tiles, less a tenth for every frame.

    Leaving the playing field is terminal; having driven over all tiles ends the episode and is not.
    """

    deterministic = True

    def __init__(self, options: Options) -> None:
        need("Box2D", "box2d")
        need("pygame", "box2d")
        self._options = options
        self._env = gymnasium.make(
            "CarRacing-v3",
            max_episode_steps=options.length,
            render_mode="rgb_array",
            disable_env_checker=True,
        )
        self._frame = np.zeros((96, 96, 3), np.uint8)
        # A frame takes a hundred times longer to draw than to compute: only those that are looked at are drawn.
        race: Any = self._env.unwrapped
        self._draw, race._render = race._render, self._undrawn
        self.obs_space = {"image": Space("image", (options.size, options.size, 3))}
        self.act_space = {"action": Space("vector", (3,), low=-1, high=1)}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode on a new track."""
        self._env.reset(seed=seed)
        return transition(self._picture(), first=True)

    def step(self, action: Action) -> Obs:
        """Holds steering, gas and brake for `repeat` frames, or until the episode is over."""
        steering, gas, brake = np.clip(np.asarray(action["action"], np.float64), -1, 1)
        taken = np.array([steering, (gas + 1) / 2, max(brake, 0)])
        total, terminal, last = 0.0, False, False
        for _ in range(self._options.repeat):
            _, reward, terminated, truncated, info = self._env.step(taken)
            total += float(reward)
            last = terminated or truncated
            terminal = terminated and not info.get("lap_finished", False)
            if last:
                break
        return transition(self._picture(), total, last=last, terminal=terminal)

    def render(self) -> np.ndarray:
        """The picture with its dashboard."""
        return self._frame

    def close(self) -> None:
        """Frees what pygame holds."""
        self._env.close()

    def _undrawn(self, mode: str) -> np.ndarray:
        return self._frame

    def _picture(self) -> Obs:
        self._frame = self._draw("state_pixels")
        return {"image": resize(self._frame[:ROWS], self._options.size)}
