"""Batches of environments: layout, equality of serial and parallel, statistics, and coming back to a state."""

import re
import warnings

import numpy as np
import pytest

from fastdream import lane
from fastdream.driver import Driver, random_actions
from fastdream.envs import make
from fastdream.envs.base import EnvError
from fastdream.envs.dummy import Dummy
from fastdream.episodes import Tally
from fastdream.lane import episode_seed

from .driver_tools import alike, driver, roll


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_an_episode_s_end_is_a_step_and_the_next_observation_begins_another(rng):
    with driver("dummy_vector", n=3, length=4) as drv:
        obs = [drv.recv(), *roll(drv, 11, rng)]
    for t, one in enumerate(obs):
        assert one["is_first"].tolist() == [t % 5 == 0] * 3
        assert one["is_last"].tolist() == one["is_terminal"].tolist() == [t % 5 == 4] * 3
        assert not one["reward"][one["is_first"]].any()
        assert (
            one["vector"].shape == (3, 4)
            and one["reward"].dtype == np.float32
            and one["is_last"].dtype == bool
        )
        assert not any(key.startswith("log/") for key in one)


@pytest.mark.parametrize("task", ["gym_CartPole-v1", "dummy_mixed"])
def test_serial_and_parallel_go_through_the_same_episodes(task):
    seen, episodes = [], []
    for parallel in (False, True):
        with driver(task, n=2, parallel=parallel, seed=5) as drv:
            seen.append([drv.recv(), *roll(drv, 45, np.random.default_rng(1))])
            episodes.append(drv.episodes())
    assert alike(*seen)
    assert episodes[0] == episodes[1] and len(episodes[0]) > 2


def test_runs_repeat_with_their_seed_only_and_no_two_environments_are_alike(rng):
    def first(seed):
        with driver("gym_CartPole-v1", n=2, seed=seed) as drv:
            return drv.recv()["vector"]

    assert np.array_equal(first(0), first(0)) and not np.array_equal(first(0), first(1))
    assert not np.array_equal(first(0)[0], first(0)[1])
    seeds = {episode_seed(s, w, e) for s in range(5) for w in range(5) for e in range(5)}
    assert len(seeds) == 125 and max(seeds) < 2**31


def test_batches_share_no_memory_with_the_driver(rng):
    for parallel in (False, True):
        with driver("dummy_vector", parallel=parallel) as drv:
            first = drv.recv()
            kept = {key: value.copy() for key, value in first.items()}
            roll(drv, 3, rng)
            assert alike([first], [kept])
            last = drv.recv()
            last["vector"][:] = 9
            assert (drv.recv()["vector"] < 9).all()


def test_recv_gives_the_same_again_until_something_is_sent(rng):
    with driver("dummy_vector", length=3) as drv:
        obs = [drv.recv(), drv.recv(), *roll(drv, 3, rng)]
        again = drv.recv()
        assert alike([obs[0]], [obs[1]]) and alike([obs[-1]], [again])
        assert [e.length for e in drv.episodes()] == [3, 3] and drv.episodes() == []


def test_episodes_carry_scores_and_sums_maxima_and_last_values_of_logs(rng):
    with driver("dummy_vector", n=1, length=6) as drv:
        drv.recv()
        obs = roll(drv, 6, rng)
        (episode,) = drv.episodes()
    cues = [int(o["vector"][0].argmax()) for o in obs]
    assert episode.score == pytest.approx(sum(float(o["reward"][0]) for o in obs))
    assert (episode.worker, episode.length, episode.crashed, episode.frames) == (0, 6, False, None)
    assert episode.extras == {"cue/sum": sum(cues), "cue/max": max(cues), "cue/last": cues[-1]}


@pytest.mark.parametrize("parallel", [False, True])
def test_the_first_environment_s_episodes_are_recorded_on_request(parallel, rng):
    with driver("dummy_image", length=4, size=16, parallel=parallel) as drv:
        drv.recv()
        drv.record = True
        obs = roll(drv, 9, rng)
        before, recorded = [e for e in drv.episodes() if e.worker == 0]
    assert before.frames is None
    assert recorded.frames.shape == (5, 16, 16, 3)
    assert np.array_equal(recorded.frames[1:], np.stack([o["image"][0] for o in obs[5:]]))


