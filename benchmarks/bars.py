"""What the native ops have to reach on a CPU, as data, and whether measured times reach it.

A job is something to do: `observe:SIZE` (forward and backward of one batch), `imagine:SIZE` and `imagine16:SIZE` (no
gradient, from every state of a batch or from 16), `policy:JOB` (one action of an agent), `update:JOB` (one update of
one), `memory:JOB` (how much memory an update takes). A bar asks something of the candidate `native` at one job.
"""

from collections.abc import Mapping
from statistics import median
from typing import Literal, NamedTuple

from .floors import Floor

OURS = "native"
FASTEST_PEER = "fastest peer"
PATCHED = "+fastdream"  # behind the name of a peer whose functions an integration replaces


class Bar(NamedTuple):
    """One requirement.

    times      `against` takes at least `limit` times as long as native.
    floor      native takes at most `limit` times as long as its FLOPs and bytes do at the machine's measured rates.
    reading    the same with the bytes alone.
    seconds    native takes at most `limit` seconds.
    share      of `against`'s memory is what native takes, at most.
    """

    name: str
    job: str
    kind: Literal["times", "floor", "reading", "seconds", "share"]
    limit: float
    against: str = ""


BARS = (
    Bar("observe-1m", "observe:1m", "times", 6, "reference"),
    Bar("observe-1m", "observe:1m", "times", 2, "compiled"),
    Bar("observe-12m", "observe:12m", "times", 2, "reference"),
    Bar("observe-12m", "observe:12m", "times", 1.3, "compiled"),
    Bar("imagine-1m", "imagine:1m", "times", 2.5, "reference"),
    Bar("imagine-12m", "imagine:12m", "times", 1.3, "reference"),
    Bar("imagine16-1m", "imagine16:1m", "times", 5, "reference"),
    Bar("policy-1m", "policy:proprio-1m-1x1", "times", 8, "reference"),
    Bar("policy-1m", "policy:proprio-1m-1x1", "seconds", 100e-6),
    Bar("policy-12m", "policy:proprio-12m-1x1", "reading", 1.5),
    Bar("update-1m", "update:proprio-1m-16x64", "times", 3, "reference"),
    Bar("update-1m", "update:proprio-1m-16x64", "times", 3, "torchrl"),
    Bar("update-1m", "update:proprio-1m-16x64", "times", 1.2, "dreamerv3"),
    Bar("update-12m", "update:proprio-12m-4x16", "floor", 1.4),
    Bar("update-12m", "update:proprio-12m-4x16", "times", 1.7, FASTEST_PEER),
    Bar("pixels-12m", "update:pixels-12m-4x16", "times", 2, "r2dreamer"),
    Bar("memory-1m", "memory:proprio-1m-16x64", "share", 1, "reference"),
    Bar("memory-12m", "memory:proprio-12m-4x16", "share", 1, "reference"),
    Bar("memory-pixels", "memory:pixels-12m-4x16", "share", 1, "reference"),
)


class Rates(NamedTuple):
    """What this machine was measured to do at its best with so many threads."""

    flops: float  # a second, of a matrix product
    bytes: float  # a second, read from memory

    def seconds(self, floor: Floor) -> float:
        """Least time of a computation: its FLOPs, then its bytes."""
        return floor.flops / self.flops + floor.bytes / self.bytes


class Sample(NamedTuple):
    """One measurement of one candidate: seconds on the clock and of all threads; of memory, bytes in both."""

    wall: float
    cpu: float


class Measured(NamedTuple):
    """A job's samples by candidate, and its floor."""

    samples: Mapping[str, list[Sample]]
    floor: Floor

    def wall(self, candidate: str) -> float | None:
        """Median of a candidate, or None if it did not run."""
        name = self.fastest_peer() if candidate == FASTEST_PEER else candidate
        return median(s.wall for s in self.samples[name]) if name in self.samples else None

    def cpu(self, candidate: str) -> float:
        """Median of the seconds of all threads."""
        return median(s.cpu for s in self.samples[candidate])

    def fastest_peer(self) -> str:
        """The candidate that is none of ours and took the least time; empty if there is none."""
        others = OURS, "reference", "compiled"
        peers = [name for name in self.samples if name not in others and not name.endswith(PATCHED)]
        return min(peers, key=lambda name: median(s.wall for s in self.samples[name]), default="")


class Verdict(NamedTuple):
    """What was reached, in the unit of the bar's limit; None where a candidate did not run."""

    value: float | None
    met: bool | None


def judge(bar: Bar, measured: Measured, rates: Rates) -> Verdict:
    """Hold one bar against what was measured with one number of threads."""
    ours = measured.wall(OURS)
    theirs = measured.wall(bar.against) if bar.against else None
    if ours is None or (bar.against and theirs is None):
        return Verdict(None, None)
    if bar.kind == "times":
        assert theirs is not None
        return Verdict(theirs / ours, theirs / ours >= bar.limit)
    if bar.kind == "share":
        assert theirs is not None
        value = ours / theirs
    elif bar.kind == "floor":
        value = ours / rates.seconds(measured.floor)
    elif bar.kind == "reading":
        value = ours / rates.seconds(measured.floor._replace(flops=0))
    else:
        value = ours
    return Verdict(value, value <= bar.limit)


def select(only: list[str]) -> list[Bar]:
    """The bars of these names, or all. Raises ValueError for a name that no bar has."""
    names = dict.fromkeys(bar.name for bar in BARS)
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"no bar is called {unknown[0]!r}; there are {', '.join(names)}")
    return [bar for bar in BARS if not only or bar.name in only]


def wanted(bars: list[Bar], job: str) -> set[str]:
    """The candidates that the bars of a job speak of."""
    return {OURS} | {bar.against for bar in bars if bar.job == job and bar.against}
