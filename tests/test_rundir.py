"""The folder of a run: names, the link to the latest, the lock, and what a refusing disk is told as."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdream import rundir
from fastdream.rundir import RunLock, StorageError


def test_names_of_runs_and_the_link_to_the_latest(tmp_path: Path) -> None:
    first = rundir.run_dir(tmp_path, "gym_CartPole-v1", "tiny", 3)
    assert re.fullmatch(r"gym_CartPole-v1/tiny-s3-\d{8}-\d{6}", str(first.relative_to(tmp_path)))
    second = rundir.run_dir(tmp_path, "gym_CartPole-v1", "tiny", 3)
    assert second != first and second.is_dir()
    assert (tmp_path / "latest").resolve() == second and not os.path.isabs(os.readlink(tmp_path / "latest"))
    odd = rundir.run_dir(tmp_path, "../my.envs:make thing", "", 0)
    assert odd.parent.parent == tmp_path and odd.parent.name == "_my.envs_make_thing"


def test_a_real_folder_named_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest" / "precious").mkdir(parents=True)
    rundir.run_dir(tmp_path, "task", "preset", 0)
    assert (tmp_path / "latest" / "precious").is_dir()


def test_two_processes_cannot_train_in_the_same_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .*another --logdir"):
            RunLock(tmp_path)
        lock.release()
    RunLock(tmp_path).release()


HOLDER = """
import os, sys, time
from pathlib import Path
from fastdream.rundir import RunLock
lock = RunLock(Path(sys.argv[1]))
if not os.fork():  # the child says so, which has then let go of what it inherited
    print(os.getppid(), os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_even_with_children_alive(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    pid, child = map(int, holder.stdout.readline().split())
    try:
        with pytest.raises(ValueError, match=f"process {pid} "):
            RunLock(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # the child is alive
        with RunLock(tmp_path):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} ")
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_atomic_writing_leaves_the_old_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latest"
    rundir.write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        rundir.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, r"disk is full \(needs 5\.0 MB, .* MB free\)"),
        (errno.EROFS, "Read-only file system.*--logdir"),
        (errno.EACCES, "Permission denied.*--logdir"),
        (errno.EIO, "disk is healthy"),
    ],
)
def test_a_refusing_disk_is_told_in_one_line_with_the_remedy(tmp_path: Path, code: int, words: str) -> None:
    path = tmp_path / "not" / "there"
    error = rundir.refusal(path, OSError(code, os.strerror(code)), StorageError, 5_000_000)
    assert isinstance(error, StorageError) and str(path) in str(error) and "\n" not in str(error)
    assert re.search(words, str(error))


@pytest.mark.parametrize("call", ["store", "run_dir", "lock"])
def test_a_full_disk_is_one_error_whatever_is_written(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, {"store": "write_bytes", "run_dir": "symlink_to", "lock": "open"}[call], full)
    calls = {
        "store": lambda: rundir.store(tmp_path / "config.json", b"new"),
        "run_dir": lambda: rundir.run_dir(tmp_path, "task", "preset", 0),
        "lock": lambda: RunLock(tmp_path),
    }
    with pytest.raises(StorageError, match=r"cannot write .*: the disk is full"):
        calls[call]()