def test_videos_end_where_they_would_be_too_long(rng, monkeypatch):
    monkeypatch.setattr(lane, "LONGEST_VIDEO", 3)
    with driver("dummy_image", n=1, length=6, size=16) as drv:
        drv.record = True
        drv.recv()
        roll(drv, 6, rng)
        (episode,) = drv.episodes()
    assert episode.length == 6 and len(episode.frames) == 3


def test_the_largest_of_negative_numbers_is_one_of_them():
    tally = Tally()
    for value in (-3.0, -2.0, -5.0):
        tally.add({"reward": 0.0, "is_first": False, "log/depth": value})
    assert tally.extras == {"depth/sum": -10.0, "depth/max": -2.0, "depth/last": -5.0}


@pytest.mark.parametrize(
    ("give", "shape", "said"),
    [
        (lambda _: np.full((8, 9, 4), 7, np.uint8), (4, 8, 9, 3), ""),
        (lambda _: np.full((8, 9), 7, np.uint8), (4, 8, 9, 1), ""),
        (
            lambda _: np.full((8, 9, 3), 0.5),
            None,
            r"render gave float64 \[8, 9, 3\]; .* uint8 \[height, width",
        ),
        (lambda _: None, None, "the environment draws no pictures"),
        (lambda _: 1 / 0, None, "render raised ZeroDivisionError: division by zero"),
        (lambda t: np.zeros((8 + t, 9, 3), np.uint8), None, r"first \[8, 9, 3\] and then \[9, 9, 3\]"),
    ],
)
def test_pictures_of_any_kind_cost_no_score(give, shape, said, rng, monkeypatch):
    monkeypatch.setattr("fastdream.envs.dummy.Dummy.render", lambda self: give(self._step))
    with driver("dummy_vector", n=1, length=3) as drv, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drv.record = True
        drv.recv()
        roll(drv, 3, rng)
        (episode,) = drv.episodes()
    assert episode.length == 3 and not episode.crashed
    assert (None if episode.frames is None else episode.frames.shape) == shape
    assert [re.search(f"no video: .*{said}", str(w.message)) is not None for w in caught] == [True] * bool(
        said
    )


def test_an_environment_without_pictures_leaves_videos_out(rng, monkeypatch):
    def render(self):
        raise EnvError("nothing to draw with")

    monkeypatch.setattr("fastdream.envs.dummy.Dummy.render", render)
    with driver("dummy_vector", length=3) as drv:
        drv.record = True
        with pytest.warns(UserWarning, match="no video: nothing to draw with"):
            drv.recv()
            roll(drv, 3, rng)
        assert [e.frames for e in drv.episodes()] == [None, None]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("task", ["gym_CartPole-v1", "dummy_mixed", "gym_Pendulum-v1"])
@pytest.mark.parametrize("sent", [True, False])
def test_a_state_brings_back_the_middle_of_an_episode(task, parallel, sent):
    rng = np.random.default_rng(2)
    with driver(task, seed=3) as drv:
        drv.recv()
        roll(drv, 27, rng)
        shown = drv.recv()
        action = random_actions(drv.act_space, 2, rng)
        drv.episodes()
        if sent:
            drv.send(action)
        state = drv.state_dict()
        if not sent:
            drv.send(action)
        rest = [drv.recv(), *roll(drv, 40, np.random.default_rng(4))]
        episodes = drv.episodes()
    with driver(task, seed=3, parallel=parallel) as other:
        other.load_state_dict(state)
        if not sent:
            assert alike([shown], [other.recv()])
            other.send(action)
        assert alike(rest, [other.recv(), *roll(other, 40, np.random.default_rng(4))])
        assert other.episodes() == episodes


