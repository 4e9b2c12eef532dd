"""Faults of disks and processes: none costs more than the newest checkpoint, and each is told in one line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdream import rundir
from fastdream.checkpoint import Checkpoint, CheckpointError, load
from fastdream.rundir import StorageError


def small(value: float = 0.0) -> dict:
    return {"agent": {"w": torch.full((5, 7), value)}, "run": {"step": int(value)}}


def same(a: dict, b: dict) -> bool:
    return torch.equal(a["agent"]["w"], b["agent"]["w"]) and a["run"] == b["run"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) * 2 // 3] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["removed", "truncated", "altered"])
@pytest.mark.parametrize("name", ["agent.safetensors", "state.json", "manifest.json"])
def test_a_damaged_file_means_the_generation_before(tmp_path: Path, name: str, how: str) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(small(1), step=1)
    newest = checkpoint.save(small(2), step=2)
    damage(newest / name, how)
    loaded = checkpoint.load()
    assert loaded is not None and loaded.step == 1 and same(loaded.tree, small(1))
    assert name in loaded.notes[0] and newest.name in loaded.notes[0]
    assert "step 1" in loaded.notes[1]
    # A damaged generation does not push a good one out.
    checkpoint.save(small(3), step=3)
    assert sorted(path.name[-1] for path in tmp_path.glob("0*")) == ["1", "3"]


def test_a_best_one_that_is_damaged_need_not_be_beaten(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    best = checkpoint.save(small(1), step=1, score=9.0)
    checkpoint.save(small(2), step=2, score=1.0)
    damage(best / "agent.safetensors", "altered")
    checkpoint.load("best")
    for step, score in ((3, 5.0), (4, 2.0)):
        checkpoint.save(small(step), step=step, score=score)
    loaded = checkpoint.load("best")
    assert loaded is not None and loaded.step == 3 and not loaded.notes


def test_nothing_loadable_names_every_bad_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for step in (1, 2):
        damage(checkpoint.save(small(step), step=step) / "state.json", "altered")
    with pytest.raises(CheckpointError, match=r"000002.*state\.json.*000001.*state\.json.*--logdir"):
        checkpoint.load()
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere.*000001-step000000001"):
        load(tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("call", range(6))
def test_full_disk_keeps_the_older_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(small(1), step=1)
    calls, sync = iter(range(100)), rundir.sync

    def full(path: Path) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(rundir, "sync", full)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*000002.*disk is full \(needs 0\.0 MB, .*MB free"
    ) as e:
        checkpoint.save(small(2), step=2)
    assert "Free some space" in str(e.value)
    assert not list(tmp_path.glob(".*"))
    loaded = load(tmp_path)
    assert loaded is not None and loaded.step in (1, 2) and loaded.notes == ()
    monkeypatch.undo()
    checkpoint.save(small(3), step=3)
    assert load(tmp_path).step == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full to write to")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="disk is full"):
        Checkpoint(tmp_path).save(small(), step=1, extra=lambda: {"n": Path("/dev/full").write_bytes(b"x")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file.*--logdir"):
        Checkpoint(tmp_path / "file" / "ckpt")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(StorageError, match="Read-only"):
        Checkpoint(tmp_path)


KILLED = """
import os, signal, sys, torch
from fastdream import rundir
from fastdream.checkpoint import Checkpoint
checkpoint, left, sync = Checkpoint(sys.argv[1]), [int(sys.argv[2])], rundir.sync
def killing(path):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
rundir.sync = killing
checkpoint.save({"agent": {"w": torch.full((5, 7), 2.0)}, "run": {"step": 2}}, step=2)
"""


@pytest.mark.parametrize("call", [1, 5, 6])
def test_killed_in_the_middle_of_saving(tmp_path: Path, call: int) -> None:
    Checkpoint(tmp_path).save(small(1), step=1)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(call)], check=False)
    assert done.returncode == -signal.SIGKILL
    loaded = load(tmp_path)
    assert loaded is not None and loaded.notes == () and same(loaded.tree, small(loaded.step))
    Checkpoint(tmp_path).save(small(3), step=3)
    assert load(tmp_path).step == 3
    assert not list(tmp_path.glob(".tmp*"))


def test_a_manifest_that_says_something_else_is_damaged(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(small(1), step=1)
    path = checkpoint.save(small(2), step=2) / "manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 7'))
    loaded = checkpoint.load()
    assert loaded is not None and loaded.step == 1


def test_instead_of_a_folder_that_was_asked_for_no_other_is_taken(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    asked = checkpoint.save(small(1), step=1)
    checkpoint.save(small(2), step=2)
    damage(asked / "state.json", "altered")
    with pytest.raises(CheckpointError, match="state.json"):
        checkpoint.load(asked)
