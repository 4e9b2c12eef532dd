"""Saving the replay: only what changed since the last save, never over a file that an older save needs."""

import contextlib
import errno
import math
import os
import re
import secrets
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdream import rundir
from fastdream.replay_store import Ids, Rings, check_disk

NAME = re.compile(r"(data|latents)-\d+-\d+-[0-9a-f]{12}\.safetensors")


class CorruptReplay(rundir.Damaged):
    """A saved replay cannot be read back: a file is missing, truncated or altered. Older ones may be good."""


class Part(NamedTuple):
    """One file's worth of the store: `rows` rows from `row` on, in the keys of one family."""

    name: str
    keys: tuple[str, ...]
    row: int
    rows: int


class Files:
    """Which parts of a store have changed, and the files that hold the others.

    A worker's ring is cut into chunks of `chunk` rows, and the keys into two families: what add() wrote
    ("data", that does not change until the ring comes round) and what update() rewrites ("latents"). Each
    chunk of a family is one safetensors file. A save writes the changed ones under new names; the unchanged
    keep the file that they have. Only the families that are named are saved and restored.
    """

    def __init__(
        self,
        store: Rings,
        latents: Collection[str],
        chunk: int,
        families: Collection[str] = ("data", "latents"),
    ) -> None:
        keys = {
            "data": tuple(key for key in store.spec if key not in latents),
            "latents": tuple(key for key in store.spec if key in latents),
        }
        self._store = store
        self._chunk = chunk
        self._families = {family: names for family, names in keys.items() if names and family in families}
        counts = -(-store.sizes // chunk)
        self._first = np.cumsum(counts) - counts
        self._dirty = {family: np.ones(int(counts.sum()), bool) for family in self._families}
        self._saved: dict[str, dict[str, Any]] = {}

    def touch(self, worker: int, index: int) -> None:
        """Note that row `index` of a worker's ring was written in all keys."""
        for dirty in self._dirty.values():
            dirty[self._first[worker] + index // self._chunk] = True

    def touch_latents(self, worker: Ids, index: Ids) -> None:
        """Note that these rows of these workers' rings were rewritten by update()."""
        self._dirty["latents"][self._first[worker] + index // self._chunk] = True

    def save(self, directory: Path, filled: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Write what changed, durably, and return part name → {"file", "bytes", "crc32"} of all parts.

        filled  rows in use of each worker's ring.
        Raises OSError when the disk is full or cannot be written; then nothing of this save is left behind.
        """
        directory.mkdir(parents=True, exist_ok=True)
        parts = list(self._parts(filled))
        changed = [part for part in parts if self._changed(directory, part)]
        check_disk(directory, sum(self._nbytes(part) for part in changed), "save of the replay")
        saved = {part.name: self._saved[part.name] for part in parts if part.name in self._saved}
        saved.update(self._write_all(directory, changed))
        self._saved = saved
        self._forget_changes()
        return {name: dict(entry) for name, entry in saved.items()}

    def restore(self, directory: Path, files: Mapping[str, dict[str, Any]], filled: Sequence[int]) -> None:
        """Read all parts back into the store. Raises CorruptReplay naming the file that is not as saved."""
        self._saved = {}
        parts = list(self._parts(filled))
        if files.keys() != {part.name for part in parts}:
            raise CorruptReplay(
                f"the replay's manifest lists other files than its counters ask for, in {directory}"
            )
        for part in parts:
            entry, path = files[part.name], directory / files[part.name]["file"]
            if not path.exists():
                raise CorruptReplay(f"replay file {path} is missing")
            if path.stat().st_size != entry["bytes"]:
                size = path.stat().st_size
                raise CorruptReplay(f"replay file {path} has {size} bytes where {entry['bytes']} were saved")
        for part in parts:
            self._read(directory / files[part.name]["file"], part, files[part.name]["crc32"])
        self._saved = {name: dict(entry) for name, entry in files.items()}
        self._forget_changes()

    def _parts(self, filled: Sequence[int]) -> Iterator[Part]:
        for worker, rows in enumerate(filled):
            for chunk, begin in enumerate(range(0, rows, self._chunk)):
                row = int(self._store.offsets[worker]) + begin
                for family, keys in self._families.items():
                    yield Part(f"{family}-{worker}-{chunk}", keys, row, min(self._chunk, rows - begin))

    def _changed(self, directory: Path, part: Part) -> bool:
        family, worker, chunk = part.name.split("-")
        entry = self._saved.get(part.name)
        if entry is None or self._dirty[family][self._first[int(worker)] + int(chunk)]:
            return True
        path = directory / entry["file"]
        return not path.exists() or path.stat().st_size != entry["bytes"]

    def _nbytes(self, part: Part) -> int:
        shapes = (self._store.spec[key] for key in part.keys)
        return part.rows * sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)

    def _write_all(self, directory: Path, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
        from safetensors.numpy import save  # not before anything is kept: replays are of use without

        token = secrets.token_hex(6)  # new names: an older save's file is never written again
        with contextlib.ExitStack() as undo:
            entries = {}
            for part in parts:
                path = directory / f"{part.name}-{token}.safetensors"
                undo.callback(path.unlink, missing_ok=True)
                rows = {key: self._store.rows(key, part.row, part.rows) for key in part.keys}
                payload = save(rows)
                write_durably(path, payload)
                entries[part.name] = {"file": path.name, "bytes": len(payload), "crc32": zlib.crc32(payload)}
            rundir.sync(directory)
            undo.pop_all()
        return entries

    def _read(self, path: Path, part: Part, crc32: int) -> None:
        from safetensors.numpy import load

        payload = path.read_bytes()
        if zlib.crc32(payload) != crc32:
            raise CorruptReplay(f"replay file {path} does not have the checksum that it was saved with")
        tensors = load(payload)
        for key in part.keys:
            self._store.put_rows(key, part.row, tensors[key])

    def _forget_changes(self) -> None:
        for dirty in self._dirty.values():
            dirty[:] = False


def prune(directory: Path, keep: Sequence[Mapping[str, Any]]) -> None:
    """Remove the replay files of `directory` that no manifest in `keep` lists, parts of broken saves too."""
    kept = {entry["file"] for manifest in keep for entry in manifest["files"].values()}
    for path in directory.iterdir():
        if NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def write_durably(path: Path, payload: bytes) -> None:
    """Write a new file and wait until it is on the disk. A full disk is said with the file's name."""
    try:
        with path.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full: the replay was not saved", str(path)) from error
        raise
