"""Replay: what is kept, what is sampled, and that nothing else ever is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdream.replay import Replay

from .replay_tools import SPEC, assert_true_windows, every_step, expected, fill, make, step

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 23)).map(
    lambda drawn: {"workers": drawn[0], "length": drawn[1], "capacity": drawn[0] * drawn[1] + drawn[2]}
)


@given(shapes, st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_capacity_is_exact(shape, steps):
    replay = make(**shape)
    fill(replay, steps)
    workers, length, capacity = shape["workers"], shape["length"], shape["capacity"]
    rings = [capacity // workers + (worker < capacity % workers) for worker in range(workers)]
    assert replay.capacity == sum(rings) == capacity
    assert replay.steps == sum(min(steps, ring) for ring in rings)
    assert len(replay) == sum(max(0, min(steps, ring) - length + 1) for ring in rings)


@given(shapes, st.lists(st.integers(0, 3), min_size=1, max_size=150), st.booleans())
@settings(max_examples=60, deadline=None)
def test_windows_are_true_whatever_the_order_of_workers(shape, order, online):
    replay = make(**shape, online=online)
    counts = [0] * replay.workers
    for position, worker in enumerate(order):
        worker %= replay.workers
        replay.add(worker, step(worker, counts[worker]))
        counts[worker] += 1
        if position % 5 == 0 and len(replay):
            assert_true_windows(replay.sample(3), replay)
    assert replay.steps <= replay.capacity


@pytest.mark.parametrize("steps", [12, 33, 100])
def test_every_stored_window_is_sampled_and_no_other(steps):
    replay = make(capacity=31, workers=2, length=5, online=False)
    fill(replay, steps)
    data = replay.sample(2000).data
    seen = set(zip(data["worker"][:, 0].tolist(), data["count"][:, 0].tolist(), strict=True))
    rings = (16, 15)
    truth = {
        (worker, start)
        for worker, ring in enumerate(rings)
        for start in range(max(0, steps - ring), steps - replay.length + 1)
    }
    assert seen == truth and len(truth) == len(replay)


@pytest.mark.parametrize("steps", [0, 3, 15, 16, 20, 33])
def test_a_stream_is_all_that_is_kept_oldest_first(steps):
    """Before a ring is full, where it wraps around, and after."""
    replay = make(capacity=31, workers=2)
    fill(replay, steps)
    for worker, ring in enumerate((16, 15)):
        stream = replay.stream(worker)
        assert stream.keys() == SPEC.keys() and (stream["worker"] == worker).all()
        assert stream["count"].tolist() == list(range(max(0, steps - ring), steps))
        stream["count"][:] = -1
        assert (replay.stream(worker)["count"] >= 0).all(), "it is no copy"


def test_sampling_is_uniform_over_windows_of_unequal_workers():
    replay = make(capacity=60, workers=3, length=4, online=False, seed=1)
    for worker, steps in enumerate((5, 14, 40)):
        for count in range(steps):
            replay.add(worker, step(worker, count))
    ids = replay.sample(29 * 400).ids[:, 0]
    observed = np.unique(ids, return_counts=True)[1]
    assert len(observed) == len(replay) == 2 + 11 + 17
    mean = ids.size / len(observed)
    chi_squared = ((observed - mean) ** 2 / mean).sum()
    assert chi_squared < 58.3, chi_squared  # 29 degrees of freedom: exceeded once in a thousand seeds


def test_flags_of_the_copy_mark_the_start_and_abandoned_episodes():
    replay = make(capacity=60, workers=1, length=8, online=False)
    fill(replay, 60)
    data = replay.sample(64).data
    assert data["is_first"][:, 0].all()
    np.testing.assert_array_equal(data["is_first"][:, 1:], data["count"][:, 1:] % 7 == 0)
    np.testing.assert_array_equal(data["is_last"][:, :-1], data["count"][:, :-1] % 7 == 6)
    abandoned = (data["count"] // 7 % 3 == 2) & (data["count"] % 7 == 6)
    assert abandoned[:, :-1].any() and not data["is_terminal"][abandoned].any()
    assert not data["is_last"][:, -1][abandoned[:, -1]].any()  # nothing is known of what follows a window


def test_flags_in_the_store_stay_as_they_were_added():
    replay = make(capacity=20, workers=1, length=20, online=False)
    fill(replay, 20, first=1)
    assert replay.sample(1).data["is_first"][0, 0]
    replay.add(0, step(0, 21))
    fill(replay, 20, first=22)
    again = replay.sample(1).data
    np.testing.assert_array_equal(again["is_first"][0, 1:], expected(0, 22, 20)["is_first"][1:])
    held = {key: replay._store.arrays[key] for key in ("is_first", "is_last")}
    truth = [step(0, count) for count in range(22, 42)]
    order = np.argsort(replay._store.arrays["count"])
    for key, array in held.items():
        np.testing.assert_array_equal(array[order], [one[key] for one in truth])


def test_batches_share_memory_with_nothing():
    replay = make(capacity=12, workers=1, length=5, online=False)
    fill(replay, 12)
    first, second = replay.sample(8), replay.sample(8)
    kept = {key: value.copy() for key, value in second.data.items()}
    for key, value in first.data.items():
        assert not np.shares_memory(value, replay._store.arrays[key])
        assert not np.shares_memory(value, second.data[key])
        assert value.flags.c_contiguous and value.flags.writeable and value.base is None
        value[...] = 1
    for key, value in second.data.items():
        np.testing.assert_array_equal(value, kept[key])
    assert_true_windows(second, replay)
    assert_true_windows(replay.sample(20), replay)


def test_added_steps_are_copied():
    replay = make(capacity=5, workers=1, length=5)
    steps = [{key: np.array(value) for key, value in step(0, count).items()} for count in range(5)]
    for one in steps:
        replay.add(0, one)
        for value in one.values():
            value[...] = 0
    assert_true_windows(replay.sample(2), replay)


def test_actions_stay_with_their_observations_when_a_batch_is_shifted_in_place():
    replay = make(capacity=300, workers=1, length=65, online=False)
    fill(replay, 300)
    for _ in range(3):
        data = replay.sample(16).data
        data["action/action"][:, 1:] = data["action/action"][:, :-1]
        assert_true_windows(replay.sample(16), replay)


def test_same_seed_same_samples():
    one, two, other = make(seed=3), make(seed=3), make(seed=4)
    for replay in (one, two, other):
        fill(replay, 30)
    ids = [[replay.sample(8).ids for _ in range(4)] for replay in (one, two, other)]
    np.testing.assert_array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], ids[2])


def test_online_windows_come_first_once_and_in_order():
    replay = make(capacity=100, workers=2, length=5)
    fill(replay, 23)
    starts = [replay.sample(1).data for _ in range(8)]
    got = [(int(data["worker"][0, 0]), int(data["count"][0, 0])) for data in starts]
    assert got == [(worker, start) for start in (0, 5, 10, 15) for worker in (0, 1)]
    later = {one for _ in range(40) for one in replay.sample(10).ids[:, 0].tolist()}
    assert len(later) == len(replay)  # uniform from now on
    fill(replay, 2, first=23)
    batch = replay.sample(4)
    assert batch.data["count"][:2, 0].tolist() == [20, 20]
    assert batch.data["worker"][:2, 0].tolist() == [0, 1]


def test_online_windows_are_handed_out_while_they_are_whole():
    replay = make(capacity=10, workers=1, length=5)
    fill(replay, 10)
    assert replay.sample(2).data["count"][:, 0].tolist() == [0, 5]  # the first begins with the oldest step


def test_online_windows_that_are_overwritten_are_dropped():
    replay = make(capacity=12, workers=1, length=5)
    fill(replay, 100)
    stored = range(88, 96)
    assert [int(replay.sample(1).data["count"][0, 0]) for _ in range(2)] == [90, 95]
    assert all(int(replay.sample(1).data["count"][0, 0]) in stored for _ in range(20))
    assert len(replay._windows._queue) == 0


def test_online_queue_that_nobody_reads_stays_small():
    replay = make(capacity=40, workers=2, length=4)
    fill(replay, 400)
    assert len(replay._windows._queue) <= 2 * 40 // 4


def test_offline_has_no_queue():
    replay = make(capacity=100, workers=1, length=5, online=False, seed=0)
    fill(replay, 50)
    starts = [int(replay.sample(1).data["count"][0, 0]) for _ in range(10)]
    assert starts != sorted(starts) and len(replay._windows._queue) == 0


def test_ids_name_steps_for_ever():
    replay = make(capacity=30, workers=3, length=5, online=False)
    fill(replay, 8)
    early = every_step(replay)
    fill(replay, 4, first=8)
    late = every_step(replay)
    assert len(set(early)) == 24 and late.keys() - early.keys()
    for one in early.keys() & late.keys():
        assert (early[one]["worker"], early[one]["count"]) == (late[one]["worker"], late[one]["count"])
    named = {(int(seen["worker"]), int(seen["count"])) for seen in (early | late).values()}
    assert len(named) == len(early | late)


def test_keys_of_any_shape_and_dtype_survive():
    spec = {
        "a": ((), np.float64),
        "b": ((2, 3), np.int64),
        "c": ((1,), np.uint16),
        "d": ((0x11,), np.int8),
        "e": ((), np.dtype("float16")),
    }
    replay = Replay(spec, 4, 1, 2)
    rng = np.random.default_rng(0)
    steps = [
        {key: rng.integers(0, 99, shape).astype(dtype) for key, (shape, dtype) in spec.items()} for _ in "123"
    ]
    for one in steps:
        replay.add(0, one)
    data = replay.sample(1).data
    for key in spec:
        np.testing.assert_array_equal(data[key][0], [steps[0][key], steps[1][key]])
    assert data["e"].dtype == np.float16 and SPEC.keys().isdisjoint(data)
