"""Any dataset that can be read here, a run's replay above all, as a Minari dataset."""

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium.spaces as gs
import numpy as np

from fastdream.datasets.check import Survey, survey
from fastdream.datasets.layout import Array, Arrays, DatasetError, Source, episodes, singly
from fastdream.envs.base import need
from fastdream.spaces import Space, Spaces

ROOT = "MINARI_DATASETS_PATH"  # where Minari keeps datasets, if set
UNITS = "its actions with finite bounds scaled to [-1, 1], classes from 0"  # what `envs.make` makes of a task


def export(
    source: Source, name: str, *, root: Path | None = None, jpeg: bool = False, task: str = ""
) -> Survey:
    """Write all episodes as the Minari dataset `name`; what it holds.

    name  an id, (namespace/)(environment/)name-v0.
    root  the folder that keeps it; None: where Minari keeps all of them.
    jpeg  pack pictures as JPEG, which is smaller and changes them.
    task  what was played, for the description.
    An observation or an action that is the only one keeps Minari's plain form where that has a name of its own in
    `envs.convert`; others are dictionaries. A run's actions are as `envs.make` takes them and not in the units of the
    environment inside, which the description says, too. An episode that neither ended nor was cut counts as cut at
    its end.
    Raises DatasetError for a source that is not sound, ValueError for an id that is taken or none.
    """
    minari = need("minari", "offline")
    if not re.fullmatch(r"[^/]+(/[^/]+){0,2}-v\d+", name):
        raise ValueError(
            f"{name!r} is no id of Minari's: (namespace/)(environment/)name-v0, such as my/{_named(name)}"
        )
    facts = survey(source)
    obs, act = facts.obs_space, facts.act_space
    buffers = [
        _buffer(minari, episode, obs, act)
        for data in episodes(source, obs, act)
        for episode in singly(data)
        if len(episode["reward"]) > 1
    ]
    about = f"{source.layout}{f' of {task}, {UNITS}' * bool(task)}, written by fastdream: {facts}"
    with _kept_in(root), _whole_or_not_at_all(name), warnings.catch_warnings():
        # About an author, a link and an algorithm that nobody named.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"minari(\..*)?")
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=_space(obs, "vector", "image", "discrete"),
            action_space=_space(act, "action"),
            description=about,
            jpeg_encoding=jpeg,
        )
    return facts


def _named(name: str) -> str:
    """The last part of what should have been an id, with a version."""
    last = re.sub(r"[^\w-]+", "-", name.rstrip("/").rpartition("/")[2]) or "name"
    return last if re.search(r"-v\d+$", last) else f"{last}-v0"


@contextlib.contextmanager
def _kept_in(root: Path | None) -> Iterator[None]:
    before = os.environ.get(ROOT)
    if root is not None:
        os.environ[ROOT] = str(Path(root).expanduser().resolve())
    try:
        yield
    finally:
        if before is not None:
            os.environ[ROOT] = before
        elif root is not None:
            del os.environ[ROOT]


@contextlib.contextmanager
def _whole_or_not_at_all(name: str) -> Iterator[None]:
    """Remove what was begun of a dataset that was not finished, so that its id is not taken; say what the disk said."""
    folder = Path(os.environ.get(ROOT) or Path.home() / ".minari" / "datasets") / name
    taken, done = os.path.exists(folder), False
    try:
        yield
        done = True
    except (OSError, RuntimeError) as error:  # RuntimeError: as HDF5 says it when it closes a file
        raise DatasetError(
            f"cannot write {folder}: {error}; free some space, or choose another --root"
        ) from error
    finally:
        if not done and not taken:
            shutil.rmtree(folder, ignore_errors=True)


def _buffer(minari: Any, data: Arrays, obs: Spaces, act: Spaces) -> Any:
    terminal = data["is_terminal"][1:]
    cut = np.zeros(len(terminal), bool)
    cut[-1] = not terminal[-1]
    return minari.data_collector.EpisodeBuffer(
        observations=_values({key: data[key] for key in obs}, "vector", "image", "discrete"),
        actions=_values({key: data[f"action/{key}"][1:] for key in act}, "action"),
        rewards=data["reward"][1:].tolist(),
        terminations=terminal.tolist(),
        truncations=cut.tolist(),
    )


def _values(arrays: Arrays, *plain: str) -> Array | Arrays:
    """The only entry if it has one of the plain names, a dictionary otherwise."""
    name = next(iter(arrays))
    return arrays[name] if len(arrays) == 1 and name in plain else arrays


def _space(spaces: Spaces, *plain: str) -> gs.Space:
    """Gymnasium's description of what `_values` gives."""
    parts: dict[str, gs.Space] = {key: _entry(space) for key, space in spaces.items()}
    name = next(iter(parts))
    return parts[name] if len(parts) == 1 and name in plain else gs.Dict(parts)


def _entry(space: Space) -> gs.Space:
    if space.kind == "image":
        return gs.Box(0, 255, space.shape, np.uint8)
    if space.kind == "vector":
        return gs.Box(np.float32(space.low), np.float32(space.high), space.shape, np.float32)
    if space.shape == ():
        return gs.Discrete(space.classes)
    return gs.MultiDiscrete(np.full(space.shape, space.classes))
