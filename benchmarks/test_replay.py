"""How fast the replay takes steps and gives batches: 64×64×3 images, the latents of the 12m size, 16 windows of 65.

    pytest benchmarks/test_replay.py

Seconds per call; beside each is its floor, one memcpy of the same bytes into a fresh array.
"""

import numpy as np
import pytest

from fastdream.replay import Replay
from fastdream.replay_prefetch import Prefetch

BATCH, LENGTH, CAPACITY = 16, 65, 20_000
SPEC = {
    "image": ((64, 64, 3), np.uint8),
    "reward": ((), np.float32),
    "is_first": ((), bool),
    "is_last": ((), bool),
    "is_terminal": ((), bool),
    "action/action": ((6,), np.float32),
    "deter": ((2048,), np.float16),
    "stoch": ((32,), np.uint8),
}


@pytest.fixture(scope="module")
def step():
    rng = np.random.default_rng(0)
    return {key: rng.integers(0, 2, shape).astype(dtype) for key, (shape, dtype) in SPEC.items()}


@pytest.fixture(scope="module")
def replay(step):
    """A full replay: its memory is committed."""
    replay = Replay(SPEC, CAPACITY, 4, LENGTH)
    for count in range(CAPACITY):
        replay.add(count % 4, step)
    return replay


def test_add(benchmark, replay, step):
    benchmark(replay.add, 0, step)
    assert replay.steps == CAPACITY


def test_sample(benchmark, replay):
    batch = benchmark(replay.sample, BATCH)
    assert batch.data["image"].shape == (BATCH, LENGTH, 64, 64, 3)


def test_sample_floor(benchmark, replay):
    batch = replay.sample(BATCH).data
    copy = benchmark(lambda: {key: value.copy() for key, value in batch.items()})
    assert copy.keys() == SPEC.keys()


def test_sample_disk_backed(benchmark, step, tmp_path):
    disk = Replay(SPEC, CAPACITY // 4, 4, LENGTH, directory=tmp_path)
    for count in range(CAPACITY // 4):
        disk.add(count % 4, step)
    batch = benchmark(disk.sample, BATCH)
    assert batch.data["image"].shape == (BATCH, LENGTH, 64, 64, 3)


def test_request(benchmark, replay):
    """What a prefetched sample costs the learner's thread."""
    with Prefetch(replay, BATCH, lambda data: data) as prefetch:
        benchmark.pedantic(prefetch.request, teardown=prefetch.get, rounds=100)
        assert prefetch.pending == 0


def test_update(benchmark, replay):
    batch = replay.sample(BATCH)
    values = {key: batch.data[key][:, 1:].copy() for key in ("deter", "stoch")}
    benchmark(replay.update, batch.ids[:, 1:], values)
    assert batch.ids.shape == (BATCH, LENGTH)


def test_save_of_all_latents(benchmark, replay, tmp_path):
    """A checkpoint after updates everywhere and no new steps: every latent is written, no image."""
    replay.save(tmp_path)
    ids = np.arange(0, CAPACITY, LENGTH)

    def touch():
        replay.prune(tmp_path, [replay.save(tmp_path)])
        replay.update(ids, {"stoch": np.zeros((len(ids), 32), np.uint8)})

    manifest = benchmark.pedantic(replay.save, args=(tmp_path,), setup=touch, rounds=3)
    assert len(manifest["files"]) == 2 * 4 * 5
