"""From gymnasium's spaces to ours, and values with them.

Pictures are uint8 arrays [height, width, channels] or [height, width] of at least 16 × 16 pixels. All other
arrays are vectors of float32; those of more than two dimensions are flattened. Discrete entries count from zero.
Arrays of unequal class counts become one entry an element, name_0, name_1, ...; entries of Dict and Tuple
spaces are called outer_inner.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium.spaces as gs
import numpy as np

from fastdream.envs.base import (
    NO_BOUND,
    SMALLEST_PICTURE,
    Action,
    EnvError,
    Obs,
    action_vector,
    rescale,
    unscale,
)
from fastdream.spaces import RESERVED, Space, Spaces

Encode = Callable[[Any], Obs]
Decode = Callable[[Action], Any]

MOST_CHANNELS = 16


def observation(space: gs.Space, name: str = "") -> tuple[Spaces, Encode]:
    """Our description of an observation space, and how its values become entries of an observation.

    name is where the space was found; a space that is not within another is called by its kind. Raises EnvError
    for spaces that cannot be served, with name and space.
    """
    if isinstance(space, gs.Dict | gs.Tuple):
        parts = {key: observation(sub, _join(name, key)) for key, sub in _children(space)}
        spaces = _merge([part for part, _ in parts.values()])
        return spaces, lambda value: {k: v for key, (_, f) in parts.items() for k, v in f(value[key]).items()}
    _refuse_empty("observation", name or "observation", space)
    if isinstance(space, gs.Box):
        return _box_observation(space, name)
    if isinstance(space, gs.Discrete | gs.MultiDiscrete | gs.MultiBinary):
        return _discrete_observation(space, name)
    raise _unsupported("observation", name or "observation", space)


def action(space: gs.Space, name: str = "action") -> tuple[Spaces, Decode]:
    """Our description of an action space, and how an action of ours becomes one of the environment's.

    Raises EnvError for spaces that cannot be served, with name and space.
    """
    if isinstance(space, gs.Dict | gs.Tuple):
        prefix = "" if isinstance(space, gs.Dict) and name == "action" else name
        parts = {key: action(sub, _join(prefix, key)) for key, sub in _children(space)}
        spaces = _merge([part for part, _ in parts.values()])
        if isinstance(space, gs.Dict):
            return spaces, lambda act: {key: decode(act) for key, (_, decode) in parts.items()}
        return spaces, lambda act: tuple(decode(act) for _, decode in parts.values())
    _refuse_empty("action", name, space)
    if isinstance(space, gs.Box) and space.dtype.kind == "f":
        return _box_action(space, name)
    if isinstance(space, gs.Discrete | gs.MultiDiscrete | gs.MultiBinary):
        return _discrete_action(space, name)
    raise _unsupported("action", name, space)


def _children(space: gs.Dict | gs.Tuple) -> list[tuple[Any, gs.Space]]:
    return list(space.spaces.items()) if isinstance(space, gs.Dict) else list(enumerate(space.spaces))


def _join(name: str, key: Any) -> str:
    joined = "_".join(part for part in (name, str(key)) if part).replace("/", "_").replace(".", "_")
    return f"obs_{joined}" if joined in RESERVED else joined


def _merge(parts: list[Spaces]) -> Spaces:
    merged: Spaces = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise EnvError(f"two entries are called {sorted(twice)[0]!r}; rename one of them")
        merged.update(part)
    return merged


def _refuse_empty(what: str, name: str, space: gs.Space) -> None:
    if 0 in (space.shape or ()):
        raise EnvError(f"the {what} {name!r} is {space}, which holds nothing; leave it out")


def _unsupported(what: str, name: str, space: gs.Space) -> EnvError:
    served = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"
    if what == "action":
        served = served.replace("Box", "Box of floats")
    return EnvError(f"the {what} {name!r} is {space}, which is not served; what is: {served}")


def _box_observation(space: gs.Box, name: str) -> tuple[Spaces, Encode]:
    shape = space.shape
    if space.dtype == np.uint8 and len(shape) in (2, 3):
        if len(shape) == 3 and shape[2] > MOST_CHANNELS:
            raise EnvError(
                f"the observation {name or 'image'!r} is uint8 {list(shape)}: pictures are [height, width, channels] "
                f"with up to {MOST_CHANNELS} channels; transpose it, or leave frame stacking to the world model"
            )
        if min(shape[:2]) >= SMALLEST_PICTURE:
            key, picture = name or "image", (*shape[:2], 1 if len(shape) == 2 else shape[2])
            return {key: Space("image", picture)}, lambda value: {key: _shaped(value, shape, picture)}
    key = name or "vector"
    flat = shape if len(shape) <= 2 else (int(np.prod(shape)),)
    # Of a picture, or a stack of them, wherever its channels are.
    if len(shape) in (3, 4) and sorted(shape)[-2] >= SMALLEST_PICTURE:
        wanted = "leave frame stacking to the world model"
        if len(shape) == 3:
            wanted = "a picture must be uint8 [height, width, channels]"
        warnings.warn(
            f"the observation {key!r} is {space.dtype} {list(shape)} and becomes a vector of {flat[0]} numbers; "
            f"{wanted}",
            stacklevel=2,
        )
    low, high = float(space.low.min()), float(space.high.max())
    bounded = max(-low, high) < NO_BOUND
    entry = Space("vector", flat, low=low, high=high) if bounded else Space("vector", flat)
    return {key: entry}, lambda value: {key: _shaped(value, shape, flat)}


def _shaped(value: Any, shape: tuple[int, ...], flat: tuple[int, ...]) -> np.ndarray:
    """Reshapes what has its declared shape; what has not stays as it is, for the check to report it, as for masks."""
    array = np.asanyarray(value)
    return array.reshape(flat) if array.shape == shape else array


def _classes(space: gs.Discrete | gs.MultiDiscrete | gs.MultiBinary) -> tuple[np.ndarray, np.ndarray]:
    """Class count and first class of each element, in the shape of the space."""
    if isinstance(space, gs.MultiBinary):
        return np.full(space.shape, 2), np.zeros(space.shape, int)
    if isinstance(space, gs.Discrete):
        return np.array(int(space.n)), np.array(int(space.start))
    return np.asarray(space.nvec, int), np.asarray(space.start, int)


def _discrete_spaces(counts: np.ndarray, name: str) -> Spaces:
    if (counts == counts.flat[0]).all() and counts.ndim <= 2:
        return {name: Space("discrete", counts.shape, int(counts.flat[0]))}
    return {f"{name}_{i}": Space("discrete", (), int(count)) for i, count in enumerate(counts.flat)}


def _discrete_observation(
    space: gs.Discrete | gs.MultiDiscrete | gs.MultiBinary, name: str
) -> tuple[Spaces, Encode]:
    counts, start = _classes(space)
    name = name or "discrete"
    spaces = _discrete_spaces(counts, name)

    def encode(value: Any) -> Obs:
        array = np.asanyarray(value)
        if array.shape != start.shape:  # NumPy would give each element what is there for one
            raise ValueError(f"its shape is {list(array.shape)}, expected {list(start.shape)}")
        classes = array - start
        return {name: classes} if name in spaces else dict(zip(spaces, classes.flat, strict=True))

    return spaces, encode


def _discrete_action(
    space: gs.Discrete | gs.MultiDiscrete | gs.MultiBinary, name: str
) -> tuple[Spaces, Decode]:
    counts, start = _classes(space)
    spaces = _discrete_spaces(counts, name)

    def decode(act: Mapping[str, np.ndarray]) -> Any:
        value = np.stack([np.asarray(act[key]) for key in spaces])
        return (value.reshape(counts.shape) + start).astype(space.dtype)

    return spaces, decode


def _box_action(space: gs.Box, name: str) -> tuple[Spaces, Decode]:
    scale = rescale(space.low, space.high)
    flat = space.shape if len(space.shape) <= 2 else (int(np.prod(space.shape)),)
    entry = action_vector(flat, space.low, space.high)

    def decode(act: Mapping[str, np.ndarray]) -> np.ndarray:
        # An array also of a single number without dimensions, as the space's own samples are.
        return np.asarray(scale(np.asarray(act[name]).reshape(space.shape)), space.dtype)

    return {name: entry}, decode


def action_encoder(space: gs.Space, name: str = "action") -> tuple[Spaces, Encode]:
    """The same spaces as `action`, and how an action of the environment becomes one of ours: what `action` undoes.

    Values beyond finite bounds stay beyond [-1, 1].
    """
    if isinstance(space, gs.Dict | gs.Tuple):
        prefix = "" if isinstance(space, gs.Dict) and name == "action" else name
        parts = {key: action_encoder(sub, _join(prefix, key)) for key, sub in _children(space)}
        spaces = _merge([part for part, _ in parts.values()])
        return spaces, lambda value: {k: v for key, (_, f) in parts.items() for k, v in f(value[key]).items()}
    spaces, _ = action(space, name)
    if isinstance(space, gs.Box):
        scale, shape = unscale(space.low, space.high), spaces[name].shape
        return spaces, lambda value: {name: scale(value).reshape(shape).astype(np.float32)}
    assert isinstance(space, gs.Discrete | gs.MultiDiscrete | gs.MultiBinary), space
    counts, start = _classes(space)

    def encode(value: Any) -> Obs:
        classes = (np.asarray(value) - start).astype(np.int32)
        return (
            {name: classes}
            if name in spaces
            else dict(zip(spaces, classes.reshape(counts.size), strict=True))
        )

    return spaces, encode
