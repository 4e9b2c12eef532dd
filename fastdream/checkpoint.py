"""Checkpoints: saved whole or not at all, checked when read, the last few and the best kept.

A folder of generations, each with

    manifest.json       format, step, score, and the size and checksum of every other file
    state.json          the tree, with references to the tensors
    <key>.safetensors   the tensors of one top-level key

and beside them the small files `latest` and `best`, which name a generation. A generation is written under a
temporary name, brought to the disk and renamed: a process that is killed at any moment leaves the older ones.
To go back by hand, write the name of an older generation into `latest`.
"""

import errno
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdream import rundir, tree_files
from fastdream.rundir import Damaged, StorageError

FORMAT = 1
KEPT = 2  # of the last generations, from which a run can go on
_TEMPORARY = ".tmp-"


class CheckpointError(StorageError):
    """A checkpoint cannot be written, or none can be read. Says which file, and what helps."""


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint held: tensors on the CPU, arrays, numbers and texts as they were saved.

    score  that it was saved with, or None.   extra  what `extra` gave at saving.
    notes  lines for the user about newer checkpoints that could not be used; empty if all is well.
    """

    tree: dict[str, Any]
    step: int
    score: float | None
    extra: dict[str, Any]
    path: Path
    notes: tuple[str, ...] = ()


class Checkpoint:
    """Writes generations into a folder, and keeps the last ones and the one with the best score.

    Its user holds the run's lock (rundir.RunLock): what a killed process left half-written is removed here.
    Raises StorageError when the folder takes no files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = rundir.writable(Path(directory))
        self._damaged: set[str] = set()
        for leftover in self.directory.glob(_TEMPORARY + "*"):
            shutil.rmtree(leftover)

    def require(self, tree: dict[str, Any]) -> None:
        """Raise CheckpointError if the disk has no place for one generation with this tree."""
        needed = _nbytes(tree_files.pack(tree)[1])
        if shutil.disk_usage(self.directory).free < needed:
            raise rundir.refusal(self.directory, OSError(errno.ENOSPC, ""), CheckpointError, needed)

    def save(
        self,
        tree: dict[str, Any],
        *,
        step: int,
        score: float | None = None,
        extra: Callable[[], dict[str, Any]] = dict,
    ) -> Path:
        """Write a generation and return its folder. Whatever goes wrong, the older ones stay as they were.

        tree   nested dictionaries, lists and tuples of tensors, arrays, numbers, texts, bytes and None.
        score  higher is better; None or NaN never becomes the best.
        extra  gives what JSON can hold, `Loaded.extra`; what it writes elsewhere may fill the disk as well.
        Raises CheckpointError when the disk is full or refuses, ValueError for a leaf that cannot be saved.
        """
        score = None if score is None or math.isnan(score) else float(score)
        serial = max((int(p.name.split("-")[0]) for p in _generations(self.directory)), default=0) + 1
        final = self.directory / f"{serial:06d}-step{step:09d}"
        temporary = self.directory / (_TEMPORARY + final.name)
        outline, groups = tree_files.pack(tree)
        needed = _nbytes(groups)
        try:
            temporary.mkdir()
            about = {
                "format": FORMAT,
                "step": step,
                "score": score,
                "time": round(time.time(), 3),
                "extra": extra(),
                "files": _write(temporary, outline, groups),
            }
            (temporary / "manifest.json").write_text(_sealed(about))
            for path in (*temporary.iterdir(), temporary):
                rundir.sync(path)
            temporary.rename(final)
            self._point(final.name, score)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)  # before the error counts what is free
            raise rundir.refusal(final, error, CheckpointError, needed) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return final

    def load(
        self, which: str | Path = "last", restore: Callable[[Loaded], None] | None = None
    ) -> Loaded | None:
        """`load` of this module, from this folder; what is damaged no longer counts among those to keep."""
        return load(self.directory, which, restore, self._damaged)

    def kept(self) -> list[dict[str, Any]]:
        """The `extra` of every sound generation, oldest first: what must not be removed elsewhere."""
        return [about["extra"] for about in map(_about, self._sound()) if about]

    def _sound(self) -> list[Path]:
        return [path for path in _generations(self.directory) if path.name not in self._damaged]

    def _point(self, name: str, score: float | None) -> None:
        rundir.sync(self.directory)
        rundir.write_atomic(self.directory / "latest", name.encode())
        if score is not None and score >= self._best_score():
            rundir.write_atomic(self.directory / "best", name.encode())

    def _best_score(self) -> float:
        best = _pointed(self.directory, "best")
        about = _about(best) if best and best.name not in self._damaged else None
        return -math.inf if about is None else float(about["score"])

    def _prune(self) -> None:
        """Remove all but the last few and the best. Renamed first: nobody ever sees half a generation."""
        keep = {*self._sound()[-KEPT:], _pointed(self.directory, "best")}
        for path in {*_generations(self.directory)} - keep:
            shutil.rmtree(path.rename(self.directory / (_TEMPORARY + path.name)))


