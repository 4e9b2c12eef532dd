"""Threads: samples are whole whoever writes meanwhile, and prefetched ones follow from the order of calls alone."""

import threading
import time

import numpy as np
import pytest

from fastdream.replay_gate import Gate
from fastdream.replay_prefetch import Prefetch

from .replay_tools import assert_same, assert_true_windows, fill, make, step


def test_no_torn_windows_with_adding_and_sampling_threads():
    replay = make(capacity=24, workers=2, length=8)
    fill(replay, 12)
    stop, failed, samples = threading.Event(), [], [0, 0]

    def sampler(number):
        try:
            while not stop.is_set():
                batch = replay.sample(3)
                assert_true_windows(batch, replay)
                replay.update(batch.ids, {key: batch.data[key] for key in ("deter", "stoch")})
                samples[number] += 1
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=sampler, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    fill(replay, 1500, first=12)
    deadline = time.monotonic() + 20
    while min(samples) < 3 and not failed and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == [] and min(samples) >= 3
    assert replay.sample(1).ids.max() <= 2 * 1512


def test_prefetched_batches_equal_samples_at_the_time_of_the_request():
    plain, source = make(capacity=24, seed=2), make(capacity=24, seed=2)
    release = threading.Event()

    def slowly(data):
        release.wait(10)
        return data

    with Prefetch(source, 4, slowly) as prefetch:
        for first in range(12, 60, 6):
            fill(plain, 6, first=first)
            fill(source, 6, first=first)
            truth = plain.sample(4)
            prefetch.request()
            fill(plain, 6, first=first + 6)
            fill(source, 6, first=first + 6)
            values = {"deter": np.full((4, 5, 3), first, np.float16)}
            plain.update(truth.ids, values)
            source.update(truth.ids, values)
            release.set()
            assert_same(prefetch.get(), truth)
            release.clear()
    assert_same(plain.sample(30), source.sample(30))


def test_requests_are_answered_in_order_and_off_the_callers_thread():
    plain, source = make(seed=2), make(seed=2)
    fill(plain, 30)
    fill(source, 30)
    with Prefetch(source, 3, lambda data: (threading.current_thread().name, data["count"])) as prefetch:
        for _ in range(5):
            prefetch.request()
        assert prefetch.pending == 5
        for left in range(4, -1, -1):
            (name, count), ids = prefetch.get()
            truth = plain.sample(3)
            np.testing.assert_array_equal(count, truth.data["count"])
            np.testing.assert_array_equal(ids, truth.ids)
            assert prefetch.pending == left and name == "replay-prefetch"


def test_errors_in_the_thread_surface_in_get_and_the_next_request_works():
    replay = make()
    fill(replay, 30)
    fails = iter([True, False])

    def convert(data):
        if next(fails):
            raise ZeroDivisionError("bad conversion")
        return data

    with Prefetch(replay, 2, convert) as prefetch:
        prefetch.request()
        prefetch.request()
        with pytest.raises(ZeroDivisionError, match="bad conversion"):
            prefetch.get()
        assert_true_windows(prefetch.get(), replay)
    fill(replay, 1, first=30)  # nothing holds the replay


def test_error_while_copying_lets_the_replay_go(monkeypatch):
    replay = make()
    fill(replay, 30)
    with Prefetch(replay, 2, lambda data: data) as prefetch:
        with monkeypatch.context() as patch:
            patch.setattr(replay._store, "read", lambda *_: 1 / 0)
            prefetch.request()
            with pytest.raises(ZeroDivisionError):
                prefetch.get()
        replay.add(0, step(0, 30))
        prefetch.request()
        assert_true_windows(prefetch.get(), replay)


def test_request_to_an_empty_replay_is_an_error_at_once():
    replay = make()
    with Prefetch(replay, 2, lambda data: data) as prefetch:
        with pytest.raises(ValueError, match="no window"):
            prefetch.request()
        assert prefetch.pending == 0
        fill(replay, 10)
        prefetch.request()
        assert_true_windows(prefetch.get(), replay)


def test_close_drops_what_is_requested_and_ends_the_thread():
    replay = make()
    fill(replay, 30)
    prefetch = Prefetch(replay, 2, lambda data: data)
    prefetch.request()
    prefetch.close()
    assert not prefetch._thread.is_alive() and prefetch.pending == 0
    fill(replay, 1, first=30)
    with pytest.raises(AssertionError, match="after close"):
        prefetch.request()
    with pytest.raises(AssertionError, match="without request"):
        prefetch.get()


def test_writer_waits_for_readers_and_goes_before_new_ones():
    gate, order = Gate(), []

    def write():
        with gate.write():
            order.append("write")

    def read():
        with gate.enter():
            order.append("late read")
        gate.leave()

    with gate.enter():
        order.append("read")
    writer, reader = threading.Thread(target=write), threading.Thread(target=read)
    writer.start()
    while gate._writers == 0:
        time.sleep(0.001)
    reader.start()
    assert order == ["read"]
    gate.leave()
    writer.join()
    reader.join()
    assert order == ["read", "write", "late read"]


def test_read_that_fails_to_begin_holds_nothing():
    gate = Gate()
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    with gate.write():
        assert gate._readers == 0
    with pytest.raises(AssertionError):
        gate.leave()
