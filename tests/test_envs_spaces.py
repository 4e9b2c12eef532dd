"""From gymnasium's spaces to ours: what becomes what, values there and back, and what is refused."""

import gymnasium
import gymnasium.spaces as gs
import numpy as np
import pytest
from gymnasium.spaces.utils import flatten as gym_flat
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdream.envs.base import Checked, EnvError, rescale, transition, unscale
from fastdream.envs.convert import action, action_encoder, observation
from fastdream.envs.from_gymnasium import FromGymnasium
from fastdream.spaces import Space, alike, spaces_from_json, spaces_to_json

U8 = {"low": 0, "high": 255, "dtype": np.uint8}

OBSERVATIONS = [
    (gs.Box(shape=(64, 64, 3), **U8), {"image": Space("image", (64, 64, 3))}),
    (gs.Box(shape=(84, 84), **U8), {"image": Space("image", (84, 84, 1))}),
    (gs.Box(shape=(16, 16, 16), **U8), {"image": Space("image", (16, 16, 16))}),
    (gs.Dict(eye=gs.Box(shape=(32, 32, 3), **U8)), {"eye": Space("image", (32, 32, 3))}),
    (gs.Box(shape=(64, 15, 3), **U8), {"vector": Space("vector", (2880,), low=0, high=255)}),
    (gs.Box(shape=(7, 7, 3), **U8), {"vector": Space("vector", (147,), low=0, high=255)}),
    (gs.Box(shape=(128,), **U8), {"vector": Space("vector", (128,), low=0, high=255)}),
    (gs.Box(-np.inf, np.inf, (4,)), {"vector": Space("vector", (4,))}),
    (gs.Box(-3.4e38, 3.4e38, (4,)), {"vector": Space("vector", (4,))}),
    (gs.Box(0, np.inf, (4,)), {"vector": Space("vector", (4,))}),
    (gs.Box(-np.inf, 0, (4,)), {"vector": Space("vector", (4,))}),
    (gs.Box(np.float32([2, 3]), np.float32([5, 4])), {"vector": Space("vector", (2,), low=2, high=5)}),
    (gs.Box(-1, 1, (3, 2), np.float64), {"vector": Space("vector", (3, 2), low=-1, high=1)}),
    (gs.Box(-1, 1, (2, 3, 4)), {"vector": Space("vector", (24,), low=-1, high=1)}),
    (gs.Box(-5, 9, (), np.int64), {"vector": Space("vector", (), low=-5, high=9)}),
    (gs.Discrete(5, start=2), {"discrete": Space("discrete", (), 5)}),
    (gs.MultiDiscrete([3, 3]), {"discrete": Space("discrete", (2,), 3)}),
    (
        gs.MultiDiscrete([3, 4]),
        {"discrete_0": Space("discrete", (), 3), "discrete_1": Space("discrete", (), 4)},
    ),
    (gs.MultiBinary((2, 3)), {"discrete": Space("discrete", (2, 3), 2)}),
    (gs.MultiBinary((1, 2, 1)), {f"discrete_{i}": Space("discrete", (), 2) for i in range(2)}),
    (
        gs.Dict(a=gs.Dict(b=gs.Box(0, 1, (2,)), reward=gs.Discrete(2)), reward=gs.Box(0, 1, ())),
        {
            "a_b": Space("vector", (2,), low=0, high=1),
            "a_reward": Space("discrete", (), 2),
            "obs_reward": Space("vector", (), low=0, high=1),
        },
    ),
    (
        gs.Tuple((gs.Discrete(2), gs.Dict({"x/y.z": gs.Discrete(3)}))),
        {"0": Space("discrete", (), 2), "1_x_y_z": Space("discrete", (), 3)},
    ),
]


class Showing:
    """An environment that shows samples of a gymnasium space."""

    act_space = {"action": Space("discrete", (), 2)}
    deterministic = False

    def __init__(self, space):
        self.space = space
        self.obs_space, self.encode = observation(space)

    def reset(self, seed=None):
        self.value = self.space.sample()
        return transition(self.encode(self.value), first=True)


@pytest.mark.parametrize(("space", "expected"), OBSERVATIONS, ids=lambda x: str(x)[:40])
def test_observation_spaces_become_ours_and_their_samples_pass_the_check(space, expected):
    env = Showing(space)
    assert env.obs_space == expected
    checked = Checked(env, "showing")
    for _ in range(5):
        assert checked.reset().keys() > expected.keys()


