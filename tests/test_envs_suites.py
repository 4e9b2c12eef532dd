"""The suites that wrap a package: each steps, keeps to its spaces, and comes back to the same states."""

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


def test_other_families_of_gymnasium_are_not_taken_to_repeat_themselves():
    pytest.importorskip("Box2D", reason="a family whose episodes remember those before")
    assert not make("gym_LunarLander-v3").deterministic


def test_pictures_of_gymnasium_are_resized():
    pytest.importorskip("ale_py", reason="a gymnasium environment with pictures")
    pytest.importorskip("PIL", reason="what resizes")
    env = make("gym_ALE/Pong-v5", size=48)
    assert env.obs_space["image"].shape == (48, 48, 3)
    assert env.reset(seed=0)["image"].shape == (48, 48, 3) and env.render().shape == (210, 160, 3)


def test_crafter_shows_its_view_and_logs_achievements():
    pytest.importorskip("crafter", reason="the suite's package")
    env = make("crafter_noreward", size=27)
    obs = roll(env, 10)
    assert obs[0]["image"].shape == (27, 27, 3) and env.act_space["action"].classes == 17
    assert sum(key.startswith("log/achievement_") for key in obs[-1]) == 22
    assert all(o["reward"] == 0 for o in obs) and obs[0]["log/reward"] == 0 and "log/reward" in obs[-1]
    assert np.array_equal(env.reset(seed=3)["image"], obs[0]["image"])
    env.env._env._player.achievements["collect_drink"] = 1
    obs = env.step({"action": 0})
    assert obs["reward"] == 0 and obs["log/reward"] == 1
    env.reset(seed=3)
    env.env._env._length = 2  # steps, after which an episode is cut short
    one, two = (env.step({"action": 0}) for _ in range(2))
    assert not one["is_last"] and two["is_last"] and not two["is_terminal"]
    with pytest.raises(EnvError, match="got 9"):
        make("crafter_reward", size=9)
    assert not any(key.startswith("log/") for key in make("crafter_reward", size=18, logs=False).reset(0))


def test_crafter_rewards_achievements_and_ends_with_death():
    pytest.importorskip("crafter", reason="the suite's package")
    env = make("crafter_reward")
    assert not env.deterministic
    start, other = env.reset(seed=0), env.reset(seed=1)
    assert not np.array_equal(start["image"], other["image"])
    again = env.reset(seed=0)
    assert np.array_equal(start["image"], again["image"]) and again["is_first"] and not again["reward"]
    assert not np.array_equal(env.reset()["image"], start["image"])  # the world after it
    assert not any(again[key] for key in again if key.startswith("log/")) and "log/reward" not in again
    game = env.env._env
    game._player.achievements["collect_drink"] = 2
    obs = env.step({"action": 0})
    assert obs["reward"] == 1 and obs["log/achievement_collect_drink"] == 2
    assert not (obs["is_last"] or obs["is_terminal"] or obs["is_first"])
    game._player.health = 0
    obs = env.step({"action": 0})
    assert obs["is_last"] and obs["is_terminal"]


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

    def test_what_is_seen_is_what_stands_there(self):
        env, seen = make("minigrid_DoorKey-8x8", obs="flat"), make("minigrid_DoorKey-8x8", size=50)
        game, left = env.env._env, {"action": 0}
        shown, directions = [env.reset(seed=1)], []
        seen.reset(seed=1)
        for _ in range(5):
            theirs = game.gen_obs()
            layers = [shown[-1][key] for key in ("object", "color", "state")]
            assert np.array_equal(np.stack(layers, -1), theirs["image"])
            directions.append(int(shown[-1]["direction"]) - theirs["direction"])
            picture = seen.step(left)["image"]
            shown.append(env.step(left))
            tiles = game.get_frame(
                tile_size=7, agent_pov=True
            )  # and half a pixel of margin, to the right and below
            assert np.array_equal(picture[:49, :49], tiles) and not picture[49].any()
        assert directions == [0] * 5 and len({int(o["direction"]) for o in shown}) == 4
        assert [bool(o["is_first"]) for o in shown] == [True] + [False] * 5

    @pytest.mark.parametrize("name", ["Empty-5x5", "Empty-5x5-v0", "MiniGrid-Empty-5x5-v0"])
    def test_whatever_of_an_id_may_be_left_out(self, name):
        env = make(f"minigrid_{name}", size=28)
        assert env.deterministic and env.reset(seed=0)["image"].shape == (28, 28, 3)

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
        for id in ("MiniGrid-Empty-5x5-v0", "BabyAI-GoToObj-v0"):
            for package in ("", "minigrid:"):
                with pytest.raises(EnvError, match=f"use the task minigrid_{id}"):
                    make(f"gym_{package}{id}")
        with pytest.raises(EnvError, match="at least 28"):
            make("minigrid_Empty-5x5", size=16)
        for task in ("BabyAI-GoToObj-v0", "PutNear-8x8-N3"):  # free text, and 324 of them
            with pytest.warns(UserWarning, match="missions are too many"):
                assert "mission" not in make(f"minigrid_{task}", obs="flat").obs_space
