"""Environments by name: `make("suite_name")`, one small file a suite, imported when it is asked for."""

import importlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from fastdream.envs.base import Checked, Env, EnvError, Seeded, near, seed_all

# Prefix of a task's name -> module, its maker, its options, and what `describe` says.
SUITES: Mapping[str, tuple[str, str, str, str]] = {
    "gym": ("gym", "make", "Options", "gym_<id>: anything that gymnasium knows by name, gym_CartPole-v1"),
    "atari": (
        "atari",
        "make",
        "Options",
        "atari_<game>: with sticky actions, 200 million frames, atari_pong",
    ),
    "atari100k": ("atari", "make", "Options100k", "atari100k_<game>: 400 thousand frames, atari100k_pong"),
    "dmc": ("dmc", "make", "Options", "dmc_<domain>_<task>: DeepMind Control, dmc_walker_walk"),
    "crafter": ("crafter", "make", "Options", "crafter_reward, crafter_noreward"),
    "minigrid": ("minigrid", "make", "Options", "minigrid_<id>: grid worlds, minigrid_DoorKey-5x5"),
    "vizdoom": ("vizdoom", "make", "Options", "vizdoom_take_cover: dodge fireballs, as World Models does"),
    "car": ("car", "make", "Options", "car_racing: CarRacing without its dashboard, as World Models sees it"),
    "dummy": ("dummy", "make", "Options", "dummy_<name>: to try things out with, dummy_vector"),
}
CUSTOM = (
    "gym",
    "make_custom",
    "Options",
    "module:callable: your own; a gymnasium.Env or a function that makes one",
)

# What an option of this type may be, and what that is called; a Literal names its own.
KINDS = {bool: (bool, "True or False"), int: (Integral, "a whole number"), float: (Real, "a number")}


def make(task: str | Callable[..., Any], seed: int = 0, **options: Any) -> Env:
    """Makes an environment.

    task     "suite_name" as `describe` lists them, "module:callable", or a callable that returns a gymnasium.Env
             (it is given the seed if it has a parameter of that name).
    seed     of whatever is random when the environment is made, and of the first `reset` that is given no seed.
    options  fields of the suite's `Options`; see `options_of`.

    Raises EnvError, a ValueError, for a task or option that does not exist, with the nearest that does; for a
    package that is not installed, with the command that installs it; and for spaces that cannot be served.
    """
    if callable(task):
        from fastdream.envs import gym

        name = getattr(task, "__qualname__", repr(task))
        return Checked(gym.from_callable(task, name, seed, _fill(gym.Options, name, options)), name, seed)
    entry, name = _find(task)
    module = importlib.import_module(f"fastdream.envs.{entry[0]}")
    chosen = _fill(getattr(module, entry[2]), task, options)
    return Checked(getattr(module, entry[1])(name, seed, chosen), task, seed)


def make_seeded(task: str, seed: int = 0, **options: Any) -> Env:
    """As `make`, for a program of its own: an environment that draws from `random` or `np.random` repeats, too."""
    seed_all(seed)
    return Seeded(make(task, seed, **options))


def options_of(task: str) -> type:
    """The frozen dataclass of a task's options, with their defaults; imports no environment."""
    entry, _ = _find(task)
    return getattr(importlib.import_module(f"fastdream.envs.{entry[0]}"), entry[2])


def suite_of(task: str) -> str:
    """The suite that a task is of; "" for a user's own, whose module may well be called gym_mine."""
    suite, _, name = task.partition("_")
    own = task.partition(":")[2].isidentifier()  # which Id-v0 of gym_package:Id-v0 is not
    return suite if suite in SUITES and name and not own else ""


def describe() -> str:
    """What tasks there are, one line a suite."""
    return "\n".join(entry[3] for entry in (*SUITES.values(), CUSTOM))


def _find(task: str) -> tuple[tuple[str, str, str, str], str]:
    if not isinstance(task, str):
        raise EnvError(f"{task!r} is no task; give its name, or a function that makes the environment")
    suite, _, name = task.partition("_")
    if suite_of(task):
        return SUITES[suite], name
    if ":" in task:
        return CUSTOM, task
    # A whole task, or the example in the suite's description.
    hint = near(suite, SUITES, lambda like: f"{like}_{name}" if name else SUITES[like][3].split()[-1])
    if not hint:
        from fastdream.envs import gym

        hint = near(task, [f"gym_{id}" for id in gym.names()])
    raise EnvError(f"unknown task {task!r}{hint}\nThere are:\n{describe()}")


def _fill(kind: type, task: str, options: dict[str, Any]) -> Any:
    known = get_type_hints(kind)
    for key, value in options.items():
        if key not in known:
            raise EnvError(f"{task} has no option {key!r}{near(key, known)}; it has {', '.join(known)}")
        choices = get_args(known[key])  # of a Literal
        if not (value in choices if choices else isinstance(value, KINDS[known[key]][0])):
            allowed = " or ".join(map(repr, choices)) or KINDS[known[key]][1]
            raise EnvError(f"{task}: {key} is {value!r}; it must be {allowed}")
    return kind(**options)
