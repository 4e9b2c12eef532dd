"""The two worlds of World Models: they step, keep to what the paper sees, and come back to the same states."""

import numpy as np
import pytest

from fastdream.envs import make
from fastdream.envs.base import EnvError

from .test_envs_suites import alike, comes_back, roll


class TestTakeCover:
    @pytest.fixture(autouse=True)
    def _package(self, tmp_path, monkeypatch):
        pytest.importorskip("vizdoom", reason="the suite's package")
        pytest.importorskip("PIL", reason="what resizes")
        monkeypatch.chdir(tmp_path)  # the game makes a folder where it runs

    def test_comes_back_to_the_same_states(self):
        assert comes_back("vizdoom_take_cover", steps=40, repeat=2)
        assert not alike(
            roll(make("vizdoom_take_cover"), 40, seed=3), roll(make("vizdoom_take_cover"), 40, seed=4)
        )

    def test_every_tic_survived_is_worth_one(self):
        obs = roll(make("vizdoom_take_cover", repeat=4), 600)
        assert obs[0]["image"].shape == (64, 64, 3) and obs[0]["image"].max() > 50
        assert {o["reward"] for o in obs[1:-1]} == {4.0} and obs[-1]["reward"] <= 4
        assert obs[-1]["is_terminal"] and obs[-1]["is_last"]

    def test_a_time_limit_is_last_but_not_terminal(self):
        *before, last = roll(make("vizdoom_take_cover", length=12, repeat=4), 9)
        assert len(before) == 3 and sum(o["reward"] for o in [*before, last]) == 12
        assert last["is_last"] and not last["is_terminal"]

    def test_left_and_right_are_opposite_directions(self):
        def view(action):
            env = make("vizdoom_take_cover")
            env.reset(seed=0)
            return [env.step({"action": np.int32(action)})["image"] for _ in range(15)][-1].astype(int)

        left, stay, right = (view(action) for action in range(3))
        assert abs(left - right).mean() > abs(left - stay).mean() > 1

    def test_unknown_scenarios_are_named(self):
        with pytest.raises(
            EnvError, match="unknown task 'vizdoom_take_cove'; did you mean 'vizdoom_take_cover'"
        ):
            make("vizdoom_take_cove")


class TestCarRacing:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("Box2D", reason="the suite's physics")
        pytest.importorskip("pygame", reason="what draws the suite")
        pytest.importorskip("PIL", reason="what resizes")

    def test_comes_back_to_the_same_states(self):
        assert comes_back("car_racing", steps=4)

    def test_the_dashboard_is_cut_off_and_gas_moves_the_car(self):
        env = make("car_racing")
        first = env.reset(seed=0)["image"]
        for _ in range(25):
            obs = env.step({"action": np.array([0, 1, -1], np.float32)})
        assert obs["image"].shape == (64, 64, 3) and env.render().shape == (96, 96, 3)
        assert (
            obs["image"][-4:].mean() > 60 > env.render()[-8:].mean()
        )  # grass and road, not the black dashboard
        moved = abs(obs["image"].astype(int) - first).mean()
        env.reset(seed=0)
        for _ in range(25):
            obs = env.step({"action": np.array([0, -1, -1], np.float32)})
        assert moved > abs(obs["image"].astype(int) - first).mean()

    def test_a_time_limit_is_last_but_not_terminal_and_repeats_add_up(self):
        *before, last = roll(make("car_racing", length=7, repeat=3), 9)
        assert len(before) == 3 and last["is_last"] and not last["is_terminal"]
