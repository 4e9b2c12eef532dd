"""Folders of episodes as .npz files: V-D4RL's at 64 pixels, DreamerV2's, and any other of one file an episode."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastdream.datasets.layout import DatasetError, Raw
from fastdream.spaces import Spaces

# What reading an archive raises that is damaged, encrypted, or packed in a way that Python does not know.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Npz:
    """One file or a folder of them, at any depth, in the order of their names; without hidden files."""

    layout = "npz episodes"
    spaces: tuple[Spaces, Spaces] | None = None

    def __init__(self, path: Path) -> None:
        self.files = sorted(p for p in path.rglob("*.npz") if shown(p)) if path.is_dir() else [path]

    def episodes(self) -> Iterator[Raw]:
        """An episode a file; DatasetError for one that cannot be read."""
        for path in self.files:
            try:
                # NumPy takes all else for a pickle, and says so.
                if not zipfile.is_zipfile(path):
                    raise ValueError("it is no npz archive, or the rest of it is missing")
                with np.load(path, allow_pickle=False) as arrays:
                    data = {key: arrays[key] for key in arrays.files}
            except UNREADABLE as error:
                raise DatasetError(f"{path} cannot be read: {error}") from error
            if other := [key for key, value in data.items() if not isinstance(value, np.ndarray)]:
                raise DatasetError(f"{path}: {other[0]!r} is no array")
            yield Raw(str(path), data)


def shown(path: Path) -> bool:
    """Whether a file is one of the user's: not what systems leave beside it, such as macOS its ._name."""
    return not path.name.startswith(".")
