"""V-D4RL's .hdf5 shards at 84 pixels: episodes one after another, pictures with their channels first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdream.datasets.layout import DatasetError, Raw
from fastdream.datasets.npz import shown
from fastdream.envs.base import need
from fastdream.spaces import Spaces

SUFFIXES = (".hdf5", ".h5")
KEYS = ("observation", "action", "reward", "step_type")
FIRST = 0  # in step_type, as dm_env has it


class Hdf5:
    """One file or a folder of them, with `observation`, `action`, `reward`, `step_type` and perhaps `discount`."""

    layout = "V-D4RL hdf5"
    spaces: tuple[Spaces, Spaces] | None = None

    def __init__(self, path: Path) -> None:
        found = path.rglob("*") if path.is_dir() else [path]
        self.files = sorted(p for p in found if p.suffix in SUFFIXES and (shown(p) or p == path))

    def episodes(self) -> Iterator[Raw]:
        """Each episode of each file, read when it is its turn."""
        h5py = need("h5py", "offline")
        for path in self.files:
            try:
                with h5py.File(path, "r") as file:
                    yield from self._of(path, file)
            except (OSError, KeyError) as error:  # KeyError: a link to a file that is not there
                raise DatasetError(f"{path} cannot be read: {error}") from error

    def _of(self, path: Path, file: Any) -> Iterator[Raw]:
        if missing := [key for key in KEYS if key not in file]:
            raise DatasetError(
                f"{path}: {missing[0]!r} is missing; it has {', '.join(sorted(file)) or 'nothing'}"
            )
        keys = [key for key in (*KEYS, "discount") if key in file]
        if odd := [key for key in keys if not getattr(file[key], "shape", ())]:
            raise DatasetError(f"{path}: {odd[0]!r} is no array with an entry for every step")
        lengths = {key: len(file[key]) for key in keys}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise DatasetError(f"{path}: the arrays differ in length ({listed})")
        kind = file["step_type"][:]
        begins = np.flatnonzero(kind == FIRST)
        if not len(begins) or begins[0] != 0:
            raise DatasetError(f"{path}: 'step_type' does not begin with {FIRST}, a reset")
        for number, (begin, end) in enumerate(zip(begins, [*begins[1:], len(kind)], strict=True)):
            data = {key: file[key][begin:end] for key in keys}
            picture = data.pop("observation")
            if picture.ndim == 4 and picture.dtype == np.uint8:
                data["image"] = np.ascontiguousarray(picture.transpose(0, 2, 3, 1))
            else:
                data["vector"] = picture
            yield Raw(f"{path} episode {number}", data)
