"""The folder of a run: its name, its lock, its small files; and what it means when the disk refuses."""

import errno
import os
import re
import shutil
import socket
import tempfile
import time
import warnings
from pathlib import Path
from typing import TextIO, TypeVar


class StorageError(RuntimeError):
    """The disk refuses: it is full, read-only, or what it holds is damaged. Says where, and what helps."""


class Damaged(ValueError):
    """One generation of what was saved cannot be used: whoever restores it tries an older one."""


Error = TypeVar("Error", bound=StorageError)

_REMEDIES = {
    errno.EACCES: "choose another --logdir, or make this one writable",
    errno.EPERM: "choose another --logdir, or make this one writable",
    errno.EROFS: "choose another --logdir",
    errno.ENOTDIR: "choose another --logdir: a file stands where a folder is needed",
    errno.EEXIST: "choose another --logdir: a file stands where a folder is needed",
    errno.ENOENT: "choose another --logdir: no folder can be made there",
}


def refusal(path: Path, error: OSError, kind: type[Error], needed: int = 0) -> Error:
    """The error to raise when `path` could not be written: the reason and the remedy in one line.

    needed  bytes that were to be written there, 0 if it is not known; said together with what is free.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(existing(path)).free
        need = f"needs {megabytes(needed)}, " if needed else ""
        return kind(
            f"cannot write {path}: the disk is full ({need}{megabytes(free)} free). "
            "Free some space and run the same command again: it continues from the last checkpoint"
        )
    remedy = _REMEDIES.get(error.errno or 0, "see that the disk is healthy, or choose another --logdir")
    return kind(f"cannot write {path}: {error.strerror or error} ({remedy})")


def megabytes(size: int) -> str:
    """A size in bytes for people: '12.3 MB'."""
    return f"{size / 1e6:,.1f} MB"


def existing(path: Path) -> Path:
    """The nearest folder or file at or above `path` that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def there(path: Path) -> bool:
    """Whether there is such a file; StorageError where the system cannot tell: too long a name, a locked folder."""
    try:
        path.stat()  # Path.exists() of Python 3.14 says no where the system cannot tell
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageError(f"cannot look for {path}: {error.strerror}; choose another --logdir") from error
    return True


def writable(directory: Path) -> Path:
    """Make the folder if need be and return it; StorageError with the remedy if it takes no files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise refusal(directory, error, StorageError) from error
    return directory


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file: whoever reads it, also after a crash, finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def store(path: Path, data: bytes) -> None:
    """`write_atomic`; StorageError with the remedy when the disk refuses."""
    try:
        write_atomic(path, data)
    except OSError as error:
        raise refusal(path, error, StorageError, len(data)) from error


def run_dir(root: Path, task: str, name: str, seed: int) -> Path:
    """Make a fresh folder `root/task/name-s<seed>-<time>`, point `root/latest` to it and return it.

    name  of the preset. Characters that do not belong in a file name become '_'.
    Raises StorageError with the remedy if the disk refuses.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = root / _plain(task) / f"{_plain(name)}-s{seed}-{stamp}"
    writable(base.parent)
    try:
        path = _fresh(base)
        link_latest(root, path)
    except OSError as error:
        raise refusal(base, error, StorageError) from error
    return path


def _fresh(base: Path) -> Path:
    """A folder that was not there, of that name or with a number behind it."""
    for count in range(1, 1000):
        path = base if count == 1 else base.with_name(f"{base.name}-{count}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError(f"a thousand runs began in the same second in {base.parent}")


def link_latest(root: Path, run: Path) -> None:
    """Point the symbolic link `root/latest` to the run; a real folder of that name is left as it is."""
    link = root / "latest"
    if link.exists() and not link.is_symlink():
        return
    temporary = root / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(run, root), target_is_directory=True)
    temporary.replace(link)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "run"


class RunLock:
    """Keeps a second process from training in the same folder; the system drops it when the process ends.

    Raises ValueError naming the process that holds it, and StorageError if the disk refuses. A context manager;
    `release` may be called twice.
    """

    def __init__(self, run: Path) -> None:
        path = writable(run) / "lock"
        try:
            self._file = self._take(path)
        except OSError as error:
            raise refusal(path, error, StorageError) from error
        # A forked child would share the lock and keep it after the parent's death.
        os.register_at_fork(after_in_child=self._file.close)

    @staticmethod
    def _take(path: Path) -> TextIO:
        import fcntl

        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{path.parent} is in use by {owner}: wait for it, stop it, or choose another --logdir"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{path.parent} cannot be locked ({error.strerror}): start one run in it", stacklevel=3
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return file

    def release(self) -> None:
        """Let others train here. The file stays: removing it would let two processes hold a lock each."""
        self._file.close()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