def _nbytes(groups: dict[str, tree_files.Tensors]) -> int:
    """Bytes that tensors take in a generation."""
    return sum(tree_files.nbytes(t) for tensors in groups.values() for t in tensors.values())


def load(
    directory: Path,
    which: str | Path = "last",
    restore: Callable[[Loaded], None] | None = None,
    damaged: set[str] | None = None,
) -> Loaded | None:
    """Read the last or the best checkpoint, or an older one if that is damaged; None if there is none at all.

    which    "last", "best", or the folder of one generation, instead of which no other will be taken.
    restore  called with what was read; when it raises Damaged the next older generation is tried.
    damaged  receives the names of those that could not be used.
    Only reads: a run that goes on writing into the folder is not disturbed.
    Raises CheckpointError, naming every bad file, when there are checkpoints and none can be used.
    """
    notes: list[str] = []
    for path in _candidates(Path(directory), which):
        try:
            loaded = _read(path)
            if restore:
                restore(loaded)
        except Damaged as error:
            if damaged is not None:
                damaged.add(path.name)
            if path.exists():
                notes.append(f"checkpoint {path} cannot be used: {error}")
            continue
        if notes:
            notes.append(f"using {path.name} (step {loaded.step:,}) instead")
        return replace(loaded, notes=tuple(notes))
    if notes:
        raise CheckpointError("; ".join([*notes, "there is no other: start again in another --logdir"]))
    return None


def any_in(directory: Path) -> bool:
    """Whether there is a checkpoint, sound or not."""
    return bool(_generations(directory))


def _candidates(directory: Path, which: str | Path) -> Iterator[Path]:
    """The generations to try, in order. A running process may remove and add some while they are read."""
    if which not in ("last", "best"):
        if not Path(which).is_dir():
            names = [path.name for path in _generations(directory)]
            raise CheckpointError(f"there is no checkpoint {which}; in {directory} there are: {names}")
        yield Path(which)
        return
    tried: set[Path] = set()
    first = _pointed(directory, "best" if which == "best" else "latest")
    while True:
        ahead = [first, *reversed(_generations(directory))]
        path = next((p for p in ahead if p and p not in tried and p.is_dir()), None)
        if path is None:
            return
        tried.add(path)
        yield path


def _generations(directory: Path) -> list[Path]:
    """Folders of the generations, oldest first."""
    return sorted(path for path in directory.glob("[0-9]*-step[0-9]*") if path.is_dir())


def _pointed(directory: Path, pointer: str) -> Path | None:
    """The generation that the file `latest` or `best` names, if there are such a file and such a folder."""
    try:
        path = directory / (directory / pointer).read_text().strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return path if path in _generations(directory) else None


def _write(folder: Path, outline: Any, groups: dict[str, tree_files.Tensors]) -> dict[str, dict[str, Any]]:
    """Write the tree; returns size and checksum of every file that now lies in the folder."""
    digests = {}
    for key, tensors in groups.items():
        path = folder / f"{key}.safetensors"
        digests[path] = tree_files.write_tensors(path, tensors)
    (folder / "state.json").write_text(json.dumps(outline, allow_nan=False))
    return {
        path.name: {"bytes": path.stat().st_size, "digest": digests.get(path) or tree_files.digest(path)}
        for path in sorted(folder.iterdir())
    }


def _sealed(about: dict[str, Any]) -> str:
    """The manifest's text: its content as JSON keeps it, and the seal."""
    about = json.loads(json.dumps(about))
    return json.dumps(about | {"seal": _seal(about)}, indent=1)


def _seal(about: dict[str, Any]) -> str:
    """Checksum of the manifest's content, kept in the manifest itself."""
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()


def _about(path: Path) -> dict[str, Any] | None:
    """The manifest of a generation; None if it is missing or damaged."""
    try:
        about: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
        return about if about.pop("seal") == _seal(about) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _read(path: Path) -> Loaded:
    """Check every file, then read. Damaged names the first bad one."""
    about = _about(path)
    if about is None:
        raise Damaged("manifest.json is missing or is not as it was saved")
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer fastdream (format {about['format']}, this one reads {FORMAT}): "
            "upgrade with pip install --upgrade fastdream"
        )
    try:
        for name, entry in about["files"].items():
            _check(path / name, entry)
        groups = {file.stem: tree_files.read_tensors(file) for file in path.glob("*.safetensors")}
        tree = tree_files.unpack(json.loads((path / "state.json").read_bytes()), groups)
    except OSError as error:
        raise Damaged(f"{Path(error.filename or path).name} cannot be read: {error.strerror}") from error
    return Loaded(tree, about["step"], about["score"], about["extra"], path)


def _check(path: Path, entry: dict[str, Any]) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise Damaged(f"{path.name} has {size:,} of {entry['bytes']:,} bytes")
    if tree_files.digest(path) != entry["digest"]:
        raise Damaged(f"{path.name} is not as it was saved: its checksum differs")
