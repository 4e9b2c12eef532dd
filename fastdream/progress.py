"""How far a run is, in numbers: counters, scores, rates over the last minute, and the time that is left."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 60.0  # seconds that rates are measured over
RECENT = 20  # episodes that the score is the mean of


@dataclass(frozen=True)
class Goal:
    """What a run is for: `steps` in all (0: no end is known), of which `start` were there when it was resumed.

    stage   of a run that learns in stages: the one that this is the goal of, whose steps are each a `unit`.
    """

    task: str = ""
    steps: int = 0
    start: int = 0
    device: str = ""
    run: str = ""
    ops: str = ""
    stage: str = ""
    unit: str = "step"


class Progress:
    """Counters of a run and what follows from them."""

    def __init__(self, goal: Goal, clock: Callable[[], float] = time.monotonic) -> None:
        self.goal, self._clock = goal, clock
        self._begin = clock()
        self.step, self.updates, self.episodes = goal.start, 0, 0
        self.best = -math.inf
        self.losses: dict[str, float] = {}
        self.saved: float | None = None
        self.trend = Trend()
        self._scores: deque[float] = deque(maxlen=RECENT)
        self._lengths: deque[float] = deque(maxlen=RECENT)
        self._marks: deque[tuple[float, int, int]] = deque()

    def turn(self, goal: Goal) -> None:
        """Turn to the next goal: its steps are counted anew; the clock and the scores go on."""
        self.goal, self.step = goal, goal.start
        self._marks.clear()

    def move(self, step: int, updates: int) -> None:
        """The run has come to this step and has made this many updates in all."""
        now = self._clock()
        self.step, self.updates = step, updates
        if not self._marks or now - self._marks[-1][0] >= 0.25:
            self._marks.append((now, step, updates))
        # One mark from before the window stays: rates are measured from it.
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW:
            self._marks.popleft()

    def episode(self, score: float, length: int) -> None:
        """An episode has ended."""
        self.episodes += 1
        self.best = max(self.best, score)
        self._scores.append(score)
        self._lengths.append(length)
        self.trend.add(score)

    @property
    def score(self) -> float:
        """Mean of the last episodes; NaN if there is none."""
        return _mean(self._scores)

    @property
    def length(self) -> float:
        """Mean length of the last episodes in steps; NaN if there is none."""
        return _mean(self._lengths)

    @property
    def fraction(self) -> float:
        """Of the steps that are done, in [0, 1]; 0 if no end is known."""
        return min(1.0, self.step / self.goal.steps) if self.goal.steps else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start of this process's part."""
        return self._clock() - self._begin

    @property
    def since_saved(self) -> float | None:
        """Seconds since the last checkpoint; None if there is none."""
        return None if self.saved is None else self._clock() - self.saved

    def steps_rate(self) -> float:
        """Steps a second over the last minute; NaN before it is known."""
        return self._rate(1)

    def updates_rate(self) -> float:
        """Updates a second over the last minute; NaN before it is known."""
        return self._rate(2)

    def left(self) -> float | None:
        """Seconds to the goal at the present rate; None if that is not known or too far away to mean anything."""
        rate = self.steps_rate()
        if not self.goal.steps or not rate > 0:
            return None
        seconds = max(0, self.goal.steps - self.step) / rate
        return seconds if seconds < 100 * 86400 else None

    def _rate(self, counter: int) -> float:
        if not self._marks:
            return math.nan
        mark = self._marks[0]
        seconds = self._clock() - mark[0]
        done = (self.step, self.updates)[counter - 1] - mark[counter]
        return done / seconds if seconds > 0.5 else math.nan


def _mean(values: deque[float]) -> float:
    # Copied in one go: the thread that draws must not meet one that appends.
    numbers = tuple(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


class Trend:
    """A long history in few numbers: each is the mean of equally many values."""

    LIMIT = 64

    def __init__(self) -> None:
        self._means: list[float] = []
        self._each = 1
        self._part: list[float] = []

    def add(self, value: float) -> None:
        """Append one value; when the numbers become too many, neighbours are merged."""
        self._part.append(value)
        if len(self._part) == self._each:
            self._means.append(sum(self._part) / self._each)
            self._part = []
        if len(self._means) == self.LIMIT:
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._each *= 2

    def values(self, count: int) -> list[float]:
        """The history in `count` numbers at the most, oldest first."""
        means = self._means
        count = min(count, len(means))
        edges = [len(means) * i // count for i in range(count + 1)] if count else []
        return [sum(means[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]


def duration(seconds: float) -> str:
    """Seconds for people: '0:42', '12:05', '3:04:05', '2 d 4 h'."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def number(value: float) -> str:
    """A number in about four digits: '1,234', '87.3', '0.0123', '1.2e-05'; '-' if it is not finite."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else f"{value}"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-3:
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def tenths(value: float) -> str:
    """A score as a result is said: '495.8'; and '0.253', '1e-05' where a decimal would say little or nothing."""
    return f"{value:.3g}" if 0 < abs(value) < 1 else f"{value:.1f}"


def counted(count: int, what: str) -> str:
    """So many of these: '1 episode', '2,000 episodes'."""
    return f"{count:,} {what}{'s' * (count != 1)}"
