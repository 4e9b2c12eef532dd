"""minigrid_<id>: grid worlds seen from within, as pictures or as what stands on each tile."""

import itertools
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, need, transition, unknown
from fastdream.spaces import Space

MOST_MISSIONS = 256


@dataclass(frozen=True)
class Options:
    """Settings of minigrid_<id>."""

    obs: Literal["vision", "flat"] = "vision"
    """What the agent sees as a picture, or object, colour and state of each tile as classes (faster to learn)."""
    size: int = 64
    """Height and width of the picture."""


def names() -> list[str]:
    """All ids, without "MiniGrid-"."""
    need("minigrid", "minigrid")
    import gymnasium

    ids = [i for i in gymnasium.registry if i.startswith(("MiniGrid-", "BabyAI-"))]
    return [i.removeprefix("MiniGrid-") for i in ids]


def make(name: str, seed: int, options: Options) -> "MiniGrid":
    """A task by its id; "MiniGrid-" in front and "-v0" behind can be left out."""
    known = names()
    short = name.removeprefix("MiniGrid-")
    full = short if short in known else f"{short}-v0"
    if full not in known:
        raise unknown("minigrid", short, known)
    return MiniGrid(full if full.startswith("BabyAI-") else f"MiniGrid-{full}", options)


class MiniGrid:
    """One task. The direction is part of the observation, and so is the mission where it changes.

    A mission is one class of all that the task can ask for. Tasks with more than 256 of them, or with free text,
    go without, and say so once.
    """

    deterministic = True

    def __init__(self, task: str, options: Options) -> None:
        import gymnasium
        from minigrid.core import constants

        env: Any = gymnasium.make(task, disable_env_checker=True)
        self._env = env.unwrapped
        self._size = options.size if options.obs == "vision" else 0
        view = self._env.agent_view_size
        if self._size and self._size < 4 * view:
            raise EnvError(f"{task} shows {view} × {view} tiles, so size must be at least {4 * view}")
        self._missions = _missions(task, self._env.observation_space["mission"])
        self.obs_space = {"direction": Space("discrete", (), 4)}
        if len(self._missions) > 1:
            self.obs_space["mission"] = Space("discrete", (), len(self._missions))
        if self._size:
            self.obs_space["image"] = Space("image", (self._size, self._size, 3))
        else:
            tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
            for key, table in zip(("object", "color", "state"), tables, strict=True):
                self.obs_space[key] = Space("discrete", (view, view), max(table.values()) + 1)
        self.act_space = {"action": Space("discrete", (), int(self._env.action_space.n))}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode in a new grid."""
        obs, _ = self._env.reset(seed=seed)
        return transition(self._obs(obs), first=True)

    def step(self, action: Action) -> Obs:
        """Takes one action."""
        obs, reward, terminated, truncated, _ = self._env.step(int(action["action"]))
        return transition(self._obs(obs), reward, last=terminated or truncated, terminal=terminated)

    def render(self) -> np.ndarray:
        """The whole grid from above."""
        return self._env.get_frame(tile_size=16)

    def close(self) -> None:
        """Frees what the environment holds."""
        self._env.close()

    def _obs(self, obs: dict[str, Any]) -> Obs:
        out: Obs = {"direction": int(obs["direction"])}
        if "mission" in self.obs_space:
            out["mission"] = self._missions[obs["mission"]]
        if not self._size:
            return out | {key: obs["image"][..., i] for i, key in enumerate(("object", "color", "state"))}
        # Whole pixels for each tile and a black margin, so that nothing is blurred.
        view = self._env.agent_view_size
        tile = self._size // view
        inside = slice((self._size - tile * view) // 2, (self._size - tile * view) // 2 + tile * view)
        image = np.zeros((self._size, self._size, 3), np.uint8)
        image[inside, inside] = self._env.get_frame(tile_size=tile, agent_pov=True)
        return out | {"image": image}


def _missions(task: str, space: Any) -> dict[str, int]:
    """Number of every mission that a task can give; empty when they cannot be listed."""
    fields = getattr(space, "ordered_placeholders", None) or []
    if type(space).__name__ != "MissionSpace" or np.prod([len(f) for f in fields]) > MOST_MISSIONS:
        warnings.warn(
            f"{task}: the missions are too many to tell apart, so the agent is not told them", stacklevel=3
        )
        return {}
    texts = sorted({space.mission_func(*words) for words in itertools.product(*fields)})
    return {text: i for i, text in enumerate(texts)}
