"""Windows that each lie within one finished episode, chosen by episode: short episodes count as much as long ones."""

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastdream.replay_store import Ids
from fastdream.replay_windows import Draw


class EpisodeWindows:
    """As `Windows`, over episodes: first one of them, uniformly, then a start in it.

    An episode counts from its last step on, or from the first step of the next where none was marked, until its
    first step is overwritten. One that is shorter than a window is left out; so is one that is longer than its ring,
    of which the first one warns.

    sizes   steps that each worker's ring keeps.
    extra   starts beyond the last possible one, which stand for that: 0 draws starts uniformly, `length` draws the
            end of an episode as often as all else together would be long, and -1 leaves the last start out.
    """

    def __init__(self, sizes: Sequence[int], length: int, extra: int, seed: int) -> None:
        self.counts = [0] * len(sizes)
        self._sizes, self._length, self._extra = list(sizes), length, extra
        self._begun: list[int] = [0] * len(sizes)  # first step of the episode that goes on
        self._episodes: list[deque[tuple[int, int]]] = [deque() for _ in sizes]  # first step, length
        self._table: Ids | None = None  # worker, first step, length of all of them, until something changes
        self._rng = np.random.default_rng(seed)
        self._warned = False

    def __len__(self) -> int:
        return int((self._all()[:, 2] - self._length + 1 + min(self._extra, 0)).sum())

    def filled(self) -> list[int]:
        """Steps that are stored of each worker."""
        return [min(*pair) for pair in zip(self.counts, self._sizes, strict=True)]

    def advance(self, worker: int, first: bool, last: bool) -> None:
        """Count one more step of a worker, which may begin or end an episode."""
        if first:
            self._finish(worker)
        self.counts[worker] += 1
        if not self._warned and self.counts[worker] - self._begun[worker] > self._sizes[worker]:
            self._warn(worker)
        if last:
            self._finish(worker)
        episodes, oldest = self._episodes[worker], self.counts[worker] - self._sizes[worker]
        while episodes and episodes[0][0] < oldest:
            episodes.popleft()
            self._table = None

    def _warn(self, worker: int) -> None:
        self._warned = True
        warnings.warn(
            f"an episode is longer than the {self._sizes[worker]} steps that replay keeps of each environment, so "
            "nothing of it is ever sampled: choose a larger --replay.capacity, or --replay.windows stream",
            stacklevel=4,
        )

    def _finish(self, worker: int) -> None:
        begin, end = self._begun[worker], self.counts[worker]
        self._begun[worker] = end
        if end - begin >= self._length - min(self._extra, 0):
            self._episodes[worker].append((begin, end - begin))
            self._table = None

    def choose(self, batch: int) -> Draw:
        """Choose `batch` windows, with repetition."""
        table = self._all()
        if not len(table):
            raise ValueError(
                f"the replay holds no finished episode of {self._length - min(self._extra, 0)} steps or more yet; "
                "shorten --train.batch-length, or sample across episodes with --replay.windows stream"
            )
        worker, begin, length = table[self._rng.integers(0, len(table), batch)].T
        last = length - self._length
        start = np.minimum(self._rng.integers(0, last + 1 + self._extra), last)
        return Draw(worker, begin + start)

    def _all(self) -> Ids:
        if self._table is None:
            rows = [(w, *episode) for w, episodes in enumerate(self._episodes) for episode in episodes]
            self._table = np.array(rows, np.int64).reshape(-1, 3)
        return self._table

    def state(self) -> dict[str, Any]:
        """All that decides what comes next, in JSON types."""
        episodes = [[list(episode) for episode in worker] for worker in self._episodes]
        facts = {"counts": list(self.counts), "begun": list(self._begun), "episodes": episodes}
        return facts | {"rng": self._rng.bit_generator.state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.counts, self._begun = list(state["counts"]), list(state["begun"])
        self._episodes = [deque((begin, length) for begin, length in worker) for worker in state["episodes"]]
        self._table = None
        self._rng.bit_generator.state = state["rng"]

    def clear(self) -> None:
        """Hold no steps."""
        self.counts, self._begun = [0] * len(self._sizes), [0] * len(self._sizes)
        self._episodes = [deque() for _ in self._sizes]
        self._table = None
