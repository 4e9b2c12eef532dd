"""Minari's datasets, read with its library: T+1 observations, T actions and rewards an episode, pictures decoded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdream.datasets.layout import Arrays, DatasetError, Raw
from fastdream.envs.base import need
from fastdream.envs.convert import action_encoder, observation
from fastdream.spaces import Spaces

PREFIX = "minari:"


class Minari:
    """A dataset by its id, from where Minari keeps them, or by its folder."""

    layout = "Minari"

    def __init__(self, name: str) -> None:
        minari = need("minari", "offline")
        try:
            self.dataset = _open(minari, name)
        except DatasetError:
            raise
        except (ValueError, OSError, ImportError) as error:
            raise DatasetError(f"the Minari dataset {name!r} cannot be opened: {error}") from error
        self.name = name
        obs_space, self._obs = observation(self.dataset.observation_space)
        act_space, self._act = action_encoder(self.dataset.action_space)
        self.spaces: tuple[Spaces, Spaces] | None = (obs_space, act_space)

    def episodes(self) -> Iterator[Raw]:
        """Each episode, with the action and the reward of a transition beside the observation that they led to."""
        for episode in self.dataset.iterate_episodes():
            place = f"{self.name} episode {episode.id}"
            yield Raw(place, self._arrays(place, episode))

    def _arrays(self, place: str, episode: Any) -> Arrays:
        length = len(episode.rewards)
        seen = _steps(episode.observations, length + 1, place, "observations")
        data = _stacked([self._obs(value) for value in seen])
        taken = _steps(episode.actions, length, place, "actions")
        acts = _stacked([self._act(value) for value in taken])
        data |= {f"action/{key}": _after_reset(value) for key, value in acts.items()}
        data["reward"] = _after_reset(np.asarray(episode.rewards))
        ended, cut = np.asarray(episode.terminations, bool), np.asarray(episode.truncations, bool)
        return data | {"is_terminal": _after_reset(ended), "is_last": _after_reset(ended | cut)}


def _open(minari: Any, name: str) -> Any:
    if name.startswith(PREFIX):
        identity = name.removeprefix(PREFIX)
        try:
            return minari.load_dataset(identity)
        except FileNotFoundError as error:
            raise DatasetError(
                f"the Minari dataset {name!r} is not on this machine: `minari list local` shows those that are, and "
                f"`minari download {identity or 'ID'}` fetches one of those that Minari offers"
            ) from error
    folder = Path(name)
    return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)


def is_folder(path: Path) -> bool:
    """Whether a folder holds a Minari dataset."""
    return any((folder / "metadata.json").is_file() for folder in (path, path / "data"))


def _steps(value: Any, length: int, place: str, name: str) -> list[Any]:
    """The values of nested dictionaries, tuples and arrays, step by step; DatasetError unless all have this length."""
    if isinstance(value, dict):
        parts = {key: _steps(part, length, place, f"{name}/{key}") for key, part in value.items()}
        return [{key: part[t] for key, part in parts.items()} for t in range(length)]
    if isinstance(value, tuple):
        columns = [_steps(part, length, place, f"{name}/{i}") for i, part in enumerate(value)]
        return list(zip(*columns, strict=True))
    if len(value) != length:
        raise DatasetError(f"{place}: {name!r} has {len(value)} entries, and the rewards ask for {length}")
    return list(value)


def _stacked(steps: list[dict[str, Any]]) -> Arrays:
    return {key: np.stack([step[key] for step in steps]) for key in (steps[0] if steps else ())}


def _after_reset(value: np.ndarray) -> np.ndarray:
    """Zero for the reset, then the values."""
    return np.concatenate([np.zeros((1, *value.shape[1:]), value.dtype), value])
