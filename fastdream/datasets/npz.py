"""Folders of episodes as .npz files: V-D4RL's at 64 pixels, DreamerV2's, and any other of one file an episode."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastdream.datasets.layout import DatasetError, Raw
from fastdream.spaces import Spaces


class Npz:
    """One file or a folder of them, at any depth, in the order of their names."""

    layout = "npz episodes"
    spaces: tuple[Spaces, Spaces] | None = None

    def __init__(self, path: Path) -> None:
        self.files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]

    def episodes(self) -> Iterator[Raw]:
        """An episode a file; DatasetError for one that cannot be read."""
        for path in self.files:
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    data = {key: arrays[key] for key in arrays.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise DatasetError(f"{path} cannot be read: {error}") from error
            yield Raw(str(path), data)
