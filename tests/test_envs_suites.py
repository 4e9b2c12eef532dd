"""The suites that wrap a package: each steps, keeps to its spaces, and comes back to the same states."""

import sys

import numpy as np
import pytest

from fastdream.envs import make
from fastdream.envs.base import EnvError


def act(env, rng):
    """A random action."""
    space = env.act_space["action"]
    if space.kind == "discrete":
        return {"action": rng.integers(space.classes, size=space.shape, dtype=np.int32)}
    return {"action": rng.uniform(-1, 1, space.shape).astype(np.float32)}


def roll(env, steps, seed=3):
    rng, obs = np.random.default_rng(seed), [env.reset(seed=seed)]
    for _ in range(steps):
        obs.append(env.step(act(env, rng)))
        if obs[-1]["is_last"]:
            break
    return obs


def alike(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


def comes_back(task, steps=30, **options):
    """Whether a reset with a seed leads to the same episode, after another one and in another environment."""
    env = make(task, seed=1, **options)
    first = roll(env, steps)
    roll(env, steps // 2, seed=8)
    return alike(first, roll(env, steps)) and alike(first, roll(make(task, seed=2, **options), steps))


@pytest.mark.parametrize("task", ["gym_CartPole-v1", "gym_Pendulum-v1", "gym_FrozenLake-v1"])
def test_gymnasium_comes_back_to_the_same_states(task):
    assert make(task).deterministic and comes_back(task)


def test_gymnasium_tells_a_fall_from_a_time_limit():
    env = make("gym_CartPole-v1")
    obs = env.reset(seed=0)
    while not obs["is_last"]:
        obs = env.step({"action": np.int32(0)})
    assert obs["is_terminal"] and obs["reward"] == 1
    env = make("gym_Pendulum-v1", repeat=50)
    obs = [env.reset(seed=0), *(env.step({"action": np.zeros(1, np.float32)}) for _ in range(4))]
    assert obs[-1]["is_last"] and not obs[-1]["is_terminal"]


def test_pictures_of_gymnasium_are_resized():
    pytest.importorskip("ale_py", reason="a gymnasium environment with pictures")
    pytest.importorskip("PIL", reason="what resizes")
    env = make("gym_ALE/Pong-v5", size=48)
    assert env.obs_space["image"].shape == (48, 48, 3)
    assert env.reset(seed=0)["image"].shape == (48, 48, 3) and env.render().shape == (210, 160, 3)


class TestAtari:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("ale_py", reason="the suite's package")

    def test_settings_are_the_official_ones(self):
        full, small = make("atari_pong"), make("atari100k_pong")
        assert full.obs_space["image"].shape == (96, 96, 1) and full.act_space["action"].classes == 18
        assert small.obs_space["image"].shape == (64, 64, 3) and small.act_space["action"].classes == 6
        options = full.env._options, small.env._options
        assert [o.sticky for o in options] == [0.25, 0.0]
        assert {(o.noops, o.repeat, o.pooling, o.length, o.clip_reward) for o in options} == {
            (30, 4, 2, 108_000, False)
        }

    def test_every_episode_has_all_of_its_frames(self):
        env = make("atari100k_pong", length=10, noops=0)
        for seed in range(2):
            env.reset(seed=seed)
            assert [bool(env.step({"action": 0})["is_last"]) for _ in range(3)] == [False, False, True]

    def test_comes_back_to_the_same_states_with_sticky_actions(self):
        assert comes_back("atari_breakout", steps=40)
        assert not alike(roll(make("atari_breakout"), 40, seed=3), roll(make("atari_breakout"), 40, seed=4))

    @pytest.mark.parametrize(("game", "most"), [("beam_rider", 150), ("yars_revenge", 150), ("qbert", 900)])
    def test_comes_back_to_the_same_states_where_the_emulator_alone_does_not(self, game, most):
        env = make(f"atari100k_{game}", noops=0)
        first = roll(env, 60)
        assert roll(env, most, seed=8)[-1]["is_last"] == (game == "qbert") and alike(first, roll(env, 60))

    def test_grey_keeps_every_shade_and_weighs_colours(self):
        from fastdream.envs.atari import grey

        shades = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
        assert np.array_equal(grey(np.repeat(shades, 3, -1)), shades)
        colours = np.eye(3, dtype=np.uint8)[None] * 100
        assert grey(colours).ravel().tolist() == [29, 58, 11]

    def test_a_time_limit_is_last_but_not_terminal(self):
        *before, last = roll(make("atari100k_pong", length=10), 9)
        assert [bool(o["is_last"]) for o in before] == [False] * 3
        assert last["is_last"] and not last["is_terminal"]

    def test_no_first_picture_is_black_and_the_second_episode_begins_without_the_first_ones_frames(self):
        env = make("atari100k_pong", noops=0)
        first = roll(env, 20)
        assert first[0]["image"].max() > 0 and first[0]["is_first"]
        assert np.array_equal(env.reset(seed=3)["image"], first[0]["image"])

    def test_a_picture_is_the_brightest_of_the_last_two_frames(self):
        env = make("atari_pong", repeat=4, pooling=2, noops=0).env
        env.reset(seed=0)
        ale, brightness = env._ale, iter([200, 150, 100, 50])

        class Fading:
            """Each frame darker than the one before."""

            def __getattr__(self, name):
                return getattr(ale, name)

            def act(self, action):
                self.shown = next(brightness)
                return ale.act(action)

            def getScreenRGB(self, into):
                into[:] = self.shown

        env._ale, env._frames[:] = Fading(), 0
        picture = env.step({"action": np.int64(0)})["image"]
        assert picture.min() == picture.max() == 100

    def test_lives_end_nothing_a_state_or_the_episode(self):
        def flags(lives):
            env = make("atari100k_breakout", lives=lives, noops=0)
            obs = [env.reset(seed=0)]
            for _ in range(150):
                obs.append(env.step({"action": np.int32(1)}))
                if obs[-1]["is_last"]:
                    break
            return [(bool(o["is_terminal"]), bool(o["is_last"])) for o in obs]

        unused, discount, reset = flags("unused"), flags("discount"), flags("reset")
        lost = [t for t, (terminal, last) in enumerate(discount) if terminal and not last]
        assert lost and not unused[lost[0]][0]
        assert reset[-1] == (True, True) and len(reset) == lost[0] + 1

    def test_actions_stick_with_the_probability_that_was_asked(self):
        env = make("atari_pong", sticky=0.5).env
        env.reset(seed=0)
        ale, held = env._ale, []

        class Spy:
            def __getattr__(self, name):
                return getattr(ale, name)

            def act(self, action):
                held.append(action.value)
                return ale.act(action)

        env._ale = Spy()
        for i in range(200):
            env.step({"action": np.int32(2 + i % 2)})
        changed = np.array(held[::4])[1:] != np.array(held[3::4])[:-1]
        assert 0.35 < changed.mean() < 0.65

    def test_unknown_games_and_settings_are_refused(self):
        assert make("atari_james_bond").act_space["action"].classes > 1
        with pytest.raises(EnvError, match="did you mean 'atari_ms_pacman'"):
            make("atari_mspacman")
        with pytest.raises(EnvError, match="unknown task 'atari_combat'"):  # for two players
            make("atari_combat")
        with pytest.raises(EnvError, match="unknown task 'atari_zzz'; there are atari_adventure, .*zaxxon"):
            make("atari_zzz")
        with pytest.raises(EnvError, match="pooling"):
            make("atari_pong", pooling=9)


class TestControl:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("dm_control", reason="the suite's package")

    def test_sensors_come_without_rendering(self, monkeypatch):
        env = make("dmc_cup_catch")
        monkeypatch.setattr(type(env.env), "render", lambda self: pytest.fail("rendered"))
        obs = roll(env, 5)
        assert set(env.obs_space) == {"position", "velocity"} and "image" not in obs[0]

    def test_comes_back_to_the_same_states_and_ends_by_its_time_limit(self):
        assert comes_back("dmc_walker_walk", steps=20)
        assert not make("dmc_lqr_lqr_2_1").deterministic
        last = roll(make("dmc_cartpole_swingup", repeat=250), 9)[-1]
        assert last["is_last"] and not last["is_terminal"]

    def test_pictures(self):
        env = make("dmc_walker_walk", obs="both", size=32, fast_render=True)
        obs = roll(env, 2)
        assert obs[-1]["image"].std() > 0 and obs[-1]["height"].shape == ()
        env.close()
        env = make("dmc_walker_walk")
        env.reset(seed=0)
        assert env.render().std() > 0
        env = make("dmc_walker_walk", obs="vision", size=32)
        assert set(env.obs_space) == {"image"} and env.reset(seed=0)["image"].std() > 0

    def test_unknown_tasks_and_settings_are_refused(self):
        with pytest.raises(EnvError, match="did you mean 'dmc_walker_walk'"):
            make("dmc_walker_wlak")
        with pytest.raises(EnvError, match="dmc_walker_walk: obs is 'pixels'; it must be 'proprio' or 'vis"):
            make("dmc_walker_walk", obs="pixels")
        with pytest.raises(EnvError, match="dmc_walker_walk has the cameras 0 to 1, got camera=2"):
            make("dmc_walker_walk", camera=2)
        with pytest.raises(EnvError, match=r"camera >= -1, got .*camera=-2"):
            make("dmc_walker_walk", camera=-2)

    def test_versions_that_do_not_fit_are_named(self, monkeypatch):
        def load(*args, **options):
            raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

        make("dmc_walker_walk")
        monkeypatch.setattr(sys.modules["dm_control.suite"], "load", load)
        with pytest.raises(EnvError, match=r"flex_vertedge.*pip install dm_control==.* mujoco=="):
            make("dmc_walker_walk")


def test_crafter_shows_its_view_and_logs_achievements():
    pytest.importorskip("crafter", reason="the suite's package")
    env = make("crafter_noreward", size=27)
    obs = roll(env, 10)
    assert obs[0]["image"].shape == (27, 27, 3) and env.act_space["action"].classes == 17
    assert sum(key.startswith("log/achievement_") for key in obs[-1]) == 22
    assert all(o["reward"] == 0 for o in obs) and "log/reward" in obs[-1]
    assert np.array_equal(env.reset(seed=3)["image"], obs[0]["image"])
    env.env._env._length = 2  # steps, after which an episode is cut short
    one, two = (env.step({"action": 0}) for _ in range(2))
    assert not one["is_last"] and two["is_last"] and not two["is_terminal"]
    with pytest.raises(EnvError, match="got 9"):
        make("crafter_reward", size=9)
    assert not any(key.startswith("log/") for key in make("crafter_reward", size=18, logs=False).reset(0))


class TestMiniGrid:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("minigrid", reason="the suite's package")

    def test_pictures_keep_whole_pixels_for_each_tile(self):
        assert comes_back("minigrid_DoorKey-5x5")
        env = make("minigrid_MiniGrid-Empty-5x5-v0", size=71)
        image = env.reset(seed=0)["image"]
        assert image.shape == (71, 71, 3) and image.max() > 0 and image[70].max() == 0
        assert env.render().shape == (80, 80, 3)

    def test_tiles_and_missions_as_classes(self):
        env = make("minigrid_GoToDoor-5x5", obs="flat")
        assert {key: space.shape for key, space in env.obs_space.items()} == {
            "direction": (),
            "mission": (),
            "object": (7, 7),
            "color": (7, 7),
            "state": (7, 7),
        }
        assert len({int(env.reset(seed=s)["mission"]) for s in range(20)}) > 1
        missions = [*env.env._missions]
        assert missions == sorted(missions)  # in every process, for resumed runs and loaded agents
        assert "mission" not in make("minigrid_Empty-5x5", obs="flat").obs_space

    def test_the_goal_is_a_terminal_state_and_the_limit_is_none(self):
        env = make("minigrid_Empty-5x5", obs="flat")
        ahead, right = 2, 1
        for actions, reached in (([ahead, ahead, right, ahead, ahead], True), ([right] * 100, False)):
            env.reset(seed=0)
            obs = [env.step({"action": action}) for action in actions]
            assert [bool(o["is_last"]) for o in obs] == [False] * (len(obs) - 1) + [True]
            assert obs[-1]["is_terminal"] == reached == (obs[-1]["reward"] > 0)

    def test_unknown_tasks_sizes_and_missions_are_named(self):
        with pytest.raises(EnvError, match="did you mean 'minigrid_DoorKey-5x5-v0'"):
            make("minigrid_DoorKy-5x5-v0")
        with pytest.raises(EnvError, match="use the task minigrid_MiniGrid-Empty-5x5-v0"):
            make("gym_MiniGrid-Empty-5x5-v0")
        with pytest.raises(EnvError, match="at least 28"):
            make("minigrid_Empty-5x5", size=16)
        with pytest.warns(UserWarning, match="missions are too many"):
            make("minigrid_BabyAI-GoToObj-v0", obs="flat")
