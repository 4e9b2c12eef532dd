"""Episodes of a dataset in replay's layout, whatever they were stored as, and what can be wrong with them.

All layouts are brought to one: arrays of equal length T+1 for T transitions, where index t holds an observation, the
reward and flags that arrived with it, and the action that led to it (see replay.py); index 0 is the reset, whose
reward is zero, and whose action is none.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastdream.envs.base import LARGEST, SMALLEST_PICTURE
from fastdream.spaces import FLAGS, Space, Spaces

Array = NDArray[Any]
Arrays = dict[str, Array]

# Beside these, names that begin with "log" and names with a slash other than "action/..." are no observations.
NOT_OBSERVED = ("discount", "step_type")
# Names that other code gives to what is called is_terminal, is_last and the next observation here.
ENDS = re.compile(r"dones?|(terminal|timeout|terminated|truncated|termination|truncation)s?", re.I)
NEXT = re.compile(r"next_(obs|observation|state)s?", re.I)
ACTION_SLACK = 1e-3  # what rounding may add to an action at its bound


class DatasetError(ValueError):
    """A dataset cannot be learned from; says which file and key, and what is wrong there."""


class Raw(NamedTuple):
    """Episodes in a row as a reader found them: observations, `action` or `action/<key>`, reward, perhaps flags."""

    place: str
    data: Arrays


class Source(Protocol):
    """A dataset that can be read from its beginning any number of times.

    spaces  observations and actions where the dataset says what they are, None where that must be inferred.
    """

    layout: str
    spaces: tuple[Spaces, Spaces] | None

    def episodes(self) -> Iterator[Raw]:
        """Every episode; DatasetError for a file that cannot be read."""


def standard(raw: Raw) -> tuple[Arrays, list[str]]:
    """The episode with all keys that replay wants, dtypes as they came; and what is wrong with it, if anything is."""
    data = {key: planes(value) for key, value in raw.data.items() if _kept(key)}
    if "action" in data:
        data["action/action"] = data.pop("action")
    discount = {"discount": raw.data["discount"]} if "discount" in raw.data else {}
    problems = _missing(raw, data) or _misshapen(raw.place, data | discount)
    if not problems:
        data |= _flags(data, discount.get("discount"))
        # What stands beside a reset means nothing, whatever it is.
        data |= {key: _blank(data[key], data["is_first"]) for key in data if key.startswith("action/")}
        problems = _not_finite(raw.place, data)
    return data, problems


def _blank(value: Array, where: Array) -> Array:
    """The value [T+1, ...] with zeros there."""
    return np.where(where.reshape(-1, *[1] * (value.ndim - 1)), np.zeros((), value.dtype), value)


def is_picture(value: Array) -> bool:
    """Whether these are images [T+1, height, width, channels]."""
    return value.dtype == np.uint8 and value.ndim == 4 and min(value.shape[1:3]) >= SMALLEST_PICTURE


def planes(value: Array) -> Array:
    """Pictures [T+1, height, width] with an axis of one channel, as environments' have it; all else as it is."""
    return value[..., None] if value.ndim == 3 and is_picture(value[..., None]) else value


def _kept(key: str) -> bool:
    if key.startswith("action"):
        return key == "action" or key.startswith("action/")
    return key not in NOT_OBSERVED and not key.startswith("log") and "/" not in key


def _missing(raw: Raw, data: Arrays) -> list[str]:
    have = f"it has {', '.join(sorted(raw.data)) or 'nothing'}"
    problems = []
    if "reward" not in data:
        problems.append(f"{raw.place}: 'reward' is missing; {have}")
    if not action_keys(data):
        problems.append(f"{raw.place}: 'action' is missing; {have}")
    if not observation_keys(data):
        problems.append(f"{raw.place}: there is no observation; {have}")
    return problems


def foreign(raw: Raw, known: tuple[Spaces, Spaces] | None) -> list[str]:
    """Where ends of episodes or next observations would be learned from as observations, or be passed over."""
    if known and "is_terminal" in raw.data:
        return []
    problems = []
    for key in raw.data.keys() - (known[0] if known else {}).keys():
        following = NEXT.fullmatch(key) or key.removeprefix("next_") in raw.data.keys() - {key}
        if following and not known:
            remedy = "leave it out: the next observation is that of the next record"
        elif ENDS.fullmatch(key):
            remedy = (
                "call it is_terminal (nothing follows) or is_last (cut off, or the end), at the record that it arrived "
                "with, or leave it out"
            )
        else:
            continue
        problems.append(f"{raw.place}: {key!r} would be an observation; {remedy}")
    return sorted(problems)


def _misshapen(place: str, data: Arrays) -> list[str]:
    problems = []
    for key, value in data.items():
        if value.dtype.kind not in "biuf":
            problems.append(f"{place}: {key!r} is of dtype {value.dtype}; numbers are needed")
        elif value.ndim == 0:
            problems.append(f"{place}: {key!r} is one number; an entry for every step is needed")
        elif key in ("reward", "discount", *FLAGS) and value.ndim != 1:
            problems.append(f"{place}: {key!r} has shape {list(value.shape)}; one number a step is needed")
    if problems:
        return problems
    lengths = {key: len(value) for key, value in data.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in sorted(lengths.items()))
        return [
            f"{place}: the arrays differ in length ({listed}); the action at t leads to the observation at t"
        ]
    if lengths["reward"] < 2:
        return [f"{place}: it has {lengths['reward']} records; a transition needs two"]
    return []


