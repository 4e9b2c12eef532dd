"""Making environments by name, and holding them to what they say."""

import numpy as np
import pytest

from fastdream.envs import describe, make, options_of
from fastdream.envs.base import LARGEST, Checked, EnvError, Repeat, Wrapper
from fastdream.envs.dummy import TASKS, Dummy, Options
from fastdream.episodes import Tally
from fastdream.spaces import RESERVED, Space


def act(env, rng):
    """A random action."""
    return {
        key: rng.integers(space.classes, size=space.shape, dtype=np.int32)
        if space.kind == "discrete"
        else rng.uniform(-1, 1, space.shape).astype(np.float32)
        for key, space in env.act_space.items()
    }


class Lying(Wrapper):
    """An environment whose steps return something else than they should."""

    def __init__(self, lie):
        super().__init__(Dummy("mixed", 0, Options(length=5)))
        self.lie = lie

    def step(self, action):
        return {**self.env.step(action), **self.lie}


def lie(**values):
    env = Checked(Lying(values), "liar")
    env.reset(0)
    return env.step(act(env, np.random.default_rng(0)))


def test_every_suite_is_described_and_has_frozen_options():
    lines = describe()
    for suite in ("gym", "atari", "atari100k", "dmc", "crafter", "minigrid", "dummy"):
        assert f"{suite}_" in lines
        assert options_of(f"{suite}_x").__dataclass_params__.frozen
    assert "module:callable" in lines
    assert options_of("atari100k_pong")().size == 64 and options_of("atari_pong")().size == 96


@pytest.mark.parametrize(
    "name", [n for n in TASKS if n not in ("slow", "crash", "raise", "hang", "nan", "badobs")]
)
def test_dummies_keep_to_their_spaces_and_repeat_themselves(name):
    def roll(env):
        rng, seen = np.random.default_rng(1), [env.reset(seed=3)]
        while not seen[-1]["is_last"]:
            seen.append(env.step(act(env, rng)))
        return seen

    env = make(f"dummy_{name}", length=12, size=16)
    first, again, other = roll(env), roll(env), roll(make(f"dummy_{name}", seed=9, length=12, size=16))
    assert len(first) == 13
    for step, one in enumerate(first):
        assert one["is_first"] == (step == 0) and one["is_terminal"] == one["is_last"] == (step == 12)
        for key, space in env.obs_space.items():
            assert one[key].dtype == space.dtype and one[key].shape == space.shape
    for a, b, c in zip(first, again, other, strict=True):
        assert all(np.array_equal(a[key], b[key]) and np.array_equal(a[key], c[key]) for key in a)


def test_the_right_answers_to_a_dummy_earn_everything_and_a_time_limit_is_no_terminal_state():
    env = make("dummy_mixed", length=6, terminal=False)
    obs, score = env.reset(seed=0), 0.0
    while not obs["is_last"]:
        cue = int(obs["discrete"])
        answer = {
            "act_discrete": cue,
            "act_multidiscrete": np.full(2, cue),
            "act_continuous": np.full(2, 2 * cue / 3 - 1),
        }
        obs = env.step({key: np.asarray(value) for key, value in answer.items()})
        score += obs["reward"]
        assert obs["discrete"] == (cue + 1) % 4
    assert score == pytest.approx(6, abs=1e-5)
    assert not obs["is_terminal"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"reward": float("nan")}, r"liar: the reward is nan.*step 1"),
        ({"reward": -1e39}, r"liar: the reward is -1e\+39, more than float32 holds.*step 1"),
        ({"reward": float("inf")}, "reward is inf"),
        ({"reward": np.zeros(2)}, "one finite number"),
        ({"reward": None}, "the reward is None; it must be one finite number"),
        ({"log/x": (1, "two")}, "'log/x' is 'two'; it must be one finite number"),
        ({"log/x": np.zeros(2)}, "'log/x' is .* must be one finite number"),
        ({"vector": np.array([0, np.nan, 0, 0])}, "'vector' contains nan"),
        ({"vector": np.array([0, 0, 0, -np.inf])}, "'vector' contains -inf"),
        ({"vector": np.array([0, 0, 0, np.inf], np.float16)}, "'vector' contains inf"),
        ({"vector": np.array([0, 1e39, 0, 0])}, r"'vector' contains 1e\+39, more than float32 holds"),
        ({"vector": np.full(4, -1e39)}, r"'vector' contains -1e\+39, more than float32 holds"),
        ({"vector": np.full(4, np.inf)}, "'vector' contains inf"),
        ({"vector": np.zeros(5)}, r"'vector' is float64 \[5\], its space says float32 \[4\]"),
        ({"vector": "text"}, "'vector' is"),
        ({"image": np.zeros((64, 64, 3), np.float32)}, "'image' is float32"),
        ({"image": np.zeros((64, 64, 3), np.uint16)}, "'image' is uint16"),
        ({"discrete": -2}, "'discrete' is -2, its space has the classes 0 to 3"),
        ({"discrete": 4}, "'discrete' is 4, its space has the classes 0 to 3"),
        ({"discrete": 1.5}, "'discrete' is float64"),
        ({"surprise": 1}, "'surprise' is not in the observation space"),
    ],
)
def test_an_observation_that_breaks_its_promise_is_named(values, text):
    with pytest.raises(EnvError, match=text):
        lie(**values)


