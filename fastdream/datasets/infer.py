"""Spaces of a dataset that does not say what they are, from all of its episodes."""

from dataclasses import dataclass

import numpy as np

from fastdream.datasets.layout import (
    ACTION_SLACK,
    Array,
    Arrays,
    action_keys,
    is_picture,
    observation_keys,
    onehot,
)
from fastdream.envs.base import SMALLEST_PICTURE
from fastdream.spaces import Space, Spaces


@dataclass
class Seen:
    """What one key has shown so far."""

    place: str
    shape: tuple[int, ...]
    kind: str  # NumPy's: "f", or "i" for all that counts
    picture: bool
    least: float = np.inf
    most: float = -np.inf
    onehot: bool = True  # every row beside the resets' holds one 1 and else zeros


class Inference:
    """Takes in standard episodes and says what the spaces are that hold all of them.

    Observations: uint8 [T+1, height, width, channels] of at least 16 × 16 pixels are images, all others vectors.
    Actions: numbers of which every step holds one 1 among zeros are classes, and so are whole numbers; other floats are
    vectors.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}

    def add(self, place: str, data: Arrays) -> list[str]:
        """Take in an episode; where it does not look like those before it, in words."""
        names = [*observation_keys(data), *(f"action/{key}" for key in action_keys(data))]
        if self.seen and (odd := set(names) ^ set(self.seen)):
            name = min(odd)
            first = next(iter(self.seen.values())).place
            there, absent = (place, first) if name in names else (first, place)
            return [f"{absent}: {name!r} is missing, which {there} has"]
        return [text for name in names if (text := self._look(place, name, data[name], data["is_first"]))]

    def _look(self, place: str, name: str, value: Array, first: Array) -> str:
        shape, kind = value.shape[1:], "f" if value.dtype.kind == "f" else "i"
        picture = is_picture(value)
        if 0 in shape:
            return (
                f"{place}: {name!r} is {value.dtype} {list(shape)} a step, which holds nothing; leave it out"
            )
        if not picture and len(shape) > 2:
            return (
                f"{place}: {name!r} is {value.dtype} {list(shape)} a step; pictures are uint8 [height, width, "
                f"channels] of at least {SMALLEST_PICTURE} × {SMALLEST_PICTURE}, vectors have up to two axes"
            )
        seen = self.seen.setdefault(name, Seen(place, shape, kind, picture))
        if (seen.shape, seen.kind, seen.picture) != (shape, kind, picture):
            return f"{place}: {name!r} is {value.dtype} {list(shape)} a step where {seen.place} has {list(seen.shape)}"
        if name.startswith("action/"):
            taken = value[~first.astype(bool)]
            if taken.size:
                seen.least, seen.most = (
                    min(seen.least, float(taken.min())),
                    max(seen.most, float(taken.max())),
                )
            if kind == "i" and seen.least < 0:
                least, seen.least = seen.least, np.inf
                return (
                    f"{place}: {name!r} holds {least:.0f}; classes count from 0, and amounts must be floats"
                )
            seen.onehot &= len(shape) == 1 and shape[0] > 1 and onehot(taken) and bool(taken.any(-1).all())
        return ""

    def spaces(self) -> tuple[Spaces, Spaces]:
        """Observations and actions."""
        obs = {
            name: Space("image" if seen.picture else "vector", seen.shape)
            for name, seen in self.seen.items()
            if not name.startswith("action/")
        }
        act = {
            name.removeprefix("action/"): _action(seen) for name, seen in self.seen.items() if name not in obs
        }
        return obs, act


def _action(seen: Seen) -> Space:
    if seen.onehot:
        return Space("discrete", (), seen.shape[0])
    if seen.kind == "i":
        return Space("discrete", seen.shape, max(2, int(seen.most) + 1))
    scaled = max(-seen.least, seen.most) <= 1 + ACTION_SLACK
    return Space("vector", seen.shape, low=-1.0, high=1.0) if scaled else Space("vector", seen.shape)
