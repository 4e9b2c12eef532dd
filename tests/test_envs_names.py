"""Tasks and options by name: what is unknown or unfit is named, with what there is instead."""

import sys

import gymnasium
import numpy as np
import pytest

from fastdream.envs import make
from fastdream.envs.base import EnvError, need


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("atary_pong", "'atari_pong'"),
        ("CartPole-v1", "'gym_CartPole-v1'"),
        ("gym_Cartpole-v2", "'gym_CartPole-v1'"),
        ("dummy_vectr", "did you mean 'dummy_vector'?"),
        ("crafter_rewrad", "'crafter_reward'"),
        ("os.path:jion", "'os.path:join'"),
        ("crafter_x", "there are crafter_reward, crafter_noreward"),
        ("dmc", "'dmc_walker_walk'"),
        ("dummy_VECTOR", "'dummy_vector'"),
        ("car_race", "'car_racing'"),
        ("dummy_", "'dummy_vector'"),
        ("dummy_discret", "did you mean 'dummy_discrete' or 'dummy_multidiscrete'?"),
        ("gym_Mountain", "did you mean 'gym_MountainCar-v0' or 'gym_MountainCarContinuous-v0'?"),
        ("gym_nothing_like_it", "gymnasium.pprint_registry()"),
        ("", "atari_pong"),
        ("nonsense", "gym_<id>"),
    ],
)
def test_an_unknown_task_gives_the_nearest_one(task, hint):
    with pytest.raises(EnvError, match="unknown|no 'jion'") as error:
        make(task)
    assert hint in str(error.value)


def test_what_is_no_name_is_told_what_to_give_instead():
    with pytest.raises(EnvError, match="CartPoleEnv.* is no task; give its name, or a function that makes"):
        make(gymnasium.make("CartPole-v1"))


def test_an_unknown_option_gives_the_nearest_one():
    with pytest.raises(EnvError, match=r"no option 'lenght'; did you mean 'length'.*size"):
        make("dummy_vector", lenght=3)


@pytest.mark.parametrize(
    ("task", "option", "allowed"),
    [
        ("atari_pong", {"lives": "terminal"}, "'unused' or 'discount' or 'reset'"),
        ("minigrid_Empty-5x5", {"obs": "pixels"}, "'vision' or 'flat'"),
        ("atari_pong", {"sticky": None}, "a number"),
        ("car_racing", {"size": "64"}, "a whole number"),
        ("dmc_walker_walk", {"repeat": 2.0}, "a whole number"),
        ("dummy_vector", {"terminal": "no"}, "True or False"),
    ],
)
def test_an_option_of_another_kind_is_named_with_what_it_may_be(task, option, allowed):
    ((key, value),) = option.items()
    with pytest.raises(EnvError, match=f"{task}: {key} is {value!r}; it must be {allowed}$"):
        make(task, **option)


def test_whole_numbers_pass_for_any_and_those_of_numpy_too():
    assert make("dummy_slow", delay=0, length=np.int64(3)).reset(0)["is_first"]


def broken(error):
    def make_it():
        raise error

    return make_it


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("no_such_package:Env", "needs a package that is not installed: No module named 'no_such_package'"),
        (broken(gymnasium.error.DependencyNotInstalled("get it")), "a package that is not installed: get it"),
        (broken(gymnasium.error.Error("of its own")), "cannot be made: of its own"),
        (broken(gymnasium.error.NameNotFound("inner")), "cannot be made: inner"),
    ],
)
def test_a_known_id_that_cannot_be_made_says_why(entry, text, monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Broken-v0", entry)
    monkeypatch.setitem(gymnasium.registry, "Broken-v0", spec)
    with pytest.raises(EnvError, match=f"gym_Broken-v0 {'needs ' * ('get' in text)}{text}"):
        make("gym_Broken-v0")


def test_sizes_and_repeats_of_any_environment_are_checked():
    with pytest.raises(EnvError, match="gym_CartPole-v1: size is -1; it must be 0, for pictures as they are"):
        make("gym_CartPole-v1", size=-1)
    with pytest.raises(EnvError, match="repeat=0"):
        make("gym_CartPole-v1", repeat=0)


@pytest.mark.parametrize("option", [{"length": 0}, {"size": 0}, {"delay": -1.0}])
def test_a_dummy_refuses_numbers_that_are_too_small(option):
    ((key, value),) = option.items()
    with pytest.raises(EnvError, match=f"need length and size >= 1 and delay >= 0, got .*{key}={value}"):
        make("dummy_image", **option)


def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(EnvError, match=r"pip install 'fastdream\[atari\]'"):
        make("atari_pong")
    with pytest.raises(EnvError, match=r"pip install 'fastdream\[atari\]'"):
        make("gym_ALE/Pong-v5")
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(EnvError, match=r"pip install 'fastdream\[minigrid\]'"):
        make("minigrid_Empty-5x5")
    with pytest.raises(EnvError, match="'no_such_package'"):
        need("no_such_package.part", "none")


def test_a_package_that_is_there_and_does_not_start_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "ailing_package.py").write_text("raise ImportError('libEGL.so not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libEGL\.so"):
        need("ailing_package", "none")
