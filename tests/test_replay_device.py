"""A replay on a device, here a CPU that copies as late as it may: it does what the replay in RAM does, to the bit."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import config as configs
from fastdream import train
from fastdream.config import ReplayConfig
from fastdream.learner import WriteBack
from fastdream.replay import Replay
from fastdream.replay_device import STAGED, DeviceReplay, DeviceStore, Gathering
from fastdream.run import Training
from fastdream.schedule import Stop

from .replay_tools import SPEC, assert_same, fill, make, step
from .run_tools import CPU, parts_of, tiny
from .test_replay_save import SMALL, assert_continues, shift_latents
from .transfer_tools import LateCopies


def make_late(capacity: int = 40, workers: int = 2, length: int = 5, **options: Any) -> DeviceReplay:
    return DeviceReplay(SPEC, capacity, workers, length, device=CPU, copies=LateCopies(), **options)


def assert_gathered(replay: DeviceReplay, truth: Any, batch: int) -> None:
    found = replay.gather(batch)
    data = {key: x.numpy() for key, x in found.data.items()}
    assert_same(truth, type(truth)(data, found.ids))
    assert all(data[key].dtype == SPEC[key][1] for key in SPEC)


# Rings of fewer rows than wait together, so that rows are overwritten before they have gone up; and larger ones.
@pytest.mark.parametrize("capacity, workers", [(11, 2), (33, 2), (STAGED, 1), (3 * STAGED + 1, 3)])
def test_equals_the_one_in_ram(capacity: int, workers: int):
    ram, late = make(capacity, workers), make_late(capacity, workers)
    count = 0
    for steps in (5, 1, 2, STAGED // workers, STAGED, 3):
        for replay in (ram, late):
            fill(replay, steps, first=count)
        count += steps
        truth = ram.sample(6)
        assert_gathered(late, truth, 6)
        # Windows overlap: of a step that occurs several times the last one must stay.
        values = {
            "deter": np.random.default_rng(count).random((6, 5, 3)).astype(np.float16),
            "stoch": np.random.default_rng(count).integers(0, 255, (6, 5, 2), np.uint8),
        }
        ram.update(truth.ids, values)
        late.update(truth.ids, {key: torch.from_numpy(value) for key, value in values.items()})
        assert_same(ram.sample(20), late.sample(20))
    for worker in range(workers):
        ours, theirs = late.stream(worker), ram.stream(worker)
        assert all(np.array_equal(ours[key], theirs[key]) for key in SPEC)


def test_a_batch_is_the_callers_own():
    replay = make_late()
    fill(replay, 20)
    one = replay.gather(3)
    before = {key: x.clone() for key, x in one.data.items()}
    fill(replay, 20, first=20)
    replay.update(one.ids[:, :0], {"deter": torch.zeros(3, 0, 3, dtype=torch.float16)})
    assert all(torch.equal(one.data[key], before[key]) for key in before)
    truth = replay.stream(0)
    for x in replay.gather(3).data.values():
        x.zero_()
    assert all(np.array_equal(replay.stream(0)[key], truth[key]) for key in truth)


def test_overwritten_steps_are_not_rewritten():
    replay = make_late(capacity=12, workers=1)
    fill(replay, 12)
    old = replay.gather(2)
    fill(replay, 12, first=12)
    truth = replay.stream(0)
    replay.update(old.ids, {"deter": torch.ones(2, 5, 3, dtype=torch.float16)})
    assert np.array_equal(replay.stream(0)["deter"], truth["deter"])


@pytest.mark.parametrize("steps", [0, 4, 19, 50])
@pytest.mark.parametrize("kinds", [(make_late, make_late), (make, make_late), (make_late, make)])
def test_a_run_may_go_on_with_its_steps_elsewhere(tmp_path: Path, steps: int, kinds: Any):
    replay = kinds[0](**SMALL, seed=5)
    fill(replay, steps)
    if len(replay):
        shift_latents(replay)
    manifest = json.loads(json.dumps(replay.save(tmp_path)))
    other = kinds[1](**SMALL, seed=99)
    fill(other, 33)
    other.restore(tmp_path, manifest)
    for one in (replay, other):
        fill(one, 5, first=steps)
    assert_continues(replay, other, steps + 5)


def test_requested_batches_are_those_of_their_requests():
    ram, replay = make(seed=2), make_late(seed=2)
    batches, truth = Gathering(replay, 4), []
    for first in (0, 7, 14):
        for one in (ram, replay):
            fill(one, 7, first=first)
        truth.append(ram.sample(4))
        batches.request()
    assert batches.pending == 3
    for one in truth:
        found = batches.get()
        assert np.array_equal(found.ids, one.ids)
        assert all(np.array_equal(x.numpy(), one.data[key]) for key, x in found.data().items())
    batches.request()
    batches.close()
    assert batches.pending == 0


def test_latents_that_are_on_their_way_survive_a_checkpoint():
    replay = make_late(capacity=24)
    fill(replay, 12)
    batch = replay.gather(1)
    back = WriteBack(replay, LateCopies())
    values = {key: torch.full_like(batch.data[key], 7) for key in ("deter", "stoch")}
    back.put(batch.ids, values)
    other = WriteBack(replay)
    other.load_state_dict(back.state_dict())
    worker, first = int(batch.ids[0, 0]) % 2, int(batch.ids[0, 0]) // 2
    rows = slice(first, first + 5)
    assert not (replay.stream(worker)["deter"][rows] == 7).all()
    other.flush()
    found = replay.stream(worker)
    assert (found["deter"][rows] == 7).all() and (found["stoch"][rows] == 7).all()
    assert np.array_equal(np.delete(found["deter"], np.r_[rows], 0), np.delete(
        np.stack([step(worker, i)["deter"] for i in range(12)]), np.r_[rows], 0
    ))  # fmt: skip


def test_a_run_learns_the_same_wherever_its_steps_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    states = []
    kind = partial(DeviceReplay, device=CPU, copies=LateCopies())
    for make_replay in (Replay, kind):
        monkeypatch.setattr("fastdream.build.replay_kind", lambda *_, kind=make_replay: kind)
        parts = parts_of(tiny(steps=60, ops="reference"), tmp_path / str(len(states)), "real")
        training = Training(parts=parts, config=tiny(steps=60, ops="reference"))
        training.run(Stop())
        training.close()
        parts.driver.close()
        assert training.loop.learner.updates > 5
        states.append((training.loop.agent.state_dict()["nets"], training.loop.replay.sample(4)))
    (ours, batch), (theirs, other) = states
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert_same(batch, other)


def test_what_does_not_fit_is_named():
    replay = make_late()
    fill(replay, 20)
    batch = replay.gather(2)
    for value, why in [
        (torch.zeros(2, 5, 4, dtype=torch.float16), r"'deter' expects shape \(2, 5, 3\) .* got shape \(2, 5, 4\)"),
        (torch.zeros(2, 5, 3), "dtype float16, got .* float32"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=why):
            replay.update(batch.ids, {"deter": value})
    with pytest.raises(ValueError, match="'worker' expects"):
        replay.add(0, step(0, 20) | {"worker": np.int64(0)})
    with pytest.raises(ValueError, match=r"'x' has dtype uint32.*without --replay\.on-device"):
        DeviceStore({"x": ((), np.uint32)}, 10, 1, CPU, LateCopies())


def test_too_little_memory_is_said_with_what_fits(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 8 << 30))
    with pytest.raises(
        ValueError, match=r"needs 4\.00 GiB of memory of cpu.*1\.00 GiB are.*up to 819\)"
    ) as caught:
        DeviceReplay({"x": ((1 << 20,), np.uint8)}, 4096, 1, 2, device=CPU, copies=LateCopies())
    assert "without --replay.on-device" in str(caught.value)


def test_says_where_it_is():
    assert "2,000 bytes = 0.00 GiB on cpu; 1 worker," in DeviceReplay(
        {"x": ((2000,), np.uint8)}, 9, 1, 2, device=CPU, copies=LateCopies()
    ).describe()  # fmt: skip


def test_refused_before_anything_is_there(tmp_path: Path):
    config = tiny(logdir=str(tmp_path / "run"), device="cpu", replay=dict(on_device=True))
    with pytest.raises(ValueError, match="--replay.on-device needs a CUDA device, this is cpu"):
        train.train(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="one place"):
        ReplayConfig(on_disk=True, on_device=True)


def test_where_steps_are_may_change_when_a_run_goes_on():
    here = tiny()
    for place in ("on_device", "on_disk"):
        assert configs.differences(replace(here, replay=replace(here.replay, **{place: True})), here) == []
    assert configs.differences(replace(here, replay=replace(here.replay, online=False)), here) != []
