"""Which windows of steps the replay holds, and which of them come next."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fastdream.replay_store import Ids

WindowKind = Literal["stream", "episode", "ends", "not_last"]


class Draw(NamedTuple):
    """Chosen windows: their workers [batch], and the numbers of their first steps there [batch]."""

    worker: Ids
    start: Ids


class Windows:
    """Counts the steps of each worker and chooses windows of `length` consecutive ones that are still stored.

    sizes   steps that each worker's ring keeps.
    online  queue each new stretch of `length` steps of a worker, to be chosen once before anything else.
    """

    def __init__(self, sizes: Sequence[int], length: int, online: bool, seed: int) -> None:
        self.counts = [0] * len(sizes)
        self._sizes = list(sizes)
        self._length = length
        self._online = online
        self._queue: deque[tuple[int, int]] = deque()
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return sum(max(0, filled - self._length + 1) for filled in self.filled())

    def filled(self) -> list[int]:
        """Steps that are stored of each worker."""
        return [min(*pair) for pair in zip(self.counts, self._sizes, strict=True)]

    def advance(self, worker: int, first: bool, last: bool) -> None:
        """Count one more step of a worker, which overwrote its oldest one if its ring was full.

        Whether it begins or ends an episode makes no difference here.
        """
        self.counts[worker] += 1
        if self._online and self.counts[worker] % self._length == 0:
            self._queue.append((worker, self.counts[worker] - self._length))
            # Overwritten ones are dropped in bulk: a queue that nobody reads stays small, at no cost per
            # step.
            if len(self._queue) > 2 * (sum(self._sizes) // self._length):
                self._queue = deque(entry for entry in self._queue if self._stored(*entry))

    def choose(self, batch: int) -> Draw:
        """Choose `batch` windows: queued ones in their order, then uniformly among all, with repetition."""
        filled = np.array(self.filled())
        windows = np.maximum(0, filled - self._length + 1)
        if not windows.any():
            have = f"its workers have {filled.tolist()} steps"
            raise ValueError(f"the replay holds no window of {self._length} steps yet; {have}")
        queued: list[tuple[int, int]] = []
        while self._queue and len(queued) < batch:
            entry = self._queue.popleft()
            if self._stored(*entry):
                queued.append(entry)
        bounds = np.cumsum(windows)
        number = self._rng.integers(0, bounds[-1], batch - len(queued))
        worker = np.searchsorted(bounds, number, side="right")
        start = (np.array(self.counts) - filled)[worker] + number - (bounds - windows)[worker]
        first = np.array(queued, np.int64).reshape(-1, 2)
        return Draw(np.concatenate([first[:, 0], worker]), np.concatenate([first[:, 1], start]))

    def state(self) -> dict[str, Any]:
        """All that decides what comes next, in JSON types."""
        queue = [list(entry) for entry in self._queue]
        return {"counts": list(self.counts), "queue": queue, "rng": self._rng.bit_generator.state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.counts = list(state["counts"])
        self._queue = deque((worker, start) for worker, start in state["queue"])
        self._rng.bit_generator.state = state["rng"]

    def clear(self) -> None:
        """Hold no steps."""
        self.counts = [0] * len(self._sizes)
        self._queue.clear()

    def _stored(self, worker: int, start: int) -> bool:
        return start >= self.counts[worker] - self._sizes[worker]
