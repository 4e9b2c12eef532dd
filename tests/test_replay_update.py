"""Write-back of latents: exactly to their steps, and to nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .replay_tools import assert_true_windows, every_step, fill, make, step


def latents(shape, value):
    return {"deter": np.full((*shape, 3), value, np.float16), "stoch": np.full((*shape, 2), value, np.uint8)}


def test_update_reaches_its_steps_and_no_other():
    replay = make(capacity=41, workers=3, length=5)
    fill(replay, 30)
    before = every_step(replay)
    ids = replay.sample(4).ids[:, 1:]
    marks = np.arange(ids.size).reshape(ids.shape) % 200
    values = {
        "deter": np.repeat(marks[..., None], 3, -1).astype(np.float16),
        "stoch": np.repeat(marks[..., None], 2, -1).astype(np.uint8),
    }
    replay.update(ids, values)
    written = dict(zip(ids.ravel().tolist(), marks.ravel().tolist(), strict=True))  # the last of each stays
    after = every_step(replay)
    assert after.keys() == before.keys() and written.keys() < after.keys()
    for one, seen in after.items():
        deter, stoch = before[one]["deter"], before[one]["stoch"]
        if one in written:
            deter, stoch = [written[one]] * 3, [written[one]] * 2
        np.testing.assert_array_equal(seen["deter"], deter)
        np.testing.assert_array_equal(seen["stoch"], stoch)
        assert (seen["worker"], seen["count"]) == (before[one]["worker"], before[one]["count"])


@pytest.mark.parametrize("more", [0, 1, 4, 9, 10, 11, 50])
def test_update_skips_what_was_overwritten(more):
    replay = make(capacity=10, workers=1, length=10)
    fill(replay, 10)
    ids = replay.sample(1).ids
    fill(replay, more, first=10)
    replay.update(ids, latents(ids.shape, 200))
    data = replay.sample(1).data
    fresh = data["count"][0] >= 10
    assert fresh.sum() == min(more, 10)
    np.testing.assert_array_equal(data["deter"][0, :, 0] == 200, ~fresh)
    truth = [step(0, count)["stoch"] for count in data["count"][0, fresh].tolist()]
    np.testing.assert_array_equal(data["stoch"][0, fresh], np.reshape(truth, (-1, 2)))


@given(st.lists(st.tuples(st.sampled_from("aus"), st.integers(0, 2)), min_size=5, max_size=80))
@settings(max_examples=60, deadline=None)
def test_any_history_agrees_with_a_plain_dictionary(history):
    """Steps, ids and latents against an oracle that keeps everything in a dictionary."""
    replay, oracle, counts, batches = make(capacity=26, workers=3, length=4), {}, [0, 0, 0], []
    for tick, (action, worker) in enumerate(history * 2):
        if action == "a" or not len(replay):
            one = step(worker, counts[worker])
            replay.add(worker, one)
            oracle[worker, counts[worker]] = one["deter"]
            counts[worker] += 1
        elif action == "s" or not batches:
            batch = replay.sample(2)
            batches.append(batch)
            names = zip(
                batch.data["worker"].ravel().tolist(), batch.data["count"].ravel().tolist(), strict=True
            )
            truth = [oracle[name] for name in names]
            np.testing.assert_array_equal(batch.data["deter"].reshape(-1, 3), truth)
        else:
            batch = batches[worker % len(batches)]
            replay.update(batch.ids, latents(batch.ids.shape, tick))
            for name in zip(batch.data["worker"].ravel(), batch.data["count"].ravel(), strict=True):
                oracle[int(name[0]), int(name[1])] = np.full(3, tick, np.float16)
    assert replay.steps == sum(min(pair) for pair in zip(counts, (9, 9, 8), strict=True))


def test_update_of_one_key_leaves_the_other():
    replay = make(capacity=5, workers=1, length=5)
    fill(replay, 5)
    ids = replay.sample(1).ids
    replay.update(ids, {"deter": latents(ids.shape, 9)["deter"]})
    data = replay.sample(1).data
    assert (data["deter"] == 9).all()
    np.testing.assert_array_equal(data["stoch"][0, :, 1], range(5))


def test_update_keeps_no_reference_to_its_values():
    replay = make(capacity=5, workers=1, length=5)
    fill(replay, 5)
    ids = replay.sample(1).ids
    values = latents(ids.shape, 3)
    replay.update(ids, values)
    values["deter"][...] = 4
    assert (replay.sample(1).data["deter"] == 3).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": np.zeros((1, 5), np.float32)}, r"may write \['deter', 'stoch'\], got \['reward'\]"),
        ({"deter": np.zeros((1, 5, 3), np.float32)}, r"'deter' expects shape \(1, 5, 3\) and dtype float16"),
        ({"deter": np.zeros((1, 4, 3), np.float16)}, r"got shape \(1, 4, 3\)"),
    ],
)
def test_update_refuses_what_does_not_fit(values, message):
    replay = make(capacity=5, workers=1, length=5)
    fill(replay, 5)
    batch = replay.sample(1)
    with pytest.raises(ValueError, match=message):
        replay.update(batch.ids, values)
    assert_true_windows(replay.sample(3), replay)


@pytest.mark.parametrize("id_", [-1, 5, 10**15])
def test_update_refuses_ids_of_no_step(id_):
    replay = make(capacity=5, workers=1, length=5)
    fill(replay, 5)
    with pytest.raises(ValueError, match=f"the id {id_}, which no step has"):
        replay.update(np.array([[id_]]), latents((1, 1), 0))
    assert_true_windows(replay.sample(3), replay)


def test_replay_without_latents_refuses_updates():
    replay = make(capacity=5, workers=1, length=5, latents=())
    fill(replay, 5)
    ids = replay.sample(1).ids
    with pytest.raises(ValueError, match="may write"):
        replay.update(ids, latents(ids.shape, 0))
    replay.update(ids, {})
    assert_true_windows(replay.sample(3), replay)
