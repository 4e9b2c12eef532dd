"""A look at the whole of a dataset before anything learns from it: what it holds, and what is wrong with it."""

import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np

from fastdream.datasets.infer import Inference
from fastdream.datasets.layout import Arrays, DatasetError, Raw, Source, foreign, records, singly, standard
from fastdream.progress import counted, tenths
from fastdream.spaces import Spaces

SHOWN = 10  # problems that are listed; of the others only the number is said


class Survey(NamedTuple):
    """What a sound dataset holds.

    steps    records: transitions, and one reset an episode.
    returns  sum of rewards of each episode; lengths their transitions. One that is a reset alone has none: it counts in
             no other number, and neither as an episode.
    terminal whether each ended in a terminal state.
    digest   checksum of all arrays, by which a resumed run knows the dataset again.
    """

    obs_space: Spaces
    act_space: Spaces
    steps: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    terminal: tuple[bool, ...]
    digest: int

    @property
    def episodes(self) -> int:
        return len(self._played()[0])

    @property
    def mean(self) -> float:
        """Mean return, which an agent that learned something should beat."""
        return float(np.mean(self._played()[0]))

    def summary(self) -> dict[str, Any]:
        """Its numbers as JSON holds them."""
        returns, lengths = self._played()
        spread = {"mean": self.mean, "std": float(np.std(returns)), "min": min(returns), "max": max(returns)}
        facts = {"episodes": self.episodes, "steps": self.steps, "mean_length": float(np.mean(lengths))}
        return facts | {"return": spread, "digest": self.digest}

    def __str__(self) -> str:
        returns, lengths = self._played()
        mean, std, low, high = map(tenths, (self.mean, float(np.std(returns)), min(returns), max(returns)))
        spread = f"return {mean} ± {std} ({low} to {high})"
        return f"{counted(self.episodes, 'episode')} of {np.mean(lengths):,.0f} steps, {spread}"

    def _played(self) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that have a transition."""
        both = [(score, length) for score, length in zip(self.returns, self.lengths, strict=True) if length]
        return [score for score, _ in both], [length for _, length in both]


def survey(source: Source, spaces: tuple[Spaces, Spaces] | None = None) -> Survey:
    """Read everything once, and hold it to the spaces: these, the dataset's own, or those that can be inferred.

    Raises DatasetError that names every fault by file and key, or the first ones if there are many.
    """
    known, inference = spaces or source.spaces, Inference()
    problems: list[str] = []
    returns: list[float] = []
    lengths: list[int] = []
    terminal: list[bool] = []
    digest = steps = 0
    shifted = True
    for raw in source.episodes():
        data, found = standard(raw)
        found = found or foreign(raw, known)
        if not found:
            clip = source.spaces is not None
            found = records(raw.place, data, *known, clip)[1] if known else inference.add(raw.place, data)
        if found:
            problems += found
            continue
        shifted &= _acts_at_reset(raw)
        steps += len(data["reward"])
        digest = _digest(data, digest)
        for episode in singly(data):
            returns.append(float(episode["reward"].sum(dtype=np.float64)))
            lengths.append(len(episode["reward"]) - 1)
            terminal.append(bool(episode["is_terminal"].any()))
    if problems:
        more = len(problems) - SHOWN
        listed = "\n  ".join([*problems[:SHOWN], *([f"and {more} more"] if more > 0 else [])])
        raise DatasetError(f"the dataset cannot be learned from:\n  {listed}")
    if not any(lengths):
        raise DatasetError("the dataset holds no episode" + " but lone resets" * bool(lengths))
    if shifted:
        warnings.warn(
            "every episode has an action beside its first observation. Here the action at t is the one that led to the "
            "observation at t, with its reward, and that of a reset is zero: shift yours if they are others",
            stacklevel=2,
        )
    obs, act = known or inference.spaces()
    return Survey(obs, act, steps, tuple(returns), tuple(lengths), tuple(terminal), digest)


def _acts_at_reset(raw: Raw) -> bool:
    """Whether an action, neither zeros nor NaN nor a class of -1, stands beside the first record."""
    return any(
        not np.isin(np.nan_to_num(value[0]), [0, -1] if value.dtype.kind == "i" else 0).all()
        for key, value in raw.data.items()
        if key.split("/")[0] == "action"
    )


def _digest(data: Arrays, before: int) -> int:
    for key in sorted(data):
        before = zlib.crc32(np.ascontiguousarray(data[key]).data.cast("B"), zlib.crc32(key.encode(), before))
    return before
