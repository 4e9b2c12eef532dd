"""Environments of a user's own: what they must have, what they may leave out, and how they are seeded and drawn."""

import os
import random
import sys
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from fastdream.build import in_processes
from fastdream.cli import parse
from fastdream.envs import make, make_seeded, suite_of
from fastdream.envs.base import Checked, EnvError, Seeded
from fastdream.envs.images import drawn
from fastdream.presets import preset_of
from fastdream.spaces import Space


class Corridor(gymnasium.Env):
    """Walk right; three steps are enough, five are the limit."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.count = 0
        return np.zeros(1), {}

    def step(self, action):
        self.place += int(action)
        self.count += 1
        return (
            np.array([self.place], float),
            float(action),
            self.place >= 3,
            self.count >= 5,
            {"log/place": self.place},
        )


class Plain:
    """No more than an own environment must have."""

    obs_space = {"discrete": Space("discrete", (), 2)}
    act_space = {"action": Space("discrete", (), 2)}

    def reset(self, seed=None):
        self.seed = seed
        return {"discrete": True, "reward": True, "is_first": 1, "is_last": 0, "is_terminal": 0}

    def step(self, action):
        return {"discrete": 0, "is_first": False, "is_last": False, "is_terminal": False}


def test_an_own_environment_may_leave_out_what_it_does_not_do_but_no_reward():
    env = make(Plain)
    obs = env.reset(0)
    assert not env.deterministic and env.render() is None and env.close() is None
    assert obs["discrete"] == obs["reward"] == 1 and obs["is_first"].dtype == obs["is_last"].dtype == bool
    with pytest.raises(EnvError, match="Plain: observation 'reward' is missing"):
        env.step({"action": np.int32(0)})


def test_an_environment_is_closed_and_seeded_through_what_wraps_it():
    class Closing(Plain):
        closed = False

        def close(self):
            self.closed = True

    inner = Closing()
    env = Seeded(Checked(inner, "closing"))
    assert [env.reset(seed) and inner.seed for seed in (0, None, 7)] == [0, None, 7]
    env.reset(0)
    draws = random.random(), np.random.rand()
    env.reset(0)
    assert draws == (random.random(), np.random.rand())
    env.close()
    assert inner.closed


@pytest.mark.parametrize(("actions", "terminal"), [([1, 1, 1], True), ([0, 1, 0, 1, 0], False)])
def test_an_own_environment_ends_or_is_cut_short(actions, terminal):
    env = make(Corridor)
    obs = [env.reset(0), *(env.step({"action": np.int32(a)}) for a in actions)]
    assert [bool(o["is_last"]) for o in obs] == [False] * len(actions) + [True]
    assert bool(obs[-1]["is_terminal"]) == terminal
    assert obs[-1]["log/place"] == sum(actions) and obs[-1]["vector"].dtype == np.float32


class Loose(Corridor):
    """What Python and gymnasium allow: keywords that are not named, and info of another kind, with other keys."""

    closed = False

    def reset(self, **given):
        return super().reset(**given)[0], types.MappingProxyType({"log/begun": 1, 2: "two"})

    def close(self):
        self.closed = True


def test_what_gymnasium_allows_is_served():
    env = make(Loose)
    assert env.reset(0)["log/begun"] == 1 and not env.deterministic
    env.close()
    assert env.env._env.closed
    untold = Loose()
    untold.reset = dict  # type: ignore[assignment]  # as of compiled code, nobody knows its parameters
    assert make(lambda: untold).act_space


def test_the_seed_of_an_environment_is_that_of_its_first_episode():
    def begun(**seed):
        env = make("gym_CartPole-v1", **seed)
        return [env.reset()["vector"].tolist() for _ in range(2)]

    one, again, other = begun(seed=3), begun(seed=3), begun(seed=4)
    assert one == again and one[0] != one[1] and one[0] != other[0]
    for alike in (
        make(lambda: gymnasium.make("CartPole-v1"), seed=3),
        make_seeded("gym_CartPole-v1", seed=3),
    ):
        assert alike.reset()["vector"].tolist() == one[0]
    env = make("gym_CartPole-v1", seed=3)
    assert env.reset(seed=4)["vector"].tolist() == other[0] and env.reset()["vector"].tolist() == other[1]


def test_a_registered_class_is_an_environment_that_need_not_repeat_itself(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Loose-v0", Loose)
    monkeypatch.setitem(gymnasium.registry, "Loose-v0", spec)
    env = make("gym_Loose-v0")
    assert env.reset(0)["is_first"] and not env.deterministic


def test_a_function_that_does_not_tell_its_parameters_is_named():
    with pytest.raises(EnvError, match="dict: no signature found .*; give a Python function that calls it"):
        make("builtins:dict")


def test_a_module_and_callable_make_an_environment(tmp_path, monkeypatch):
    Path(tmp_path, "homemade.py").write_text(
        "import gymnasium\n"
        "def plain(): return gymnasium.make('CartPole-v1')\n"
        "def seeded(seed): return gymnasium.make('Pendulum-v1', g=seed)\n"
        "def wrong(): return 3\n"
        "number = 4\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make("homemade:plain").act_space["action"].classes == 2
    assert make("homemade:seeded", seed=7).env._env.unwrapped.g == 7
    with pytest.raises(EnvError, match="made int"):
        make("homemade:wrong")
    with pytest.raises(EnvError, match="is int; it must be a function"):
        make("homemade:number")
    with pytest.raises(EnvError, match="did you mean 'homemade:plain'"):
        make("homemade:plane")
    with pytest.raises(EnvError, match="no module called 'homemad'"):
        make("homemad:plain")
    Path(tmp_path, "homemade.py").rename(tmp_path / "gym_homemade.py")
    assert make("gym_homemade:plain").act_space["action"].classes == 2
    assert [suite_of(task) for task in ("gym_homemade:plain", "gym_homemade:Own-v0")] == ["", "gym"]
    assert preset_of("atari_homemade:plain") == "gym" and preset_of("atari_pong") == "atari"
    assert in_processes(parse(["--task", "gym_homemade:plain"]).config)
    Path(tmp_path, "needing.py").write_text("import no_such_package")
    with pytest.raises(EnvError, match="needing:make: no module called 'no_such_package'"):
        make("needing:make")


def test_rendering_is_prepared_only_when_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    env = make("gym_CartPole-v1")
    env.reset(0)
    assert env.env._env.unwrapped.render_mode is None and "SDL_VIDEODRIVER" not in os.environ
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(EnvError, match="gym_CartPole-v1 cannot be rendered: pygame"):
        env.render()
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"
    assert make(Corridor).render() is None


def test_a_screen_that_was_asked_for_is_kept_and_of_several_pictures_the_last_is_shown(monkeypatch):
    class Drawing(Corridor):
        metadata = {"render_modes": ["rgb_array", "rgb_array_list"]}
        frames = [np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)]

        def __init__(self, mode=None):
            self.render_mode = mode

        def render(self):
            return self.frames if self.render_mode == "rgb_array_list" else self.frames[0]

    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    assert drawn(make(Drawing)).max() == 0 and os.environ["SDL_VIDEODRIVER"] == "x11"
    several = Drawing("rgb_array_list")
    assert drawn(make(lambda: several)).max() == 1
    several.frames = []
    assert drawn(make(lambda: several)) == "render gave float64 [0]; a picture is uint8 [height, width, 3]"
    several.metadata = None
    assert drawn(make(lambda: several)).startswith("the environment draws no pictures")

    class Needing(Drawing):
        def render(self):
            import no_such_package  # noqa: F401

    assert drawn(make(Needing)).endswith("Needing cannot be rendered: No module named 'no_such_package'")


def test_cartpole_renders_where_pygame_is():
    pytest.importorskip("pygame", reason="pygame draws the picture")
    env = make("gym_CartPole-v1")
    env.reset(0)
    assert env.render().dtype == np.uint8 and env.render().shape == (400, 600, 3)
