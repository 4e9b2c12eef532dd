"""Environments that are none of gymnasium's but in name: one error at once that says what theirs would do."""

from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.spaces as gs
import numpy as np
import pytest

from fastdream.envs import gym, make
from fastdream.envs.base import Checked, EnvError, Repeat, Wrapper
from fastdream.envs.dummy import Dummy, Options
from fastdream.envs.from_gymnasium import FromGymnasium

ACTION = {"action": np.array(1)}


class Sound(gymnasium.Env):
    observation_space: Any = gs.Box(-1, 1, (2,))
    action_space: Any = gs.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}


class OldStep(Sound):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, {}


class OldReset(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32)


class Pair(Sound):
    """An observation of two parts, alone: as many values as gymnasium's reset returns."""

    observation_space = gs.Tuple((gs.Discrete(2), gs.Discrete(2)))

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return 0, 1


class Unseeded(Sound):
    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32), {}


class Arrays(Sound):
    """What vectorised code gives: an array of one element for each."""

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), np.array([2.0]), np.array([True]), np.array([False]), {}


class OldSpace(Sound):
    observation_space = type("Box", (), {"shape": (2,)})()


class Torque(Sound):
    action_space = gs.Box(-2, 2, (), np.float32)

    def step(self, action: Any) -> Any:
        assert isinstance(action, np.ndarray) and self.action_space.contains(action)
        return super().step(action)


def test_methods_of_older_releases_are_told_from_gymnasium_s():
    with pytest.raises(
        EnvError, match=r"mine: step returned 4 values, .*; gymnasium's returns 5: .*truncated"
    ):
        FromGymnasium(OldStep(), "mine").step(ACTION)
    with pytest.raises(EnvError, match=r"mine: reset returned a ndarray; gymnasium's returns 2: observation"):
        FromGymnasium(OldReset(), "mine").reset(0)
    with pytest.raises(EnvError, match=r"mine: reset returned 2 values, the last of them a int; .* a dict"):
        FromGymnasium(Pair(), "mine").reset(0)
    with pytest.raises(EnvError, match=r"mine: reset takes no seed; gymnasium's is .*seed=None"):
        FromGymnasium(Unseeded(), "mine")


def test_spaces_that_are_missing_or_of_another_package():
    with pytest.raises(
        EnvError, match="mine: observation_space is a Box; it must be one of gymnasium.spaces"
    ):
        FromGymnasium(OldSpace(), "mine")
    with pytest.raises(EnvError, match="mine: observation_space is missing"):
        FromGymnasium(gymnasium.Env(), "mine")
    with pytest.raises(EnvError, match="mine: the observation 'observation' is Text"):
        FromGymnasium(showing(gs.Text(3), ""), "mine")


def test_one_number_may_come_as_an_array_of_one():
    obs = Checked(FromGymnasium(Arrays(), "mine"), "mine").step(ACTION)
    assert (obs["reward"], obs["is_last"], obs["is_terminal"]) == (2.0, True, True)
    assert all(np.shape(obs[key]) == () for key in ("reward", "is_last", "is_terminal"))


def test_an_action_without_dimensions_is_an_array_as_its_space_has_it():
    obs = FromGymnasium(Torque(), "mine").step({"action": np.array(0.5, np.float32)})
    assert obs["reward"] == 1


def test_what_needs_more_than_a_seed_is_named():
    def needs(level: int, *, size: int, seed: int) -> gymnasium.Env:
        return Sound()

    def positional(seed_of_mine: int, level: int) -> gymnasium.Env:
        return Sound()

    for factory, named in ((needs, "level, size"), (positional, "level")):
        with pytest.raises(EnvError, match=f"needs {named}: give a function that takes nothing, or the seed"):
            make(factory)
    assert make(lambda *, seed: Sound()) and make(Sound)
    given = []
    assert make(lambda any_name, *more, **others: given.append((any_name, more, others)) or Sound(), seed=7)
    assert given == [(7, (), {})]
    with pytest.raises(EnvError, match="needs level"):
        make(lambda *, level: Sound())
    repeated = make(lambda: Dummy("vector", 0, Options(length=4)), repeat=4)
    assert repeated.reset(0) and repeated.step(ACTION)["is_last"]


@pytest.mark.parametrize("task", [":make", "module:"])
def test_half_a_name(task: str):
    with pytest.raises(EnvError, match=f"'{task}' lacks the module or .*: module:callable"):
        make(task)


def test_an_id_without_its_version():
    with pytest.raises(EnvError, match="unknown task 'gym_CartPole'; did you mean 'gym_CartPole-v1'"):
        gym.make("CartPole", 0, gym.Options())


class Scaling(Wrapper):
    """An environment that scales its action where it lies, and remembers what it was."""

    def __init__(self):
        super().__init__(Dummy("continuous", 0, Options(length=20)))
        self.got = []

    def step(self, action):
        self.got.append(action["action"].copy())
        action["action"] *= 3
        return self.env.step(action)


@pytest.mark.parametrize("wrap", [lambda env: Checked(env, "scaling"), lambda env: Repeat(env, 2)])
def test_an_environment_may_change_its_action_in_place(wrap):
    scaling = Scaling()
    env = wrap(scaling)
    env.reset(0)
    action = {"action": np.full(2, 0.5, np.float32)}
    for _ in range(3):
        env.step(action)
    assert (np.array(scaling.got) == 0.5).all() and (action["action"] == 0.5).all()


