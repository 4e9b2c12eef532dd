"""Saving: a restored replay continues to the bit, and no save harms an older one."""

import errno
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdream import replay_files, replay_store
from fastdream.replay import CorruptReplay, Replay

from .replay_tools import assert_same, assert_true_windows, fill, make, step

SMALL = {"capacity": 41, "workers": 2, "length": 5, "chunk": 4}


def shift_latents(replay, batch=2):
    sampled = replay.sample(batch)
    values = {key: sampled.data[key] + sampled.data[key].dtype.type(1) for key in ("deter", "stoch")}
    replay.update(sampled.ids, values)


def assert_continues(replay, other, first):
    """Both replays do the same from now on: samples, queue, write-back, and steps that are added."""
    assert len(replay) == len(other) and replay.steps == other.steps
    for count in range(first, first + 12):
        for one in (replay, other):
            shift_latents(one)
            fill(one, 1, first=count)
        assert_same(replay.sample(3), other.sample(3))
    assert_same(replay.sample(100), other.sample(100))


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 19, 20, 21, 50])
@pytest.mark.parametrize("online", [False, True])
def test_restored_replay_continues_to_the_bit(tmp_path, steps, online):
    replay = make(**SMALL, online=online, seed=5)
    fill(replay, steps)
    if len(replay):
        shift_latents(replay)
    manifest = json.loads(json.dumps(replay.save(tmp_path)))
    other = make(**SMALL, online=online, seed=99)
    fill(other, 33)
    other.restore(tmp_path, manifest)
    fill(replay, 5, first=steps)
    fill(other, 5, first=steps)
    assert_continues(replay, other, steps + 5)


@given(st.lists(st.sampled_from(["add", "update", "save", "restore", "prune"]), min_size=3, max_size=25))
@settings(max_examples=25, deadline=None)
def test_any_order_of_saves_restores_and_prunes(tmp_path_factory, actions):
    path = tmp_path_factory.mktemp("replay")
    replay, count, saves = make(**SMALL), 0, []
    for action in ["add", "save", *actions, "save"]:
        if action == "add":
            fill(replay, 6, first=count)
            count += 6
        elif action == "update":
            shift_latents(replay)
        elif action == "save":
            saves.append((replay.save(path), count, replay.sample(20)))
        elif action == "restore":
            manifest, count, truth = saves[len(actions) % len(saves)]
            replay.restore(path, manifest)
            assert_same(replay.sample(20), truth)
        else:
            saves = saves[-2:]
            Replay.prune(path, [manifest for manifest, _, _ in saves])
    for manifest, _, truth in saves:
        other = make(**SMALL)
        other.restore(path, manifest)
        assert_same(other.sample(20), truth)


def test_only_what_changed_is_written(tmp_path):
    replay = make(capacity=80, workers=2, length=5, chunk=10, online=False)
    fill(replay, 25)
    replay.save(tmp_path)
    before = set(os.listdir(tmp_path))
    assert len(before) == 2 * 2 * 3
    replay.save(tmp_path)
    assert_new(tmp_path, before, set())
    replay.add(1, step(1, 25))
    replay.save(tmp_path)
    assert_new(tmp_path, before, {"data-1-2", "latents-1-2"})
    batch = replay.sample(1)
    before = set(os.listdir(tmp_path))
    replay.update(batch.ids[:, :1], {"deter": batch.data["deter"][:, :1]})
    manifest = replay.save(tmp_path)
    worker, row = int(batch.data["worker"][0, 0]), int(batch.data["count"][0, 0])
    assert_new(tmp_path, before, {f"latents-{worker}-{row // 10}"})
    Replay.prune(tmp_path, [manifest])
    assert set(os.listdir(tmp_path)) == {entry["file"] for entry in manifest["files"].values()}


def assert_new(path, before, names):
    new = set(os.listdir(path)) - before
    assert {name.rsplit("-", 1)[0] for name in new} == names


def test_restored_replay_saves_incrementally_too(tmp_path):
    replay = make(**SMALL)
    fill(replay, 30)
    manifest = replay.save(tmp_path)
    before = set(os.listdir(tmp_path))
    other = make(**SMALL)
    other.restore(tmp_path, manifest)
    assert other.save(tmp_path)["files"] == manifest["files"] and set(os.listdir(tmp_path)) == before


def test_save_elsewhere_and_after_files_were_removed_or_cut_off_is_whole(tmp_path):
    replay = make(**SMALL)
    fill(replay, 30)
    replay.save(tmp_path / "a")
    Replay.prune(tmp_path / "a", [])
    assert os.listdir(tmp_path / "a") == []
    for name in ("a", "b"):
        manifest = replay.save(tmp_path / name)
        other = make(**SMALL)
        other.restore(tmp_path / name, manifest)
        assert other.steps == 41
        assert_true_windows(other.sample(30), other)
    short = min((tmp_path / "b").iterdir())
    short.write_bytes(short.read_bytes()[:-1])
    other.restore(tmp_path / "b", replay.save(tmp_path / "b"))
    assert_true_windows(other.sample(30), other)