def test_a_state_can_be_taken_while_an_episode_begins_or_before_anything(rng):
    with driver("dummy_vector", length=5) as drv:
        fresh = drv.state_dict()
        first = drv.recv()
        roll(drv, 5, rng)
        drv.send(random_actions(drv.act_space, 2, rng))
        between = drv.state_dict()
        second = drv.recv()
        drv.load_state_dict(fresh)
        assert alike([first], [drv.recv()])
        drv.load_state_dict(between)
        assert alike([second], [drv.recv()]) and second["is_first"].all()


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("how", ["not asked for", "not deterministic", "too long"])
def test_what_cannot_be_brought_back_is_cut_short(how, sent, rng, monkeypatch):
    """With the observation that was received last; the next episode begins where that had been answered already."""
    if how == "not deterministic":
        monkeypatch.setattr("fastdream.envs.dummy.Dummy.deterministic", False)
    if how == "too long":
        monkeypatch.setattr("fastdream.lane.LONGEST_REPLAY", 5)
    with driver("dummy_vector", exact_resume=how != "not asked for", length=50) as drv:
        drv.recv()
        given = roll(drv, 8, rng)[-1]
        if sent:
            drv.send(random_actions(drv.act_space, 2, rng))
        state = drv.state_dict()
        assert [lane["exact"] for lane in state.values()] == [0, 0]
        drv.load_state_dict(state)
        if not sent:
            assert alike([drv.recv()], [{**given, "is_last": np.ones(2, bool)}])
            drv.send(random_actions(drv.act_space, 2, rng))
        obs = drv.recv()
        assert obs["is_first"].all() and not obs["reward"].any()
        assert [lane["episode"] for lane in drv.state_dict().values()] == [2, 2]
        roll(drv, 50, rng)
        assert [e.length for e in drv.episodes()] == [50, 50]


def test_an_end_is_received_once_more_where_nothing_can_be_brought_back(rng):
    with driver("dummy_vector", exact_resume=False, length=4) as drv:
        drv.recv()
        end = roll(drv, 4, rng)[-1]
        assert end["is_terminal"].all() and len(drv.episodes()) == 2
        state = drv.state_dict()
    with driver("dummy_vector", exact_resume=False, length=4) as other:
        other.load_state_dict(state)
        assert alike([other.recv()], [end]) and not other.episodes()
        assert roll(other, 1, rng)[0]["is_first"].all()


def test_an_environment_that_is_not_as_deterministic_as_it_says_is_cut_short(rng, monkeypatch):
    with driver("dummy_vector", n=1, length=50) as drv:
        drv.recv()
        given = roll(drv, 8, rng)[-1]
        state = drv.state_dict()
        monkeypatch.setattr(Dummy, "reset", lambda self, seed, reset=Dummy.reset: reset(self, seed + 2))
        with pytest.warns(UserWarning, match="environment 0 calls itself deterministic, but"):
            drv.load_state_dict(state)
        assert alike([drv.recv()], [{**given, "is_last": np.ones(1, bool)}])
        assert roll(drv, 1, rng)[0]["is_first"].all()


def test_a_driver_that_is_still_stepping_can_go_back_too(rng):
    with driver("dummy_vector", parallel=True) as drv:
        drv.recv()
        roll(drv, 4, rng)
        action = random_actions(drv.act_space, 2, rng)
        drv.send(action)
        state = drv.state_dict()
        expected = drv.recv()
        drv.send(action)
        drv.load_state_dict(state)
        assert alike([expected], [drv.recv()])


def test_episodes_that_nobody_fetched_are_forgotten_where_others_begin(rng):
    with driver("dummy_vector", n=1, length=3) as drv:
        state = drv.state_dict()
        drv.recv()
        roll(drv, 3, rng)
        drv.restart([5])
        assert not drv.episodes()
        roll(drv, 3, rng)
        drv.load_state_dict(state)
        assert not drv.episodes()


def test_misuse_is_named(rng):
    with driver("dummy_vector") as drv:
        drv.recv()
        with pytest.raises(ValueError, match="need an action 'action' for each of 2"):
            drv.send({"action": np.zeros(3, np.int32)})
        with pytest.raises(ValueError, match="need an action 'action'"):
            drv.send({})
        with pytest.raises(ValueError, match="state is one of 1 environments, and there are 2"):
            drv.load_state_dict({"0": {}})
    with pytest.raises(ValueError, match="n=0"):
        driver("dummy_vector", n=0)
    tasks = iter(["dummy_vector", "dummy_discrete"])
    with pytest.raises(EnvError, match="environment 1 has other spaces"):
        Driver(lambda seed: make(next(tasks)), 2)


def test_random_actions_fill_their_spaces(rng):
    moves = (acts := random_actions(make("dummy_mixed").act_space, 200, rng))["act_continuous"]
    assert acts["act_multidiscrete"].shape == (200, 2) and set(acts["act_discrete"]) == {0, 1, 2, 3}
    assert moves.dtype == np.float32 and -1 <= moves.min() < -0.9 and 0.9 < moves.max() <= 1
