"""Rollouts on disk, episode after episode: what agents that learn in stages learn from, more than memory may hold.

A file for each entry, all with one row a step, and `episodes.jsonl`, whose lines say how many rows each episode has. An
episode counts once its line is there: what a process that was killed had written after the last line is cut off.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdream import rundir

Array = np.ndarray[Any, Any]
Spec = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Recording:
    """Appends episodes, and gives all of them as arrays that the system reads from the disk as they are used.

    spec     entries of a step: key -> (shape, dtype).
    appends  False changes no file: for whoever only reads, perhaps beside a run that goes on recording.
    Raises StorageError when the folder cannot be read or written.
    """

    def __init__(self, directory: Path, spec: Spec, appends: bool = True) -> None:
        self.directory, self.spec = Path(directory), dict(spec)
        self._appends = appends
        if appends:
            rundir.writable(self.directory)
        self._index = self.directory / "episodes.jsonl"
        self.episodes: list[dict[str, Any]] = []
        try:
            self._read()
            self.rows = sum(episode["rows"] for episode in self.episodes)
            for key in self.spec:
                self._truncate(key)
        except OSError as error:
            raise rundir.refusal(self.directory, error, rundir.StorageError) from error

    def _read(self) -> None:
        """The lines that were finished; another one is cut off, or left to whoever writes it."""
        if not self._index.exists():
            return
        whole = self._index.read_text().rpartition("\n")[0]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self.episodes.append(json.loads(line))
            except ValueError as error:
                raise rundir.StorageError(
                    f"line {number} of {self._index} is damaged: {error}; restore the file, or remove "
                    f"{self.directory} to record anew"
                ) from error
        if self._appends:
            rundir.write_atomic(self._index, (whole + "\n" if whole else "").encode())

    def _truncate(self, key: str) -> None:
        """Cut off rows of an episode without a line. Raises StorageError if there are less than the lines say."""
        path, wanted = self._path(key), self.rows * self._row(key)
        held = path.stat().st_size if path.exists() else 0
        if held < wanted:
            raise rundir.StorageError(
                f"{path} holds {held:,} bytes, and the episodes in {self._index.name} have {wanted:,}: "
                f"restore the file, or remove {self.directory} to record anew"
            )
        if self._appends:
            with path.open("ab") as file:
                file.truncate(wanted)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.bin"

    def _row(self, key: str) -> int:
        """Bytes of a row."""
        shape, dtype = self.spec[key]
        return math.prod(shape) * dtype.itemsize

    def add(self, episode: Mapping[str, Array] | None, **facts: Any) -> None:
        """Append an episode, entries [T, ...]; or only the facts of one that is not kept."""
        assert self._appends, self.directory
        rows = 0 if episode is None else len(next(iter(episode.values())))
        try:
            if episode is not None:
                for key, (shape, dtype) in self.spec.items():
                    value = np.ascontiguousarray(episode[key], dtype)
                    assert value.shape == (rows, *shape), (key, value.shape, (rows, *shape))
                    with self._path(key).open("ab") as file:
                        file.write(value.tobytes())
            line = {"rows": rows, **facts}
            with self._index.open("a") as index:
                index.write(json.dumps(line) + "\n")
        except OSError as error:
            raise rundir.refusal(self.directory, error, rundir.StorageError) from error
        self.episodes.append(line)
        self.rows += rows

    def sync(self) -> None:
        """Wait until the disk has all that was appended. Raises StorageError."""
        try:
            for path in (*map(self._path, self.spec), self._index, self.directory):
                rundir.sync(path)
        except OSError as error:
            raise rundir.refusal(self.directory, error, rundir.StorageError) from error

    def __getitem__(self, key: str) -> Array:
        """All rows of an entry [rows, ...], read from the disk when they are looked at."""
        shape, dtype = self.spec[key]
        if not self.rows:
            return np.zeros((0, *shape), dtype)
        return np.memmap(self._path(key), dtype, "r", shape=(self.rows, *shape))

    def starts(self) -> Array:
        """The first row of every episode that is kept."""
        lengths = self.lengths()
        return np.cumsum(lengths) - lengths

    def lengths(self) -> Array:
        """Rows of every episode that is kept."""
        return np.array([episode["rows"] for episode in self.episodes if episode["rows"]], int)

    def describe(self) -> str:
        """What is kept, and what that takes, in words."""
        size = sum(map(self._row, self.spec)) / 1e3
        return f"rollouts on disk, {size:,.1f} kB a step, {self.rows:,} steps so far"
