"""Windows within one episode: which there are, how often each is drawn, and what a saved replay goes on with."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastdream.replay import CorruptReplay, Replay

from .replay_tools import EPISODE, SPEC, fill, make, step


def episodes(*lengths: int, windows: str, length: int = 4, capacity: int = 200, **options: int) -> Replay:
    """One worker's episodes of these lengths, their steps numbered from 0 on."""
    replay = Replay(SPEC, capacity, 1, length, online=False, windows=windows, **options)  # type: ignore[arg-type]
    count = 0
    for total in lengths:
        for i in range(total):
            replay.add(
                0, step(0, count) | {"is_first": np.bool_(i == 0), "is_last": np.bool_(i == total - 1)}
            )
            count += 1
    return replay


def starts(replay: Replay, draws: int = 6000) -> Counter[int]:
    return Counter(replay.sample(draws).ids[:, 0].tolist())


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        # Episodes of 6 and 5 steps hold 3 and 2 windows of 4.
        ("episode", {0: 1 / 6, 1: 1 / 6, 2: 1 / 6, 6: 1 / 4, 7: 1 / 4}),
        # Starts 0 to 6 and 0 to 5 are drawn, of which those beyond 2 and 1 mean these.
        ("ends", {0: 1 / 14, 1: 1 / 14, 2: 5 / 14, 6: 1 / 12, 7: 5 / 12}),
        ("not_last", {0: 1 / 4, 1: 1 / 4, 6: 1 / 2}),
    ],
)
def test_how_often_each_start_is_drawn(windows: str, expected: dict[int, float]) -> None:
    replay = episodes(6, 3, 5, windows=windows)
    expected = {start if start < 6 else start + 3: p for start, p in expected.items()}
    observed, draws = starts(replay), 6000
    assert observed.keys() == expected.keys()
    for start, p in expected.items():
        assert abs(observed[start] - draws * p) < 5 * (draws * p * (1 - p)) ** 0.5, (start, observed)
    assert len(replay) == (len(expected) if windows != "not_last" else 3)


def test_an_episode_counts_once_it_is_finished() -> None:
    replay = episodes(windows="episode")
    for count in range(6):
        replay.add(0, step(0, count) | {"is_first": np.bool_(count == 0), "is_last": np.False_})
    assert len(replay) == 0
    with pytest.raises(ValueError, match="no finished episode of 4 steps.*--replay.windows stream"):
        replay.sample(1)
    replay.add(0, step(0, 6) | {"is_first": np.True_, "is_last": np.False_})  # the one before was abandoned
    assert len(replay) == 3 and set(starts(replay, 300)) == {0, 1, 2}


def test_an_episode_goes_with_its_first_step() -> None:
    replay = episodes(10, 10, 10, windows="episode", capacity=25)
    assert len(replay) == 14 and min(starts(replay)) == 10
    whole = episodes(10, 10, windows="episode", capacity=20)  # as that of a dataset, full to the last step
    assert len(whole) == 14 and min(starts(whole)) == 0
    fresh = episodes(10, 10, 10, 6, windows="episode", capacity=25)
    assert min(starts(fresh)) == 20


def test_an_episode_that_its_ring_cannot_hold_is_warned_about_once() -> None:
    episodes(25, 25, windows="ends", capacity=25)
    with pytest.warns(UserWarning, match="longer than the 25 steps.*--replay.capacity") as caught:
        replay = episodes(26, 40, 10, windows="episode", capacity=25)
    assert len(caught) == 1 and len(replay) == 7


def test_every_window_is_within_one_episode() -> None:
    replay = make(windows="episode", online=False, length=4)
    fill(replay, 40)
    data = replay.sample(500).data
    assert not data["is_first"][:, 1:].any() and data["is_first"][:, 0].all()
    assert (data["count"][:, 0] // EPISODE == data["count"][:, -1] // EPISODE).all()
    assert set(np.unique(data["worker"])) == {0, 1}


def test_saved_and_restored_it_draws_the_same(tmp_path: Path) -> None:
    def filled() -> Replay:
        replay = make(windows="ends", online=False, length=4, seed=3)
        fill(replay, 33)
        return replay

    replay, other = filled(), make(windows="ends", online=False, length=4)
    replay.sample(5)
    assert len(other) == 0  # which is known from then on, until it is restored
    saved = replay.save(tmp_path)
    other.restore(tmp_path, saved)
    for first in (33, 42):
        assert len(replay) == len(other) > 0
        assert np.array_equal(replay.sample(50).ids, other.sample(50).ids)
        for one in (replay, other):
            fill(one, 9, first=first)
    stream = make(online=False, length=4)
    with pytest.raises(ValueError, match="windows was ends, is None"):
        stream.restore(tmp_path, replay.save(tmp_path))
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        file.unlink()
    with pytest.raises(CorruptReplay):
        other.restore(tmp_path, saved)
    assert len(other) == other.steps == 0


def test_the_online_queue_goes_with_streams_only() -> None:
    with pytest.raises(ValueError, match="'ends' lie within episodes.*--replay.no-online"):
        make(windows="ends", online=True)
