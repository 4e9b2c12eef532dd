"""What an environment is here, and the checks that every one of them passes through."""

import difflib
import importlib
import math
import random
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fastdream.spaces import FLAGS, RESERVED, Space, Spaces

Obs = dict[str, Any]
Action = dict[str, np.ndarray]

# Bounds of this size say "no bounds": 1e10 is MuJoCo's, and float32's largest number a habit of many environments.
NO_BOUND = 1e10

SMALLEST_PICTURE = 16  # pixels a side: smaller arrays of uint8 are vectors

# The largest number of float32, in which observations and rewards are kept.
LARGEST = float(np.finfo(np.float32).max)


class EnvError(ValueError):
    """An environment that cannot be made or does not keep its promises; the text names task, key and value."""


class Env(Protocol):
    """One environment.

    obs_space      what `reset` and `step` return beside reward (float32), is_first, is_last and is_terminal (bool).
                   Keys that start with "log/" are single numbers that are only logged, and not listed; or tuples
                   of such, where a step was several of the environment inside.
    act_space      what `step` takes. Vectors are in [-1, 1] where the environment's own bounds are finite.
    deterministic  whether the seed of `reset` and the actions since then decide everything, so that replaying
                   them leads to the same state, whatever happened before the reset.

    `is_last` ends the episode; `is_terminal` says that nothing follows, so an episode that was only cut short
    (a time limit) is last and not terminal. After `is_last`, `reset` must be called: the driver does that.
    """

    obs_space: Spaces
    act_space: Spaces
    deterministic: bool

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode; a seed makes it repeatable."""

    def step(self, action: Action) -> Obs:
        """Takes one action."""

    def render(self) -> np.ndarray | None:
        """A picture of the state, uint8 [height, width, 3]; None where there is none."""

    def close(self) -> None:
        """Frees what the environment holds."""


def transition(
    obs: Obs, reward: float = 0.0, first: bool = False, last: bool = False, terminal: bool = False
) -> Obs:
    """An observation with its reward and flags."""
    return {**obs, "reward": reward, "is_first": first, "is_last": last, "is_terminal": terminal}


def near(name: str, names: Iterable[str], whole: Callable[[str], str] = str) -> str:
    """'; did you mean ...?' with up to three names like the given one or with it in them, '' when there are none.

    whole  turns a name into what the user would have to write.
    """
    lowered = {n.lower(): n for n in names}
    alike = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    longer = [n for n in lowered if name and name.lower() in n]
    close = list(dict.fromkeys([*alike, *longer]))[:3]
    return "; did you mean " + " or ".join(repr(whole(lowered[n])) for n in close) + "?" if close else ""


def unknown(suite: str, name: str, names: Iterable[str]) -> EnvError:
    """The error for a task that a suite does not have, with the nearest tasks, or all if none is near."""
    tasks = {n: f"{suite}_{n}" for n in names}
    hint = near(name, tasks, tasks.__getitem__) or f"; there are {', '.join(tasks.values())}"
    return EnvError(f"unknown task '{suite}_{name}'{hint}")


def need(package: str, extra: str) -> ModuleType:
    """Imports a package of an extra, or says how to install it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise EnvError(
            f"this needs the package {error.name!r}, which is not installed: pip install 'fastdream[{extra}]'"
        ) from error