def _flags(data: Arrays, discount: Array | None) -> Arrays:
    """Where episodes begin, end and are over: as it is said, or as follows from discount and length."""
    first = data.get("is_first", np.zeros(len(data["reward"]))).astype(bool)
    last = data.get("is_last", np.zeros(len(first))).astype(bool)
    ended = np.zeros(len(first)) if discount is None else discount == 0
    terminal = data.get("is_terminal", ended).astype(bool)
    last |= terminal
    first[0] = last[-1] = True
    first[1:] |= last[:-1]
    last[:-1] |= first[1:]
    return {"is_first": first, "is_last": last, "is_terminal": terminal}


def _not_finite(place: str, data: Arrays) -> list[str]:
    problems = []
    for key, value in data.items():
        if value.dtype.kind != "f" or (np.abs(value, dtype=float) <= LARGEST).all():
            continue
        rows = value.reshape(len(value), -1)
        # A vector of nothing but -inf says "not available"; no reward or action may be that.
        absent = (rows == -np.inf).all(1) & (key != "reward" and not key.startswith("action/"))
        wrong = ~(np.abs(rows, dtype=float) <= LARGEST)
        bad = np.flatnonzero(wrong.any(1) & ~absent)
        if len(bad):
            number = rows[bad[0]][wrong[bad[0]]][0]
            much = ", more than float32 holds," if np.isfinite(number) else ""
            problems.append(f"{place}: {key!r} contains {number}{much} at record {bad[0]}")
    return problems


def action_keys(data: Arrays) -> list[str]:
    """Names of the actions: those after "action/"."""
    return [key.removeprefix("action/") for key in data if key.startswith("action/")]


def observation_keys(data: Arrays) -> list[str]:
    """Names of the observations."""
    return [key for key in data if key not in ("reward", *FLAGS) and not key.startswith("action/")]


def records(
    place: str, data: Arrays, obs_space: Spaces, act_space: Spaces, clip: bool = False
) -> tuple[Arrays, list[str]]:
    """A standard episode in exactly the shapes and dtypes of the spaces; and where it does not fit them.

    clip  actions beyond [-1, 1] are what an environment clipped, not actions in another scale.
    """
    wanted = [(key, space, False) for key, space in obs_space.items()]
    wanted += [(f"action/{key}", space, True) for key, space in act_space.items()]
    out, problems = {}, []
    for name, space, action in wanted:
        if name not in data:
            have = sorted(name for name in data if name.startswith("action/") == action)
            problems.append(f"{place}: {name!r} is missing; there is {', '.join(have)}")
            continue
        value = _shaped(data[name], space, action)
        if action and bounded(space) and (clip or np.abs(value).max() <= 1 + ACTION_SLACK):
            value = np.clip(value, -1, 1)
        if text := _unfit(value, space, action):
            problems.append(f"{place}: {name!r} {text}")
            continue
        out[name] = value.astype(space.dtype)
        if action and space.kind == "discrete":
            out[name][data["is_first"]] = -1  # class 0 is an action
    out["reward"] = data["reward"].astype(np.float32)
    return out | {key: data[key].astype(bool) for key in FLAGS}, problems


def bounded(space: Space) -> bool:
    """Whether a policy's actions are in [-1, 1] here."""
    return space.kind == "vector" and (space.low, space.high) == (-1, 1)


def _shaped(value: Array, space: Space, action: bool) -> Array:
    """Classes from one-hots; an axis of one more or less than the space says."""
    shape = value.shape[1:]
    onehots = space.kind == "discrete" and action and shape == (*space.shape, space.classes)
    if onehots and onehot(value):
        return value.argmax(-1)
    if space.kind != "image" and space.size == 1 and len(shape) <= 2 and np.prod(shape) == 1:
        return value.reshape(len(value), *space.shape)
    return value


def onehot(value: Array) -> bool:
    """Whether all entries [..., classes] are one 1 among zeros, or nothing but zeros, as a reset's are."""
    return bool(((value == 0) | (value == 1)).all() and (value.sum(-1) <= 1).all())


def _unfit(value: Array, space: Space, action: bool) -> str:
    """Why values [T+1, ...] cannot be entries of the space; "" if they can."""
    kinds = {"image": "u", "vector": "fiub", "discrete": "iub"}[space.kind]
    wrong_image = space.kind == "image" and value.dtype != np.uint8
    if value.shape[1:] != space.shape or value.dtype.kind not in kinds or wrong_image:
        got = f"{value.dtype} {list(value.shape[1:])}"
        remedy = "; --resize changes pictures" if space.kind == "image" and value.dtype == np.uint8 else ""
        return f"is {got} a step where {space.dtype} {list(space.shape)} is expected{remedy}"
    if space.kind == "discrete" and (value.min() < (0 if action else -1) or value.max() >= space.classes):
        return f"holds {value.min()} to {value.max()} where the classes are 0 to {space.classes - 1}"
    if action and bounded(space) and np.abs(value).max() > 1:
        return f"holds {value.flat[np.argmax(np.abs(value))]:.4g}; actions must be scaled to [-1, 1]"
    return ""


def singly(data: Arrays) -> Iterator[Arrays]:
    """Single episodes of records that may hold several."""
    begins = np.flatnonzero(data["is_first"])
    for begin, end in zip(begins, [*begins[1:], len(data["is_first"])], strict=True):
        yield {key: value[begin:end] for key, value in data.items()}


def episodes(source: Source, obs_space: Spaces, act_space: Spaces) -> Iterator[Arrays]:
    """The episodes of a dataset that was surveyed, in exactly the shapes and dtypes of the spaces.

    Actions beyond their bounds are clipped, as the environment did.
    """
    for raw in source.episodes():
        yield records(raw.place, standard(raw)[0], obs_space, act_space, clip=True)[0]