def test_prune_touches_no_other_files(tmp_path):
    for name in ("notes.txt", "model.safetensors", "data-1-2.safetensors"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "data-0-0-0123456789ab.safetensors").write_text("left over")
    Replay.prune(tmp_path, [])
    assert sorted(os.listdir(tmp_path)) == ["data-1-2.safetensors", "model.safetensors", "notes.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fastdream import replay_files
from fastdream.replay import Replay
import json
path = Path(sys.argv[1])
replay = Replay({"x": ((), np.int32), "deter": ((2,), np.float16)}, 60, 1, 5, chunk=10)
def fill(first, last):
    for count in range(first, last):
        replay.add(0, {"x": np.int32(count), "deter": np.full(2, count, np.float16)})
fill(0, 25)
(path / "manifest.json").write_text(json.dumps(replay.save(path / "replay")))
fill(25, 58)
write, left = replay_files.write_durably, [3]
def write_some(file, payload):
    left[0] -= 1
    if left[0] == 0:
        file.write_bytes(payload[: len(payload) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, payload)
replay_files.write_durably = write_some
replay.save(path / "replay")
"""


def test_save_that_is_killed_harms_no_older_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(os.listdir(tmp_path / "replay")) == len(manifest["files"]) + 3
    replay = Replay({"x": ((), np.int32), "deter": ((2,), np.float16)}, 60, 1, 5, chunk=10, online=True)
    replay.restore(tmp_path / "replay", manifest)
    assert replay.steps == 25
    data = replay.sample(50).data
    np.testing.assert_array_equal(data["x"] - data["x"][:, :1], np.tile(np.arange(5), (50, 1)))
    np.testing.assert_array_equal(data["deter"][..., 0], data["x"])
    manifest = replay.save(tmp_path / "replay")
    Replay.prune(tmp_path / "replay", [manifest])
    assert len(os.listdir(tmp_path / "replay")) == len(manifest["files"])


def test_disk_that_is_full_leaves_nothing_and_can_be_tried_again(tmp_path, monkeypatch):
    replay = make(**SMALL)
    fill(replay, 30)
    old = replay.save(tmp_path)
    before = set(os.listdir(tmp_path))
    fill(replay, 3, first=30)
    with monkeypatch.context() as patch:
        patch.setattr(replay_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(OSError, match="save of the replay needs") as caught:
            replay.save(tmp_path)
        assert caught.value.errno == errno.ENOSPC and set(os.listdir(tmp_path)) == before
    with monkeypatch.context() as patch:
        calls = iter([None] * 3 + [OSError(errno.ENOSPC, "No space left on device")])
        patch.setattr(replay_files.os, "fsync", lambda _: raise_if(next(calls)))
        with pytest.raises(OSError, match="the disk is full: the replay was not saved"):
            replay.save(tmp_path)
        assert set(os.listdir(tmp_path)) == before
    manifest = replay.save(tmp_path)
    other = make(**SMALL)
    other.restore(tmp_path, old)
    assert other.steps == 41
    other.restore(tmp_path, manifest)
    assert_continues(replay, other, 33)


def raise_if(error):
    if error is not None:
        raise error


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_file_is_named_and_an_older_save_still_serves(tmp_path, damage):
    replay = make(**SMALL)
    fill(replay, 30)
    old = replay.save(tmp_path)
    truth = replay.sample(20)
    fill(replay, 1, first=30)
    manifest = replay.save(tmp_path)
    new = {entry["file"] for entry in manifest["files"].values()}
    new -= {entry["file"] for entry in old["files"].values()}
    path = tmp_path / sorted(new)[0]
    payload = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(payload[:-1] if damage == "truncated" else payload[:-1] + bytes([payload[-1] ^ 1]))
    other = make(**SMALL)
    with pytest.raises(CorruptReplay, match=path.name):
        other.restore(tmp_path, manifest)
    assert len(other) == other.steps == 0
    other.restore(tmp_path, old)
    assert_same(other.sample(20), truth)


def test_replay_that_failed_to_restore_saves_what_it_holds_then(tmp_path):
    replay = make(**SMALL)
    fill(replay, 30)
    manifest = replay.save(tmp_path)
    (tmp_path / next(iter(manifest["files"].values()))["file"]).unlink()
    with pytest.raises(CorruptReplay):
        replay.restore(tmp_path, manifest)
    fill(replay, 9)
    other = make(**SMALL)
    other.restore(tmp_path, replay.save(tmp_path))
    assert other.steps == 18
    assert_true_windows(other.sample(30), other)


def test_manifest_that_contradicts_itself_is_corrupt(tmp_path):
    replay = make(**SMALL)
    fill(replay, 30)
    manifest = replay.save(tmp_path)
    manifest["counts"] = [3, 3]
    with pytest.raises(CorruptReplay, match="lists other files"):
        replay.restore(tmp_path, manifest)
    assert replay.steps == 0


@pytest.mark.parametrize(
    "other",
    [
        {"capacity": 40},
        {"workers": 1},
        {"length": 4},
        {"online": False},
        {"latents": ("deter",)},
        {"chunk": 3},
    ],
)
def test_other_settings_are_refused_with_the_difference(tmp_path, other):
    replay = make(**SMALL)
    fill(replay, 10)
    manifest = replay.save(tmp_path)
    changed = make(**(SMALL | other))
    fill(changed, 7)
    steps = changed.steps
    with pytest.raises(ValueError, match=f"does not fit this one: {next(iter(other))} was .*, is ") as caught:
        changed.restore(tmp_path, manifest)
    assert not isinstance(caught.value, CorruptReplay) and changed.steps == steps


def test_other_spec_is_refused_with_the_difference(tmp_path):
    manifest = Replay({"x": ((), np.int32)}, 9, 1, 3).save(tmp_path)
    with pytest.raises(ValueError, match=r"spec was \{'x': \[\[\], '<i4'\]\}, is \{'x': \[\[2\], '<i4'\]\}"):
        Replay({"x": ((2,), np.int32)}, 9, 1, 3).restore(tmp_path, manifest)


def test_disk_backed_replay_saves_and_restores_as_ram_does(tmp_path):
    disk, ram = make(**SMALL, directory=tmp_path / "steps"), make(**SMALL)
    fill(disk, 30)
    manifest = disk.save(tmp_path / "saves")
    ram.restore(tmp_path / "saves", manifest)
    assert_continues(ram, disk, 30)