def rescale(low: np.ndarray, high: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """How to turn an action of the policy into one of an environment with these bounds.

    [-1, 1] becomes [low, high] where both are finite. Elsewhere actions pass through. All are clipped to the bounds.
    """
    bounded, lowest, highest = _bounds(low, high)

    def apply(action: np.ndarray) -> np.ndarray:
        assert np.isfinite(action).all(), f"the policy gave the action {action}"
        scaled = (action + 1) / 2 * (highest - lowest) + lowest
        return np.clip(np.where(bounded, scaled, action), low, high)

    return apply


def unscale(low: np.ndarray, high: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse of `rescale`, for actions that an environment with these bounds was given."""
    bounded, lowest, highest = _bounds(low, high)
    width = np.where(highest > lowest, highest - lowest, 1)
    return lambda action: np.where(bounded, (action - lowest) / width * 2 - 1, action)


def _bounds(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where both bounds are finite; and the bounds, those of the policy where they are not."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    bounded = (np.abs(low) < NO_BOUND) & (np.abs(high) < NO_BOUND)
    return bounded, np.where(bounded, low, -1), np.where(bounded, high, 1)


def action_vector(shape: tuple[int, ...], low: np.ndarray, high: np.ndarray) -> Space:
    """The policy's side of `rescale`: bounds of [-1, 1], or none where one of the environment's is infinite."""
    bounded, *_ = _bounds(low, high)
    return Space("vector", shape, low=-1, high=1) if bounded.all() else Space("vector", shape)


def unmasked(name: str, value: Any) -> np.ndarray:
    """As an array; EnvError where NumPy's mask says that a part of it is not there."""
    if np.ma.is_masked(value):
        raise EnvError(f"{name} is {value}, masked in parts; fill in what is missing")
    return np.asarray(value)


def number(name: str, value: Any) -> float:
    """A reward or the like; EnvError for what is not one finite number."""
    array = unmasked(name, value)
    if array.size != 1 or array.dtype.kind not in "fiub" or not math.isfinite(array.item()):
        raise EnvError(f"{name} is {value!r}; it must be one finite number")
    return float(array.item())


def flag(name: str, value: Any) -> bool:
    """`terminated` or the like; EnvError for what is neither True nor False, as 1 and 0 are."""
    if isinstance(value, bool):  # which needs no look of a microsecond
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiub" or array.item() not in (0, 1):
        raise EnvError(f"{name} is {value!r}; it must be True or False")
    return bool(array.item())


def _copied(action: Action) -> Action:
    """For an environment to change as it likes: the driver keeps the action, and `Repeat` takes it again."""
    return {key: np.array(value) for key, value in action.items()}


class Wrapper:
    """Passes everything on to the environment inside."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.obs_space = env.obs_space
        self.act_space = env.act_space
        self.deterministic = bool(getattr(env, "deterministic", False))

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        return self.env.reset(seed)

    def step(self, action: Action) -> Obs:
        """Takes one action."""
        return self.env.step(action)

    def render(self) -> np.ndarray | None:
        """A picture of the state, None where there is none."""
        return self.env.render() if hasattr(self.env, "render") else None

    def close(self) -> None:
        """Frees what the environment holds."""
        if hasattr(self.env, "close"):
            self.env.close()


class Repeat(Wrapper):
    """Takes each action several times and sums the rewards."""

    def __init__(self, env: Env, times: int) -> None:
        super().__init__(env)
        if times < 1:
            raise EnvError(f"an action is repeated at least once, got repeat={times}")
        self._times = times

    def step(self, action: Action) -> Obs:
        """Repeats the action until the episode is over. Of what is only logged, the numbers of all steps are given."""
        reward, logs = 0.0, dict[str, tuple[float, ...]]()
        for _ in range(self._times):
            obs = self.env.step(_copied(action))
            reward += obs["reward"]
            for key in [key for key in obs if key.startswith("log/")]:
                logs[key] = (*logs.get(key, ()), obs[key])
            if obs["is_last"]:
                break
        return {**obs, **logs, "reward": reward}


def seed_all(seed: int) -> None:
    """Begin the generators that a whole process shares, Python's and NumPy's, anew."""
    random.seed(seed)
    np.random.seed(seed)


class Seeded(Wrapper):
    """Lets what an environment draws from the generators of its whole process follow the seed of its episode, too."""

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        if seed is not None:
            seed_all(seed)
        return self.env.reset(seed)


class Checked(Wrapper):
    """Holds an environment to its spaces, and gives every value the dtype that its space names.

    Raises EnvError for a missing, unknown or misshapen key, for a class out of range, and for numbers that are not
    finite in float32. A vector of nothing but -inf, and a discrete entry of nothing but -1, mean "not available" and
    pass.
    """

    def __init__(self, env: Env, task: str, seed: int | None = None) -> None:
        super().__init__(env)
        self._task = task
        self._seed = seed  # of the first episode, where `reset` is given none
        self._steps = 0
        for key in (*self.obs_space, *self.act_space):
            if key in RESERVED or "/" in key or "." in key:
                raise EnvError(f"{task}: {key!r} cannot be the name of an observation or action")
        if not self.act_space:
            raise EnvError(f"{task}: the action space is empty")

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        self._steps = 0
        seed, self._seed = self._seed if seed is None else seed, None
        return self._check(self.env.reset(seed))

    def step(self, action: Action) -> Obs:
        """Takes one action."""
        self._steps += 1
        return self._check(self.env.step(_copied(action)))

    def _check(self, obs: Obs) -> Obs:
        try:
            return self._checked(obs)
        except EnvError as error:
            raise EnvError(f"{self._task}: {error} (step {self._steps} of the episode)") from None

    def _checked(self, obs: Obs) -> Obs:
        missing = [key for key in (*self.obs_space, *RESERVED) if key not in obs]
        if missing:
            raise EnvError(f"observation {missing[0]!r} is missing")
        checked: Obs = {key: _entry(key, obs[key], space) for key, space in self.obs_space.items()}
        if abs(reward := number("the reward", obs["reward"])) > LARGEST:
            raise EnvError(f"the reward is {reward}, more than float32 holds; scale it")
        checked["reward"] = np.float32(reward)
        for key in FLAGS:
            checked[key] = np.bool_(flag(key, obs[key]))
        for key in obs.keys() - checked.keys():
            if not key.startswith("log/"):
                raise EnvError(f"observation {key!r} is not in the observation space")
            name, given = repr(key), obs[key]
            several = isinstance(given, tuple)
            checked[key] = tuple(number(name, x) for x in given) if several else number(name, given)
        return checked


def _entry(key: str, value: Any, space: Space) -> np.ndarray:
    """What an environment showed, in the dtype of its space; EnvError where it is something else."""
    value = unmasked(f"observation {key!r}", value)
    kinds = {"image": "u", "vector": "fiub", "discrete": "iub"}[space.kind]
    wrong_image = space.kind == "image" and value.dtype != np.uint8
    if value.shape != space.shape or value.dtype.kind not in kinds or wrong_image:
        got = f"{value.dtype} {list(value.shape)}"
        raise EnvError(f"observation {key!r} is {got}, its space says {space.dtype} {list(space.shape)}")
    # Not finite, or not in float32. The least and the most tell, as NaN passes no comparison.
    if space.kind == "vector" and not (float(value.min()) >= -LARGEST and float(value.max()) <= LARGEST):
        bad = value[~(np.abs(value.astype(np.float64)) <= LARGEST)].flat[0]
        if not (value == -np.inf).all():
            much = ", more than float32 holds" if np.isfinite(bad) else ""
            raise EnvError(f"observation {key!r} contains {bad}{much}: {value}")
    if space.kind == "discrete" and (value.min() < -1 or value.max() >= space.classes):
        raise EnvError(f"observation {key!r} is {value}, its space has the classes 0 to {space.classes - 1}")
    # A copy where the dtype is right already: the environment may use its array again.
    return value.astype(space.dtype)
