"""What an observation or an action looks like: the one description that environments, replay and networks share."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["image", "vector", "discrete"]

# Every observation carries these beside what the environment shows; no encoder or decoder sees them.
FLAGS = ("is_first", "is_last", "is_terminal")
RESERVED = ("reward", *FLAGS)


@dataclass(frozen=True)
class Space:
    """One entry of an observation or action dictionary.

    kind      "image": uint8 [H, W, C]; "vector": float32 of any shape of up to two dimensions;
              "discrete": int32 of any shape of up to two dimensions, each element in [0, classes).
    shape     shape of one entry, without batch dimensions; () is a scalar.
    classes   number of classes of every element of a discrete entry, 0 otherwise.
    low, high bounds of a vector that has finite ones; informative, never enforced here.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    classes: int = 0
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        if self.kind == "image" and len(self.shape) != 3:
            raise ValueError(f"an image space needs shape (height, width, channels), got {self.shape}")
        if self.kind != "image" and len(self.shape) > 2:
            raise ValueError(f"a {self.kind} space has at most two dimensions, got {self.shape}")
        if 0 in self.shape:
            raise ValueError(f"a {self.kind} space of shape {self.shape} holds nothing")
        if (self.kind == "discrete") != (self.classes > 0):
            raise ValueError(f"a {self.kind} space cannot have {self.classes} classes")

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the entry in observations, actions and replay."""
        return np.dtype({"image": np.uint8, "vector": np.float32, "discrete": np.int32}[self.kind])

    @property
    def size(self) -> int:
        """Number of elements of one entry."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Width of the flat vector that networks see: one-hot for discrete entries, the elements otherwise."""
        return self.size * max(1, self.classes)


Spaces = dict[str, Space]


def spaces_seen(spaces: Spaces) -> Spaces:
    """What an agent with these observations looks at when it acts: them and is_first."""
    return spaces | {"is_first": Space("discrete", classes=2)}


def seen(obs: Mapping[str, np.ndarray], spaces: Spaces, n: int) -> dict[str, np.ndarray]:
    """The entries of n environments' observation that have these spaces; ValueError naming one that has not.

    As in an environment, a vector of nothing but -inf and the class -1 are "not available".
    """
    entries = {}
    for key, space in spaces.items():
        if key not in obs:
            there = ", ".join(sorted(obs)) if isinstance(obs, Mapping) else f"a {type(obs).__name__}"
            raise ValueError(f"the observation has no {key!r}, only {there}")
        entry = obs[key]
        if not isinstance(entry, np.ndarray):
            raise ValueError(f"obs[{key!r}] is a {type(entry).__name__}, expected an array [{n}, ...]")
        if entry.shape != (n, *space.shape):
            raise ValueError(
                f"obs[{key!r}] has shape {list(entry.shape)}, expected {[n, *space.shape]}: {n} environments, as in "
                "the carry"
            )
        if space.kind == "discrete":
            _refuse_other_classes(key, entry, space.classes)
        # A sum of squares is the quickest look; that it may overflow is why it does not decide.
        elif space.kind == "vector" and not (
            entry.dtype.kind in "fiub" and math.isfinite(np.vdot(entry, entry))
        ):
            _refuse_no_numbers(key, entry)
        entries[key] = entry
    return entries


def _refuse_other_classes(key: str, entry: np.ndarray, classes: int) -> None:
    # Of so few numbers Python's own looks take a fraction of the time of NumPy's reductions.
    known = range(-1, classes)
    if not all(x in known for x in entry.ravel().tolist()):
        raise ValueError(
            f"obs[{key!r}] is {entry}, and its classes are 0 to {classes - 1}, as fastdream.envs.make shows them"
        )


def _refuse_no_numbers(key: str, entry: np.ndarray) -> None:
    if entry.dtype.kind not in "fiub":
        raise ValueError(f"obs[{key!r}] has the dtype {entry.dtype}, expected numbers: float32")
    for row in entry:
        with np.errstate(over="ignore"):
            row = row.astype(np.float32)
        if not (np.isfinite(row).all() or (row == -np.inf).all()):
            raise ValueError(f"obs[{key!r}] contains what is no finite number in float32: {row}")


def refuse_none(n: int) -> None:
    """ValueError for a policy of no environments."""
    if n < 1:
        raise ValueError(f"a policy acts in at least one environment, got n={n}")


def refuse_misfit(batch: Mapping[str, Any], obs_space: Spaces, act_space: Spaces, *others: str) -> None:
    """ValueError naming the first entry that a batch lacks as a tensor, of those that an agent with these spaces
    learns from, or that has another shape or dtype than the spaces say: rewards and flags [B, T, 1] would be broadcast
    against [B, T], and fractions of a class cut off.
    """
    spaces = obs_space | {f"action/{name}": space for name, space in act_space.items()}
    names = {"image": "uint8", "vector": "float32", "discrete": "int"}  # of whichever width
    kinds = {key: (space.shape, names[space.kind]) for key, space in spaces.items()}
    flags = "is_first", "is_terminal", *(key for key in others if key in FLAGS)
    kinds |= {"reward": ((), "float32")} | dict.fromkeys(flags, ((), "bool"))
    for key in (*kinds, *others):
        if key not in batch:
            raise ValueError(
                f"the batch has no {key!r}, only {', '.join(sorted(batch))}: fastdream/replay.py says what it holds"
            )
        if isinstance(batch[key], np.ndarray) or not hasattr(batch[key], "dtype"):
            raise ValueError(
                f"batch[{key!r}] is a {type(batch[key]).__name__}; agent.inputs(batch) gives tensors of arrays, on the "
                "agent's device"
            )
    steps = batch["is_first"].shape[:2]
    for key, (shape, dtype) in kinds.items():
        x = batch[key]
        if x.shape != (*steps, *shape) or dtype not in str(x.dtype):
            raise ValueError(
                f"batch[{key!r}] is {x.dtype} {list(x.shape)}, expected {dtype} {[*steps, *shape]}: sequences, steps, "
                "and what its space says"
            )


def refuse_short(batch: Mapping[str, Any], steps: int) -> None:
    """ValueError where a batch has no sequences, or sequences of fewer than so many steps, replay context included."""
    count, length = batch["is_first"].shape[:2]
    if count < 1 or length < steps:
        raise ValueError(
            f"the batch has the shape [{count}, {length}] of sequences and steps: expected [1, {steps}] at least"
        )


def alike(left: Spaces, right: Spaces) -> bool:
    """Whether entries of one are entries of the other, whatever bounds they name."""

    def facts(spaces: Spaces) -> dict[str, tuple[str, tuple[int, ...], int]]:
        return {key: (space.kind, space.shape, space.classes) for key, space in spaces.items()}

    return facts(left) == facts(right)


def spaces_to_json(spaces: Spaces) -> dict[str, dict[str, Any]]:
    """Spaces as JSON holds them: infinite bounds are left out."""
    return {
        key: {name: value for name, value in asdict(space).items() if _finite(value)}
        for key, space in spaces.items()
    }


def spaces_from_json(tree: dict[str, dict[str, Any]]) -> Spaces:
    """The inverse of `spaces_to_json`."""
    return {key: Space(**{**entry, "shape": tuple(entry["shape"])}) for key, entry in tree.items()}


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
