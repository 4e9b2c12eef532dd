"""Where the replay keeps its steps, how much that takes, and what it says of wrong input."""

import errno
import os
import resource
from types import SimpleNamespace

import numpy as np
import pytest

from fastdream import replay_store
from fastdream.replay import Replay
from fastdream.replay_store import Store, available_memory

from .replay_tools import SPEC, assert_same, assert_true_windows, fill, make, step


def test_disk_backed_equals_ram_backed(tmp_path):
    ram, disk = make(capacity=33, workers=2), make(capacity=33, workers=2, directory=tmp_path / "steps")
    for first in (0, 15, 30):
        for replay in (ram, disk):
            fill(replay, 15, first=first)
        one, two = ram.sample(6), disk.sample(6)
        assert_same(one, two)
        values = {"deter": one.data["deter"] + np.float16(1), "stoch": one.data["stoch"] + np.uint8(1)}
        ram.update(one.ids, values)
        disk.update(two.ids, values)
    assert_same(ram.sample(50), disk.sample(50))
    for value in disk.sample(1).data.values():
        assert type(value) is np.ndarray


def test_disk_backed_steps_are_reserved_and_leave_no_files(tmp_path):
    free = os.statvfs(tmp_path).f_bfree * os.statvfs(tmp_path).f_frsize
    replay = Replay({"x": ((1 << 20,), np.uint8)}, 64, 1, 2, directory=tmp_path)
    taken = free - os.statvfs(tmp_path).f_bfree * os.statvfs(tmp_path).f_frsize
    assert replay.nbytes == 64 << 20 and taken > 32 << 20
    assert list(tmp_path.iterdir()) == []


def test_too_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 30))
    with pytest.raises(OSError, match=r"needs 4\.00 GiB but the disk has 3\.00 GiB free") as caught:
        Replay({"x": ((1 << 20,), np.uint8)}, 4096, 1, 2, directory=tmp_path)
    assert caught.value.errno == errno.ENOSPC and "smaller --replay.capacity" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_while_reserving_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"cannot reserve 0\.00 GiB for the replay: No space left"):
        make(directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_describe_says_bytes_and_place(tmp_path):
    spec = {"image": ((64, 64, 3), np.uint8), "reward": ((), np.float32)}
    line = Replay(spec, 100_000, 4, 65).describe()
    assert "100,000 steps × 12,292 bytes = 1.14 GiB in RAM" in line and "\n" not in line
    assert f"on disk in {tmp_path}" in Replay(spec, 260, 4, 65, directory=tmp_path).describe()


def test_check_memory_names_needed_available_and_remedies(tmp_path):
    replay = Replay({"image": ((1024,), np.uint8)}, 3 << 20, 1, 5)
    assert replay.nbytes == 3 << 30
    replay.check_memory(available=4 << 30)
    message = r"needs 3\.00 GiB of RAM when full, but 2\.00 GiB are available.*--replay\.capacity.*--replay\.on-disk"
    with pytest.raises(ValueError, match=message) as caught:
        replay.check_memory(available=2 << 30)
    assert f"up to {int(1.6 * 2**30) // 1024}" in str(caught.value)
    make(directory=tmp_path).check_memory(available=0)


def test_memory_is_asked_from_the_system():
    available = available_memory()
    assert 0 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    make().check_memory()
    with pytest.raises(ValueError, match="GiB are available"):
        Replay({"x": ((1,), np.uint8)}, available // 2, 1, 2).check_memory(available // 4)


@pytest.mark.parametrize(("limit", "left"), [("max\n", 9000), ("5000\n", 5000 - 3000 + 1000), ("1500\n", 0)])
def test_memory_limit_of_a_container_counts(tmp_path, limit, left):
    assert replay_store._container_memory(tmp_path, 9000) == 9000
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1900\ninactive_file 1000\n")
    assert replay_store._container_memory(tmp_path, 9000) == left


def test_memory_is_committed_only_as_it_is_used():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replay = Replay({"image": ((1 << 20,), np.uint8)}, 2048, 2, 2, online=False)  # 2 GiB, if it were touched
    for _ in range(3):
        replay.add(0, {"image": np.ones(1 << 20, np.uint8)})
    assert replay.sample(2).data["image"].all() and replay.steps == 3
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10  # kibibytes on Linux


def test_memory_that_the_system_refuses_is_the_same_error():
    with pytest.raises(ValueError, match=r"needs 1048576\.00 GiB of RAM .*--replay\.on-disk"):
        Replay({"image": ((1 << 20,), np.uint8)}, 1 << 30, 2, 2)


def changed(**values):
    return step(0, 0) | values


def without(key):
    return {name: value for name, value in step(0, 0).items() if name != key}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("reward"), r"missing keys \['reward'\] and unknown keys \[\]"),
        (changed(extra=np.zeros(3)), r"missing keys \[\] and unknown keys \['extra'\]"),
        (
            changed(image=np.zeros((2, 2, 1), np.uint8)),
            r"'image' expects shape \(2, 2, 3\).*got shape \(2, 2, 1\)",
        ),
        (changed(image=np.zeros((2, 2, 3))), r"'image' expects .* dtype uint8, got .* dtype float64"),
        (changed(reward=1.0), r"'reward' expects .* dtype float32, got .* dtype float64"),
        (changed(reward=np.float32("nan")), r"worker 0 gave the reward nan"),
        (changed(reward=np.float32("inf")), r"worker 0 gave the reward inf"),
        (changed(**{"action/action": np.zeros(3, np.float32)}), r"'action/action' expects shape \(2,\)"),
    ],
)
def test_add_refuses_what_does_not_fit_and_keeps_nothing(bad, message):
    replay = make(capacity=10, workers=1, length=5)
    fill(replay, 7)
    with pytest.raises(ValueError, match=message):
        replay.add(0, bad)
    assert replay.steps == 7
    fill(replay, 5, first=7)
    assert_true_windows(replay.sample(30), replay)


@pytest.mark.parametrize("worker", [-1, 2])
def test_add_refuses_unknown_workers(worker):
    replay = make(workers=2)
    with pytest.raises(ValueError, match=f"workers 0 to 1, got a step of worker {worker}"):
        replay.add(worker, step(0, 0))
    assert replay.steps == 0


def test_sampling_too_early_is_an_error_and_breaks_nothing():
    replay = make(workers=2, length=5)
    fill(replay, 4)
    with pytest.raises(ValueError, match=r"no window of 5 steps yet; its workers have \[4, 4\] steps"):
        replay.sample(1)
    fill(replay, 1, first=4)
    assert_true_windows(replay.sample(3), replay)


def test_capacity_below_one_window_per_worker_is_refused():
    with pytest.raises(ValueError, match=r"9 steps has 4 for each of 2 workers.*window of 5.*at least 10"):
        make(capacity=9, workers=2, length=5)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make(workers=0)
    assert len(make(capacity=10, workers=2, length=5)) == 0


@pytest.mark.parametrize(
    ("kind", "message"), [(((3,), object), "dtype object"), (((0,), np.uint8), "holds nothing")]
)
def test_spec_that_cannot_be_held_is_refused(kind, message):
    with pytest.raises(ValueError, match=f"'bad'.*{message}"):
        Replay(SPEC | {"bad": kind}, 40, 1, 5)


def test_rows_divide_the_capacity_exactly():
    store = Store({"x": ((), np.uint8)}, 11, 4)
    assert store.sizes.tolist() == [3, 3, 3, 2] and store.offsets.tolist() == [0, 3, 6, 9]
    assert store.arrays["x"].shape == (11,) and store.nbytes == 11