def test_marks_for_what_is_not_available_and_foreign_dtypes_pass():
    obs = lie(vector=np.full(4, -np.inf), discrete=-1, other=np.float64(2.5), reward=1)
    assert np.isneginf(obs["vector"]).all() and obs["discrete"] == -1
    assert obs["other"].dtype == np.float32 and obs["reward"].dtype == np.float32
    assert obs["other"] == 2.5 and obs["reward"] == 1
    assert lie(other=True)["other"] == 1 and lie(reward=-LARGEST)["reward"] == -LARGEST


def test_a_missing_key_and_a_bad_name_are_named():
    env = Lying({})
    env.obs_space = {**env.obs_space, "gone": Space("vector", (2,))}
    checked = Checked(env, "liar")
    with pytest.raises(EnvError, match="'gone' is missing"):
        checked.reset(0)
    for name in (*RESERVED, "a/b", "a.b"):
        env.obs_space = {name: Space("vector", (2,))}
        with pytest.raises(EnvError, match="cannot be the name"):
            Checked(env, "liar")
        taking = Lying({})
        taking.act_space = {name: Space("vector", (2,))}
        with pytest.raises(EnvError, match="cannot be the name"):
            Checked(taking, "liar")
    env.obs_space, env.act_space = {}, {}
    with pytest.raises(EnvError, match="liar: the action space is empty"):
        Checked(env, "liar")


def test_a_step_is_counted_from_the_beginning_of_its_episode():
    env = Checked(Lying({"reward": None}), "liar")
    for _ in range(2):
        env.reset(0)
        with pytest.raises(EnvError, match=r"\(step 1 of the episode\)"):
            env.step(act(env, np.random.default_rng(0)))


def test_observations_do_not_share_memory_with_the_environment():
    env = Lying({"vector": np.zeros(4, np.float32)})
    checked = Checked(env, "liar")
    checked.reset(0)
    obs = checked.step(act(checked, np.random.default_rng(0)))
    env.lie["vector"][:] = 7
    assert (obs["vector"] == 0).all()


def test_a_repeated_action_sums_rewards_and_stops_at_the_end():
    for terminal in (True, False):
        env = Repeat(Dummy("discrete", 0, Options(length=5, terminal=terminal)), 3)
        cue = int(env.reset(0)["discrete"])
        obs = env.step({"action": np.int32(cue)})
        assert 1 <= obs["reward"] <= 3 and not obs["is_last"] and env.env._step == 3
        obs = env.step({"action": np.int32(0)})
        assert obs["is_last"] and obs["is_terminal"] == terminal and env.env._step == 5
    with pytest.raises(EnvError, match="repeat=0"):
        Repeat(env, 0)


def test_a_repeated_action_loses_nothing_that_is_logged():
    class Events(Lying):
        def step(self, action):
            self.count = getattr(self, "count", 0) + 1
            return {**self.env.step(action), "log/hit": float(self.count == 1), "log/at": self.count}

    env, tally = Checked(Repeat(Events({}), 3), "events"), Tally()
    tally.add(env.reset(0))
    for _ in range(2):  # three steps, and the two until the episode ends
        tally.add(env.step(act(env, np.random.default_rng(0))))
    assert [tally.extras[f"hit/{name}"] for name in ("sum", "max", "last")] == [1, 1, 0]
    assert [tally.extras[f"at/{name}"] for name in ("sum", "max", "last")] == [15, 5, 5]