def test_the_numbers_of_an_observation_arrive():
    dice = gs.MultiDiscrete([[2, 3], [4, 5]], start=[[5, 6], [7, 8]])
    _, encode = observation(gs.Dict(board=gs.Box(0, 9, (2, 2, 2), np.int32), dice=dice))
    obs = encode({"board": np.arange(8).reshape(2, 2, 2), "dice": np.array([[6, 8], [10, 12]])})
    assert obs["board"].tolist() == list(range(8))
    assert [obs[f"dice_{i}"] for i in range(4)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (gs.Dict(say=gs.Text(5)), r"observation 'say' is Text.*what is: Box, Discrete"),
        (gs.Sequence(gs.Discrete(2)), "observation 'observation' is Sequence"),
        (gs.Box(shape=(32, 32, 17), **U8), r"\[32, 32, 17\].* with up to 16 channels"),
        (gs.Box(shape=(3, 84, 84), **U8), r"\[3, 84, 84\].*\[height, width, channels\].*transpose"),
        (gs.Dict({"a": gs.Dict(b=gs.Discrete(2)), "a_b": gs.Discrete(2)}), "two entries are called 'a_b'"),
        (
            gs.Dict(a=gs.Discrete(2), b=gs.Box(-1, 1, (0,))),
            "the observation 'b' is Box.*, which holds nothing",
        ),
        (gs.Box(shape=(64, 64, 0), **U8), "the observation 'observation' is Box.*, which holds nothing"),
    ],
)
def test_observation_spaces_that_cannot_be_served_are_named(space, text):
    with pytest.raises(EnvError, match=text):
        observation(space)


@pytest.mark.parametrize("shape", [(16, 20, 3), (3, 16, 20)])
def test_a_picture_of_floats_is_served_with_a_warning(shape):
    with pytest.warns(UserWarning, match=r"numbers; a picture must be uint8 \[height, width, channels\]"):
        spaces, _ = observation(gs.Box(0, 1, shape))
    assert spaces == {"vector": Space("vector", (960,), low=0, high=1)}


def test_a_stack_of_pictures_is_served_with_a_warning():
    with pytest.warns(UserWarning, match="vector of 49152 numbers; leave frame stacking to the world model"):
        spaces, _ = observation(gs.Box(shape=(4, 64, 64, 3), **U8))
    assert spaces == {"vector": Space("vector", (49152,), low=0, high=255)}


ACTIONS = [
    (gs.Discrete(4, start=3), {"action": Space("discrete", (), 4)}),
    (gs.MultiDiscrete([3, 3]), {"action": Space("discrete", (2,), 3)}),
    (gs.MultiDiscrete([[2, 3], [4, 5]]), {f"action_{i}": Space("discrete", (), i + 2) for i in range(4)}),
    (gs.MultiBinary(3), {"action": Space("discrete", (3,), 2)}),
    (gs.Box(-2, 2, (2,)), {"action": Space("vector", (2,), low=-1, high=1)}),
    (gs.Box(-np.inf, np.inf, (2,)), {"action": Space("vector", (2,))}),
    (gs.Box(np.float32([-1, -np.inf]), np.float32([1, 1])), {"action": Space("vector", (2,))}),
    (gs.Box(np.float32([-1, -1]), np.float32([1, np.inf])), {"action": Space("vector", (2,))}),
    (gs.Box(-1, 1, (2, 3)), {"action": Space("vector", (2, 3), low=-1, high=1)}),
    (gs.Box(0, 1, (2, 1, 2)), {"action": Space("vector", (4,), low=-1, high=1)}),
    (
        gs.Dict(arm=gs.Box(0, 1, (2,)), hand=gs.Dict(grip=gs.Discrete(2))),
        {"arm": Space("vector", (2,), low=-1, high=1), "hand_grip": Space("discrete", (), 2)},
    ),
    (
        gs.Tuple((gs.Discrete(2), gs.Dict(x=gs.Box(0, 1, (1,))))),
        {"action_0": Space("discrete", (), 2), "action_1_x": Space("vector", (1,), low=-1, high=1)},
    ),
]


@pytest.mark.parametrize(("space", "expected"), ACTIONS, ids=lambda x: str(x)[:40])
def test_actions_land_in_their_gymnasium_space(space, expected):
    spaces, decode = action(space)
    assert spaces == expected
    rng = np.random.default_rng(0)
    for _ in range(10):
        act = {
            key: rng.integers(s.classes, size=s.shape) if s.kind == "discrete" else rng.normal(0, 2, s.shape)
            for key, s in spaces.items()
        }
        assert space.contains(decode(act))


@pytest.mark.parametrize("space", [space for space, _ in ACTIONS], ids=lambda x: str(x)[:40])
def test_an_action_of_gymnasium_comes_back_as_one_of_ours(space):
    (known, decode), (spaces, encode) = action(space), action_encoder(space)
    sample = space.sample()
    ours = encode(sample)
    assert spaces == known and ours.keys() == known.keys()
    assert all((ours[key].shape, ours[key].dtype) == (s.shape, s.dtype) for key, s in spaces.items())
    assert gym_flat(space, decode(ours)) == pytest.approx(gym_flat(space, sample), rel=1e-5, abs=1e-6)


