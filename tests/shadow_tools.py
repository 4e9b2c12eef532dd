"""What the programs of one launch did to memory, and what of it a GPU does not promise: who touched each number last.

A program's threads meet at barriers, between which its accesses are of one epoch; programs do not meet at all, but
where one acquires by an atomic what another has released by it. Pointers are numbers of bytes.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

NOBODY, MANY = 0, -1


class Finding(NamedTuple):
    """Something that a kernel may not do, and the lines that did."""

    kind: str
    kernel: str
    line: str
    other: str  # of an earlier access, or what was accessed


class Touch(NamedTuple):
    """One access of a tile: the pointers of its lanes that are not masked out."""

    pointers: np.ndarray  # int64
    size: int  # bytes of each number
    lanes: np.ndarray  # where in the tile each is
    form: int  # which shape the tile has
    whole: bool  # the tile has as many numbers as the program has threads, so that none holds another's copy
    line: int


class Marks(NamedTuple):
    """Of each number: the last program that accessed it, its epoch, the lane and shape of the tile, the line."""

    program: np.ndarray
    epoch: np.ndarray
    lane: np.ndarray
    form: np.ndarray
    line: np.ndarray

    @classmethod
    def of(cls, count: int) -> "Marks":
        return cls(*(np.zeros(count, np.int32) for _ in cls._fields))


class Shadow:
    """Memory of a launch's tensors, `programs` programs numbered from 1 on."""

    def __init__(
        self, tensors: Iterable[Tensor], programs: int, report: Callable[[str, int, int], None]
    ) -> None:
        """report: told a kind of finding, the line of an access, and that of the earlier one."""
        grains: dict[tuple[int, int], int] = {}
        for x in tensors:
            memory = x.untyped_storage()
            if memory.nbytes():
                place = memory.data_ptr(), memory.data_ptr() + memory.nbytes()
                grains[place] = min(x.element_size(), grains.get(place, x.element_size()))
        places = sorted(grains)
        self.starts, self.ends = np.array(places, np.int64).reshape(-1, 2).T
        self.grains = np.array([grains[place] for place in places], np.int64)
        cells = (self.ends - self.starts + self.grains - 1) // self.grains
        self.first = np.cumsum(cells) - cells
        self.written, self.read, self.atomic = (Marks.of(int(cells.sum())) for _ in range(3))
        self.epoch = self.program = 0
        self._report = report
        self._seen = self._none = np.zeros(
            programs + 1, np.int32
        )  # the last epoch of each that is visible here
        self._released: dict[int, np.ndarray] = {}

    def start(self, program: int) -> None:
        """The accesses that follow are this program's."""
        self.program, self._seen = program, self._none
        self.barrier()

    def barrier(self) -> None:
        """The accesses that follow see those before."""
        self.epoch += 1

    def inside(self, pointers: np.ndarray, size: int) -> np.ndarray:
        """Which of the pointers are to numbers that lie in the tensors' memory."""
        if not len(self.starts):
            return np.zeros(len(pointers), bool)
        place = np.searchsorted(self.starts, pointers, "right") - 1
        return (place >= 0) & (pointers + size <= self.ends[place])

    def wrote(self, pointers: np.ndarray, size: int) -> bool:
        """Whether any program changed any of these numbers."""
        known = pointers[self.inside(pointers, size)]
        cells, _ = self._cells(Touch(known, size, np.arange(len(known)), 0, True, 0))
        return bool((self.written.program[cells] | self.atomic.program[cells]).any())

    def touched(self) -> tuple[np.ndarray, np.ndarray]:
        """Pointers to all that was read, and to all that was changed."""
        place = np.repeat(np.arange(len(self.starts)), np.diff(self.first, append=len(self.read.program)))
        pointers = self.starts[place] + (np.arange(len(place)) - self.first[place]) * self.grains[place]
        changed = (self.written.program != NOBODY) | (self.atomic.program != NOBODY)
        return pointers[self.read.program != NOBODY], pointers[changed]

    def _cells(self, touch: Touch) -> tuple[np.ndarray, np.ndarray]:
        """The number of each piece of memory that is touched, and the lane that does; all lie inside."""
        place = np.searchsorted(self.starts, touch.pointers, "right") - 1
        cells = self.first[place] + (touch.pointers - self.starts[place]) // self.grains[place]
        pieces = touch.size // int(self.grains[place].min(initial=touch.size))
        if pieces == 1:
            return cells, touch.lanes
        every = cells[:, None] + np.minimum(np.arange(pieces), touch.size // self.grains[place, None] - 1)
        return every.ravel(), np.repeat(touch.lanes, pieces)

    def load(self, touch: Touch) -> None:
        cells, lanes = self._cells(touch)
        self._race("race: read and written by", cells, self.written, touch.line)
        self._atomics(cells, touch.line)
        recent = self.written.epoch[cells] == self.epoch
        if recent.any():
            own = touch.whole and self._same(self.written, cells, lanes, touch)[recent].all()
            kind = "own lanes" if own else "no barrier"
            self._tell(f"{kind}: written, then read", cells, recent, self.written, touch.line)
        again = (self.read.epoch[cells] == self.epoch) & ~self._same(self.read, cells, lanes, touch)
        others = (self.read.program[cells] != NOBODY) & (self.read.program[cells] != self.program)
        self._mark(self.read, cells, lanes, touch)
        self.read.lane[cells[again]] = MANY
        self.read.program[cells[others]] = MANY

    def store(self, touch: Touch, values: np.ndarray) -> None:
        """values: what each of the lanes writes."""
        cells, lanes = self._cells(touch)
        self._race("race: written twice, by", cells, self.written, touch.line)
        self._race("race: written and read by", cells, self.read, touch.line)
        self._atomics(cells, touch.line)
        recent = self.read.epoch[cells] == self.epoch
        if recent.any():
            same = self._same(self.read, cells, lanes, touch) & touch.whole
            self._tell("no barrier: read, then written", cells, recent & ~same, self.read, touch.line)
        recent = self.written.epoch[cells] == self.epoch
        if recent.any():
            same = self._same(self.written, cells, lanes, touch)
            self._tell("no barrier: written, then written", cells, recent & ~same, self.written, touch.line)
        self._mark(self.written, cells, lanes, touch)
        repeated = self.written.lane[cells] != lanes
        if repeated.any():
            order = np.argsort(touch.pointers, kind="stable")
            alike = np.diff(touch.pointers[order]) == 0
            if (values[order][1:] != values[order][:-1])[alike].any():
                self._report("lanes write different numbers to one place", touch.line, touch.line)

    def change(self, touch: Touch, acquires: bool) -> None:
        """An atomic. acquires: it orders what programs did before it, and after."""
        cells, lanes = self._cells(touch)
        self._race("race: changed atomically, and written by", cells, self.written, touch.line)
        self._race("race: changed atomically, and read by", cells, self.read, touch.line)
        self._mark(self.atomic, cells, lanes, touch)
        if acquires:
            for cell in cells.tolist():
                self._seen = np.maximum(self._seen, self._released.get(cell, self._none))
                mine = self._seen.copy()
                mine[self.program] = (
                    self.epoch - 1
                )  # what other threads did since the barrier is not released
                self._released[cell] = mine

    def _race(self, kind: str, cells: np.ndarray, marks: Marks, line: int) -> None:
        who = marks.program[cells]
        other = (who != NOBODY) & (who != self.program)
        if other.any():
            other &= (who == MANY) | (marks.epoch[cells] > self._seen[who])
            self._tell(f"{kind} another program", cells, other, marks, line)

    def _atomics(self, cells: np.ndarray, line: int) -> None:
        # This program's own comes after those of others, which it acquired.
        who = self.atomic.program[cells]
        found = (who != NOBODY) & (who != self.program)
        self._tell(
            "race: accessed, and changed atomically by another program", cells, found, self.atomic, line
        )

    def _same(self, marks: Marks, cells: np.ndarray, lanes: np.ndarray, touch: Touch) -> np.ndarray:
        return (marks.lane[cells] == lanes) & (marks.form[cells] == touch.form)

    def _mark(self, marks: Marks, cells: np.ndarray, lanes: np.ndarray, touch: Touch) -> None:
        marks.program[cells], marks.epoch[cells] = self.program, self.epoch
        marks.lane[cells], marks.form[cells], marks.line[cells] = lanes, touch.form, touch.line

    def _tell(self, kind: str, cells: np.ndarray, which: np.ndarray, marks: Marks, line: int) -> None:
        for other in np.unique(marks.line[cells[which]]):
            self._report(kind, line, int(other))
