"""The replay of a run of this library, as its last sound checkpoint kept it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdream import checkpoint
from fastdream.checkpoint import CheckpointError, Loaded
from fastdream.datasets.layout import DatasetError, Raw
from fastdream.replay import Replay
from fastdream.spaces import FLAGS, Spaces, spaces_from_json


class Run:
    """A run's folder, or the `replay` folder in it."""

    layout = "replay of a run"

    def __init__(self, path: Path) -> None:
        self.folder = path.parent if path.name == "replay" and not (path / "config.json").exists() else path
        path = self.folder / "config.json"
        try:
            about = json.loads(path.read_text())
            self.task: str = about["config"]["task"]
            source: str = about["config"].get("dataset", "")
            self._obs, self._act = (spaces_from_json(about["spaces"][name]) for name in ("obs", "act"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path} is not the config.json of a run: {error!r}") from error
        if source:
            raise DatasetError(
                f"{self.folder} learned from a dataset and has no replay of its own: use {source}"
            )
        self.spaces: tuple[Spaces, Spaces] | None = (self._obs, self._act)

    def episodes(self) -> Iterator[Raw]:
        """Each episode of each environment, oldest first; those that were overwritten in part are left out."""
        replay = self._replay()
        keys = [*self._obs, "reward", *FLAGS, *(f"action/{key}" for key in self._act)]
        for worker in range(replay.workers):
            steps = replay.stream(worker)
            begins = np.flatnonzero(steps["is_first"])
            for begin, end in zip(begins, [*begins[1:], len(steps["is_first"])], strict=True):
                if end - begin > 1:  # an episode that has only just begun holds no transition
                    place = f"{self.folder} environment {worker} step {begin}"
                    yield Raw(place, {key: steps[key][begin:end] for key in keys})

    def _replay(self) -> Replay:
        found: list[Replay] = []

        def restore(loaded: Loaded) -> None:
            if "replay" not in loaded.extra:
                raise DatasetError(
                    f"{self.folder} has no replay: its agent recorded rollouts without rewards, from which nothing "
                    "else can learn"
                )
            replay = _like(loaded.extra["replay"]["replay"])
            replay.restore(self.folder / "replay", loaded.extra["replay"])
            found[:] = [replay]

        try:
            loaded = checkpoint.load(self.folder / "ckpt", "last", restore)
        except CheckpointError as error:
            raise DatasetError(f"no replay of {self.folder} can be read: {error}") from error
        if loaded is None:
            raise DatasetError(f"{self.folder} holds no checkpoint yet, and so no replay")
        return found[0]


def is_folder(path: Path) -> bool:
    """Whether a folder is a run, or the replay in it."""
    candidates = (path, path.parent) if path.name == "replay" else (path,)
    return any((p / "config.json").is_file() and (p / "ckpt").is_dir() for p in candidates)


def _like(saved: Mapping[str, Any]) -> Replay:
    """An empty replay that takes what was saved with these settings."""
    settings = dict(saved)
    spec = {key: (tuple(shape), np.dtype(dtype)) for key, (shape, dtype) in settings.pop("spec").items()}
    return Replay(spec, settings.pop("capacity"), settings.pop("workers"), settings.pop("length"), **settings)