class Answers(Sound):
    """What a step answers, but for the observation."""

    def __init__(self, reward: Any = 1.0, terminated: Any = False, truncated: Any = False) -> None:
        self.answer = reward, terminated, truncated

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), *self.answer, {}


@pytest.mark.parametrize("reward", ["1.5", b"1.5", np.array("1.5"), np.array([1.0, 2.0]), None, 1j, np.nan])
def test_a_reward_is_a_number_and_not_what_python_makes_one_of(reward: Any):
    with pytest.raises(EnvError, match="mine: the reward is .*; it must be one finite number"):
        FromGymnasium(Answers(reward), "mine").step(ACTION)


@pytest.mark.parametrize("flag", ["no", None, {}, [], 0.7, np.nan, np.array([False, True])])
def test_flags_are_not_what_python_takes_for_true(flag: Any):
    for name in ("terminated", "truncated"):
        with pytest.raises(EnvError, match=f"mine: {name} is .*; it must be True or False"):
            FromGymnasium(Answers(**{name: flag}), "mine").step(ACTION)

    class Own(Wrapper):
        def step(self, action: Any) -> Any:
            return {**self.env.step(action), "is_last": flag}

    env = make(lambda: Own(Dummy("vector", 0, Options())))
    env.reset(0)
    with pytest.raises(EnvError, match=r"is_last is .*; it must be True or False \(step 1"):
        env.step(ACTION)


@pytest.mark.parametrize("flag", [True, 1, 1.0, np.bool_(True), np.array([1])])
def test_flags_of_other_types_that_are_true_or_false(flag: Any):
    obs = FromGymnasium(Answers(terminated=flag, truncated=0), "mine").step(ACTION)
    assert obs["is_last"] is True and obs["is_terminal"] is True


def showing(space: gs.Space, value: Any) -> gymnasium.Env:
    class Shows(Sound):
        observation_space = space

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return value, {}

    return Shows()


@pytest.mark.parametrize("counts", [[3, 3], [3, 2]])
@pytest.mark.parametrize("value", [1, [1]])
def test_one_class_does_not_stand_for_all(counts: list[int], value: Any):
    with pytest.raises(EnvError, match=r"does not fit MultiDiscrete.*: its shape is \[1?\], expected \[2\]"):
        FromGymnasium(showing(gs.MultiDiscrete(counts), np.array(value)), "mine").reset(0)


@pytest.mark.parametrize("value", [{"b": 1}, (), None, {"a": [1]}])
def test_an_observation_of_another_form_is_shown_beside_its_space(value: Any):
    space: gs.Space = gs.Tuple([gs.Discrete(2)]) if value == () else gs.Dict(a=gs.Discrete(2))
    with pytest.raises(EnvError, match=r"mine: .* does not fit (Dict|Tuple)\("):
        FromGymnasium(showing(space, value), "mine").reset(0)


def test_what_is_masked_is_no_number():
    hidden = np.ma.array([1, 2], mask=[False, True], dtype=np.float32)
    for space in (Sound.observation_space, gs.Dict(a=gs.Box(0, 3, (1, 2, 1)))):
        value = {"a": hidden.reshape(1, 2, 1)} if isinstance(space, gs.Dict) else hidden
        with pytest.raises(
            EnvError, match=r"observation '(vector|a)' is \[1.0 --\], masked in parts; fill in"
        ):
            make(lambda space=space, value=value: showing(space, value)).reset(0)
    for counts in ([3, 3], [3, 4]):
        env = make(lambda counts=counts: showing(gs.MultiDiscrete(counts), hidden.astype(int)))
        with pytest.raises(EnvError, match="observation 'discrete(_1)?' is .*--.*, masked in parts; fill in"):
            env.reset(0)
    with pytest.raises(EnvError, match="the reward is --, masked in parts; fill in"):
        FromGymnasium(Answers(hidden[1]), "mine").step(ACTION)
    shown = make(lambda: showing(Sound.observation_space, np.ma.array(hidden.data, mask=False))).reset(0)
    assert type(shown["vector"]) is np.ndarray and shown["vector"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "picture", [np.zeros((48, 48, 3), np.uint8), np.zeros((96, 96, 3)), np.zeros((96, 96), np.uint8), None]
)
def test_a_picture_is_looked_at_before_it_is_resized(picture: Any):
    space = gs.Box(0, 255, (96, 96, 3), np.uint8)
    with pytest.raises(EnvError, match=r"'image' is .*, its space says uint8 \[96, 96, 3\]"):
        make(lambda: showing(space, picture), size=64).reset(0)
    assert make(lambda: showing(space, space.sample()), size=64).reset(0)["image"].shape == (64, 64, 3)


def test_a_package_in_front_of_an_id_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "far_worlds.py").write_text(
        "import gymnasium\ngymnasium.register('Far-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make("gym_far_worlds:Far-v0").obs_space["vector"].shape == (3,)
    with pytest.raises(EnvError, match="'gym_far_worlds:Fra-v0'; did you mean 'gym_far_worlds:Far-v0'"):
        make("gym_far_worlds:Fra-v0")
    with pytest.raises(EnvError, match="gym_no_such:Far-v0 needs a package .*No module named 'no_such'"):
        make("gym_no_such:Far-v0")
    del gymnasium.registry["Far-v0"]