def test_an_action_has_the_type_that_its_space_gives():
    for space in (gs.Discrete(3, start=1), gs.MultiBinary(2), gs.Box(0, 1, (2,), np.float64)):
        spaces, decode = action(space)
        taken, given = decode({"action": np.zeros(spaces["action"].shape, np.int32)}), space.sample()
        assert type(taken) is type(given) and taken.dtype == given.dtype


def test_bounds_that_are_far_apart_for_their_type_are_scaled_as_others():
    space = gs.Box(-60_000, 60_000, (1,), np.float16)
    (_, decode), (_, encode) = action(space), action_encoder(space)
    assert (
        decode({"action": np.full(1, 0.5)}) == 30_000
        and encode(np.full(1, 30_000, np.float16))["action"] == 0.5
    )


@pytest.mark.parametrize(
    "space", [gs.Box(0, 9, (2,), np.int32), gs.Text(4), gs.Dict(a=gs.Sequence(gs.Discrete(2)))]
)
def test_action_spaces_that_cannot_be_served_are_named(space):
    with pytest.raises(EnvError, match=r"the action '(action|a)' is .*Box of floats"):
        action(space)


@pytest.mark.parametrize("space", [gs.Box(-1, 1, (2, 0)), gs.MultiDiscrete(np.ones(0, int))])
def test_actions_of_nothing_are_named(space):
    with pytest.raises(EnvError, match="the action 'action' is .*, which holds nothing; leave it out"):
        action(space)


@pytest.mark.parametrize("reward", [None, np.zeros(2), "much"])
def test_a_reward_that_is_no_number_is_named(reward):
    class Env(gymnasium.Env):
        observation_space, action_space = gs.Discrete(2), gs.Discrete(2)

        def step(self, action):
            return 0, reward, False, False, {}

    with pytest.raises(EnvError, match="mine: the reward is .*; it must be one finite number"):
        FromGymnasium(Env(), "mine").step({"action": np.array(1)})


def test_finite_bounds_are_scaled_and_infinite_ones_passed_through():
    scale = rescale(np.array([0, -np.inf, 0]), np.array([10, np.inf, np.inf]))
    assert scale(np.array([0.5, 7.0, -3.0])).tolist() == [7.5, 7.0, 0.0]
    assert scale(np.array([-4.0, -9.0, 5.0])).tolist() == [0.0, -9.0, 5.0]
    # Rounding may not lead beyond a bound.
    low, high = np.array([0.1]), np.array([0.7])
    assert rescale(low, high)(np.array([1.0])) <= high and rescale(low, high)(np.array([-1.0])) >= low
    # A number that can have one value alone was recorded as what is scaled to it.
    assert unscale(low, low)(low) == -1 and rescale(low, low)(np.array([-1.0])) == low
    with pytest.raises(AssertionError, match="nan"):
        scale(np.array([np.nan, 0, 0]))


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.floats(1e-3, 1e6),
    st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=2, max_size=2).map(sorted),
)
def test_rescaling_keeps_order_and_bounds(low, width, pair):
    scale = rescale(np.array([low]), np.array([low + width]))
    small, large = (scale(np.array([a]))[0] for a in pair)
    assert low <= small <= large <= low + width
    assert scale(np.array([-1.0]))[0] == low and scale(np.array([1.0]))[0] == pytest.approx(low + width)


def test_spaces_are_alike_whatever_bounds_they_name():
    one = {"x": Space("vector", (3,)), "k": Space("discrete", (2,), 4)}
    assert alike(one, {**one, "x": Space("vector", (3,), low=-1, high=1)})
    for other in (
        {**one, "k": Space("discrete", (2,), 5)},
        {**one, "k": Space("discrete", (), 4)},
        {**one, "x": Space("vector", (3, 1))},
        {"x": one["x"]},
    ):
        assert not alike(one, other) and not alike(other, one)


def test_spaces_survive_json_and_one_that_holds_nothing_is_refused():
    spaces = {
        "x": Space("vector", (3,), low=-1),
        "k": Space("discrete", (), 4),
        "i": Space("image", (8, 8, 3)),
    }
    assert "high" not in spaces_to_json(spaces)["x"] and spaces_from_json(spaces_to_json(spaces)) == spaces
    with pytest.raises(ValueError, match=r"a vector space of shape \(2, 0\) holds nothing"):
        Space("vector", (2, 0))
