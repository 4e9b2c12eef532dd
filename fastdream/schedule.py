"""When something is due: updates per environment step, periodic work, and the wish to stop."""

import signal
import time
from fractions import Fraction
from types import FrameType
from typing import Any


class Ratio:
    """How many updates are due after so many steps, exactly.

    The first call gives one update and starts the count; from there on `updates_per_step` updates fall due for
    every step. The credit is the difference of two integers, so that nothing drifts over 10^9 steps and a
    restored count continues where it stood (the official code adds floats).

    updates_per_step   non-negative; a float is taken as the nearest fraction with a denominator up to 10^9.
    """

    def __init__(self, updates_per_step: float | Fraction) -> None:
        if updates_per_step < 0:
            raise ValueError(f"updates per step must not be negative, got {updates_per_step}")
        self.rate = Fraction(updates_per_step).limit_denominator(10**9)
        self.start = -1  # the step of the first call
        self.done = 0

    def due(self, step: int) -> int:
        """Number of updates to make now, at `step`; they count as made."""
        if self.rate == 0:
            return 0
        if self.start < 0:
            self.start = step
        due = 1 + int((step - self.start) * self.rate) - self.done
        self.done += due
        return due

    def state_dict(self) -> dict[str, int]:
        return {"start": self.start, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start, self.done = int(state["start"]), int(state["done"])


class EverySteps:
    """True whenever a multiple of `every` steps has been passed since the last call; never for 0.

    Depends on the steps alone, so that work that draws random numbers (evaluation, reports) falls on the same
    steps in a run that was interrupted.
    """

    def __init__(self, every: int, step: int = 0) -> None:
        self.every, self.last = every, step

    def __call__(self, step: int) -> bool:
        passed = self.every > 0 and step // self.every > self.last // self.every
        self.last = step
        return passed


class EverySeconds:
    """True when `every` seconds have passed since it was last true; never for 0."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, time.monotonic()

    def __call__(self) -> bool:
        if self.every <= 0 or time.monotonic() - self.last < self.every:
            return False
        self.last = time.monotonic()
        return True


class Stop:
    """Becomes true at the first SIGINT or SIGTERM; the second one has the default effect and aborts.

    And at SIGHUP, unless that is ignored (nohup): the terminal is gone. It never aborts, for it comes more than once.
    Use as a context manager in the main thread; the former handlers come back at its end. Elsewhere (a training
    loop in a worker thread) signals cannot be caught, and it stays false.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.reason = ""
        self._former: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.reason)

    def __enter__(self) -> "Stop":
        try:
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            wanted = self.signals[:2] if ignored else self.signals
            self._former = {number: signal.signal(number, self._handle) for number in wanted}
        except ValueError:  # not the main thread
            self._former = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
