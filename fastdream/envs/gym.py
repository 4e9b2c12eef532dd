"""gym_<id>: every environment that gymnasium knows by name, and `module:callable`: a user's own."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium

from fastdream.envs.base import Checked, Env, EnvError, Repeat, near, need
from fastdream.envs.from_gymnasium import FromGymnasium
from fastdream.envs.images import Resize

# Families whose state after a reset is a function of the seed alone, and whose steps draw from nothing else.
EXACT = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text")


@dataclass(frozen=True)
class Options:
    """Settings of gym_<id> and of a user's own environments."""

    repeat: int = 1
    """Times that each action is taken."""
    size: int = 0
    """Height and width that pictures are resized to; 0 leaves them as they are."""


def names() -> list[str]:
    """All ids that are registered now."""
    return list(gymnasium.registry)


def make(name: str, seed: int, options: Options) -> Env:
    """An environment of gymnasium by its id, such as CartPole-v1, ALE/Pong-v5 or package:Id-v0."""
    task = f"gym_{name}"
    package, _, id = name.rpartition(":")
    if id.startswith(("MiniGrid-", "BabyAI-")):
        raise EnvError(
            f"{task} asks for its mission in words, which are not served; use the task minigrid_{id}"
        )
    if name.startswith("ALE/"):  # in gymnasium's registry only once the package is imported
        gymnasium.register_envs(need("ale_py", "atari"))
    try:
        if package:  # which registers its ids
            importlib.import_module(package)
        spec = gymnasium.spec(id)
        env = gymnasium.make(id, disable_env_checker=True)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise EnvError(f"{task} needs a package that is not installed: {error}") from error
    except gymnasium.error.Error as error:
        if id not in gymnasium.registry:
            listed = (
                f": {error} python -c 'import gymnasium; gymnasium.pprint_registry()' lists those there are"
            )
            hint = near(id, names(), task.removesuffix(id).__add__) or listed
            raise EnvError(f"unknown task {task!r}{hint}") from error
        raise EnvError(f"{task} cannot be made: {error}") from error
    return _finish(FromGymnasium(env, task, _exact(spec.entry_point)), task, options)


def _exact(entry_point: Any) -> bool:
    return isinstance(entry_point, str) and entry_point.startswith(EXACT)


def _finish(env: Env, task: str, options: Options) -> Env:
    if options.size < 0:
        raise EnvError(f"{task}: size is {options.size}; it must be 0, for pictures as they are, or more")
    if options.size:
        env = Resize(Checked(env, task), options.size)  # which tells nothing from a picture that it is given
    return Repeat(env, options.repeat) if options.repeat != 1 else env


def make_custom(name: str, seed: int, options: Options) -> Env:
    """The environment that `module:callable` returns when it is called, with the seed if it takes one."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise EnvError(f"{name!r} lacks the module or what makes the environment: module:callable")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise EnvError(f"{name}: no module called {error.name!r} on the Python path") from error
    except AttributeError as error:
        public = [n for n in vars(importlib.import_module(module)) if not n.startswith("_")]
        raise EnvError(
            f"{name}: {module} has no {attribute!r}{near(attribute, public, f'{module}:{{}}'.format)}"
        ) from error
    return from_callable(factory, name, seed, options)


def from_callable(factory: Callable[..., Any], name: str, seed: int, options: Options) -> Env:
    """The environment that a function makes: a gymnasium.Env, or anything with the members of `Env`."""
    if not callable(factory):
        raise EnvError(
            f"{name} is {type(factory).__name__}; it must be a function or class that makes an environment"
        )
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError as error:  # compiled code may not tell
        raise EnvError(f"{name}: {error}; give a Python function that calls it") from error
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    named = any(p.name == "seed" for p in parameters)
    places = [p for p in required if not named and p.kind is not p.KEYWORD_ONLY][:1]
    if unknown := [p.name for p in required if p.name != "seed" and p not in places]:
        raise EnvError(
            f"{name} needs {', '.join(unknown)}: give a function that takes nothing, or the seed alone, and makes the "
            "environment"
        )
    env = factory(seed=seed) if named else factory(*[seed for _ in places])
    if isinstance(env, gymnasium.Env):
        return _finish(FromGymnasium(env, name), name, options)
    missing = [m for m in ("obs_space", "act_space", "reset", "step") if not hasattr(env, m)]
    if missing:
        raise EnvError(f"{name} made {type(env).__name__}, no gymnasium.Env and without {', '.join(missing)}")
    return _finish(env, name, options)
