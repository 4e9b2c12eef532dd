"""Environments that die now and then, in the middle of coming back too, and what that costs the others."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from fastdream import driver as driver_module
from fastdream import lane
from fastdream.driver import Driver
from fastdream.envs import make
from fastdream.envs.base import Wrapper

from .driver_tools import driver, roll


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_an_environment_that_dies_now_and_then_goes_on(rng, monkeypatch):
    monkeypatch.setattr(lane, "RESTART_WINDOW", 60)
    restarts = []
    with driver("dummy_raise", n=1, at=7, on_restart=restarts.append) as drv:
        drv.recv()
        roll(drv, 100, rng)
    assert len(restarts) > lane.MOST_RESTARTS


@pytest.mark.parametrize(("window", "too_often"), [(79, False), (80, True)])
def test_restarts_at_both_ends_of_the_window_are_within_it(rng, monkeypatch, window, too_often):
    """One dies every 8 steps, the reset among them: from its first restart to its eleventh there are 80."""
    monkeypatch.setattr(lane, "RESTART_WINDOW", window)
    with driver("dummy_raise", n=1, at=7, on_restart=lambda restart: None) as drv:
        drv.recv()
        ends = (
            pytest.raises(lane.RestartedTooOften, match="11 times within 80") if too_often else nullcontext()
        )
        with ends:
            roll(drv, 100, rng)


def test_an_episode_that_was_cut_short_is_not_brought_back(rng):
    """Its actions lead elsewhere, or to the same death."""
    restarts = []
    with driver("dummy_raise", n=1, at=7, on_restart=restarts.append) as drv:
        drv.recv()
        roll(drv, 7, rng)
        state = drv.state_dict()
    with driver("dummy_raise", n=1, at=7, on_restart=restarts.append) as drv:
        drv.load_state_dict(state)
        assert drv.recv()["is_last"].all() and len(restarts) == 1
        assert roll(drv, 1, rng)[0]["is_first"].all()


def test_an_episode_that_dies_while_it_is_brought_back_counts_for_nothing(rng):
    dies, restarts = [], []

    class Mortal(Wrapper):
        def step(self, action):
            if dies and dies.pop():
                raise ConnectionError("gone")
            return super().step(action)

    def mortal(seed):
        return Mortal(make("dummy_vector", seed, length=6))

    with Driver(mortal, on_restart=restarts.append) as drv:
        drv.recv()
        roll(drv, 4, rng)
        state = drv.state_dict()
        dies[:] = [True]
        drv.load_state_dict(state)
        assert drv.recv()["is_last"].all() and len(restarts) == 1
        roll(drv, 7, rng)
        assert [episode.length for episode in drv.episodes()] == [6]


def test_all_environments_share_one_deadline(monkeypatch):
    clock, given = [0.0], []

    def waiting(self, timeout):
        given.append(timeout)
        clock[0] += 30
        return receive(self, timeout)

    with driver("dummy_vector", n=3, timeout=50) as drv:
        receive = lane.Lane.receive
        monkeypatch.setattr(lane.Lane, "receive", waiting)
        monkeypatch.setattr(driver_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        drv.recv()
    assert given == [50, 20, 1]  # the last one is asked, too
