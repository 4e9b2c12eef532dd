"""What the replay tests share: a small spec, and steps whose every value tells which step it is."""

import numpy as np

from fastdream.replay import Batch, Replay

SPEC = {
    "image": ((2, 2, 3), np.uint8),
    "worker": ((), np.int32),
    "count": ((), np.int32),
    "reward": ((), np.float32),
    "is_first": ((), bool),
    "is_last": ((), bool),
    "is_terminal": ((), bool),
    "action/action": ((2,), np.float32),
    "deter": ((3,), np.float16),
    "stoch": ((2,), np.uint8),
}
EPISODE = 7


def make(capacity=40, workers=2, length=5, **options):
    """A small replay of SPEC."""
    return Replay(SPEC, capacity, workers, length, **options)


def step(worker, count):
    """Step `count` of a worker, in episodes of EPISODE steps; every third is abandoned without is_last."""
    last = count % EPISODE == EPISODE - 1 and count // EPISODE % 3 != 2
    return {
        "image": np.full((2, 2, 3), (17 * worker + count) % 256, np.uint8),
        "worker": np.int32(worker),
        "count": np.int32(count),
        "reward": np.float32(count / 2),
        "is_first": np.bool_(count % EPISODE == 0),
        "is_last": np.bool_(last),
        "is_terminal": np.bool_(last and worker % 2 == 0),
        "action/action": np.array([worker, -count], np.float32),
        "deter": np.array([count % 1024, worker, 0.5], np.float16),
        "stoch": np.array([worker, count % 256], np.uint8),
    }


def fill(replay, steps, first=0):
    """Add steps `first` … `first + steps - 1` of every worker."""
    for count in range(first, first + steps):
        for worker in range(replay.workers):
            replay.add(worker, step(worker, count))


def expected(worker, start, length):
    """The window that a sample of these steps must be, flags included."""
    steps = [step(worker, count) for count in range(start, start + length)]
    data = {key: np.stack([one[key] for one in steps]) for key in SPEC}
    data["is_last"][:-1] |= data["is_first"][1:]
    data["is_first"][0] = True
    return data


def assert_true_windows(batch: Batch, replay: Replay):
    """Each window holds exactly the steps of one worker that follow its first one, in every key."""
    for window in range(len(batch.ids)):
        worker, start = int(batch.data["worker"][window, 0]), int(batch.data["count"][window, 0])
        truth = expected(worker, start, replay.length)
        for key in SPEC:
            np.testing.assert_array_equal(batch.data[key][window], truth[key], err_msg=key)
            assert batch.data[key].dtype == SPEC[key][1], key


def assert_same(left: Batch, right: Batch):
    """Two batches are equal to the bit."""
    np.testing.assert_array_equal(left.ids, right.ids)
    assert left.data.keys() == right.data.keys()
    for key in left.data:
        np.testing.assert_array_equal(left.data[key], right.data[key], err_msg=key)


def every_step(replay: Replay, batches=60, batch=8):
    """id → {key: value} of all steps that many samples have shown."""
    seen = {}
    for _ in range(batches):
        sampled = replay.sample(batch)
        for window, ids in enumerate(sampled.ids):
            for index, one in enumerate(ids.tolist()):
                seen[one] = {
                    key: sampled.data[key][window, index] for key in ("worker", "count", "deter", "stoch")
                }
    return seen
