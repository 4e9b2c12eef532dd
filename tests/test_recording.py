"""Rollouts on disk: what comes back, what a killed process leaves, what is missing."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import rundir
from fastdream.recording import Recording
from fastdream.rundir import StorageError

SPEC = {
    "image": ((2, 3), np.dtype(np.uint8)),
    "first": ((), np.dtype(bool)),
    "x": ((1,), np.dtype(np.float32)),
}


def episode(rows: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    first = np.arange(rows) == 0
    return {"image": rng.integers(0, 256, (rows, 2, 3), np.uint8), "first": first, "x": rng.random((rows, 1))}


def test_episodes_come_back_one_after_another(tmp_path: Path) -> None:
    one = Recording(tmp_path, SPEC)
    assert one.rows == len(one["image"]) == len(one.starts()) == 0
    parts = [episode(4, 1), episode(3, 2)]
    one.add(parts[0], score=1.5)
    one.add(None, score=0.5)
    one.add(parts[1], score=2.5)
    for recording in (one, Recording(tmp_path, SPEC)):
        assert recording.rows == 7
        assert recording.starts().tolist() == [0, 4] and recording.lengths().tolist() == [4, 3]
        assert [e["score"] for e in recording.episodes] == [1.5, 0.5, 2.5]
        for key, (_, dtype) in SPEC.items():
            assert recording[key].dtype == dtype
            assert np.array_equal(recording[key], np.concatenate([p[key] for p in parts]).astype(dtype))
    large = Recording(tmp_path / "large", {"image": ((100, 100, 1000), np.dtype(np.uint8))})
    assert "10,000.0 kB a step, 0 steps so far" in large.describe() and "0.0 kB a step, 7" in one.describe()


def test_what_was_not_finished_is_cut_off(tmp_path: Path) -> None:
    recording = Recording(tmp_path, SPEC)
    recording.add(episode(4, 1), score=1.0)
    with (tmp_path / "image.bin").open("ab") as file:
        file.write(b"half an episode")
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"rows": 3, "sc')
    again = Recording(tmp_path, SPEC)
    again.add(episode(2, 2), score=2.0)
    assert (tmp_path / "image.bin").stat().st_size == 6 * 6
    assert np.array_equal(Recording(tmp_path, SPEC)["image"][4:], episode(2, 2)["image"])
    # Nor need there be a whole line before it.
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "episodes.jsonl").write_text('{"rows": 3, "sc')
    Recording(tmp_path / "first", SPEC).add(episode(2, 2))
    assert Recording(tmp_path / "first", SPEC).rows == 2


def test_who_only_reads_cuts_nothing_off_that_another_process_is_writing(tmp_path: Path) -> None:
    recording = Recording(tmp_path, SPEC)
    recording.add(episode(4, 1), score=1.0)
    # An episode whose line is still to come, and half of a line.
    with (tmp_path / "image.bin").open("ab") as file:
        file.write(episode(2, 2)["image"].tobytes())
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"rows": 2, "sc')
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()}
    tmp_path.chmod(0o500)
    try:
        reader = Recording(tmp_path, SPEC, appends=False)
    finally:
        tmp_path.chmod(0o700)
    assert np.array_equal(reader["image"], episode(4, 1)["image"]) and len(reader.episodes) == 1
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()} == before
    with pytest.raises(AssertionError):
        reader.add(episode(2, 2))
    assert not Recording(tmp_path / "none", SPEC, appends=False).rows and not (tmp_path / "none").exists()


def test_missing_rows_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    Recording(tmp_path, SPEC).add(episode(4))
    (tmp_path / "x.bin").write_bytes(b"1234")
    with pytest.raises(
        StorageError, match=r"x.bin holds 4 bytes, and the episodes .* have 16: restore the file"
    ):
        Recording(tmp_path, SPEC)


def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    recording = Recording(tmp_path, SPEC)
    for seed in range(3):
        recording.add(episode(2, seed))
    index = tmp_path / "episodes.jsonl"
    index.write_text(index.read_text().replace("{", "", 2).replace('"rows"', '{"rows"', 1))
    with pytest.raises(StorageError, match=r"line 2 of .*episodes.jsonl is damaged: .*; restore the file"):
        Recording(tmp_path, SPEC)


def test_an_episode_that_the_disk_refuses_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(tmp_path, SPEC)
    recording.add(episode(4, 1), score=1.0)
    place = tmp_path / "x.bin"
    held = place.read_bytes()
    place.unlink()
    place.mkdir()
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}: "):
        recording.add(episode(3, 2), score=2.0)
    assert recording.rows == 4 and len(recording.episodes) == 1
    place.rmdir()
    place.write_bytes(held)
    again = Recording(tmp_path, SPEC)
    assert [e["score"] for e in again.episodes] == [1.0] and (tmp_path / "image.bin").stat().st_size == 4 * 6

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rundir, "sync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        again.sync()


def test_what_is_read_cannot_be_changed_by_mistake(tmp_path: Path) -> None:
    recording = Recording(tmp_path, SPEC)
    recording.add(episode(4))
    with pytest.raises(ValueError, match="read-only"):
        recording["x"][0] = 7


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "image.bin").mkdir()
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}: "):
        Recording(tmp_path, SPEC)


def test_a_wrong_shape_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="image"):
        Recording(tmp_path, SPEC).add(episode(4) | {"image": np.zeros((4, 3, 2), np.uint8)})
