"""What a run looks like while it runs: a live panel on a terminal, one plain line an interval elsewhere."""

import atexit
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from fastdream.progress import RECENT, Goal, Progress, counted, duration, number

# The first plain line comes this soon, so that nobody wonders whether anything happens.
FIRST_LINE = 2.0
# Wider than this, the eye loses the line.
_WIDEST = 100
_BLOCKS = "▁▂▃▄▅▆▇█"


class Console:
    """Shows how far a run is; the panel is for terminals that can show it.

    interval  seconds between plain lines.
    Failing output (a closed pipe, a terminal that is gone) ends the display and never the run.
    """

    def __init__(
        self,
        *,
        interval: float = 10.0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file or sys.stdout
        self._interval, self._clock = interval, clock
        self._started = self._open = False
        self._live: Any = None
        self.state = Progress(Goal(), clock)

    def start(self, goal: Goal) -> None:
        """Begin to show progress towards a goal."""
        self.state = Progress(goal, self._clock)
        self._next_line = self._clock() + min(FIRST_LINE, self._interval)
        self._started = self._open = True
        if can_be_live(self._file):
            self._live = _Panel(self.state, self._file)
            atexit.register(self.close)

    def turn(self, goal: Goal) -> None:
        """Go on with the next goal of the same run."""
        self.state.turn(goal)

    def progress(self, step: int, updates: int) -> None:
        """Where the run is now; cheap enough to be called at every step."""
        if not self._started:
            self.start(Goal(start=step))
        self.state.move(step, updates)
        if self._live is None and self._open and self._clock() >= self._next_line:
            self._next_line = self._clock() + self._interval
            self._write(line(self.state))

    def episode(self, score: float, length: int) -> None:
        """An episode has ended."""
        self.state.episode(score, length)

    def metrics(self, values: Mapping[str, float]) -> None:
        """The latest metrics, of which the losses of updates (names with 'loss/', but no report's) are shown."""
        updates = {name: value for name, value in values.items() if not name.startswith("report/")}
        losses = {name.rpartition("loss/")[2]: value for name, value in updates.items() if "loss/" in name}
        if losses:
            self.state.losses = losses

    def saved(self) -> None:
        """A checkpoint has just been written."""
        self.state.saved = self._clock()

    def print(self, text: str) -> None:
        """A message, above the panel where there is one."""
        if self._live is None:
            self._write(text)
        else:
            with suppress(OSError):
                self._live.print(text)

    def close(self) -> None:
        """Show the last state and give the terminal back; may be called twice."""
        if not self._open:
            return
        self._open = False
        if self._live is None:
            self._write(line(self.state))
        else:
            with suppress(OSError):
                self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def _write(self, text: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write(text.encode(encoding, "replace").decode(encoding) + "\n")
            self._file.flush()
        except (OSError, ValueError):  # ValueError: the file has been closed
            self._open = False


def can_be_live(file: TextIO) -> bool:
    """Whether the panel can be shown: a terminal that can move its cursor and show more than ASCII."""
    encoding = (getattr(file, "encoding", None) or "").lower().replace("-", "")
    return file.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb") and encoding == "utf8"


def line(state: Progress) -> str:
    """The state as one line of ASCII."""
    goal = state.goal
    total = f"/{goal.steps:,} ({100 * state.fraction:.0f}%)" if goal.steps else ""
    stage = f"{goal.stage}: " if goal.stage else ""
    parts = [f"{duration(state.elapsed):>8}", f"{stage}{goal.unit} {state.step:,}{total}"]
    if state.episodes:
        parts.append(
            f"score {number(state.score)} (best {number(state.best)}, length {state.length:.0f}, "
            f"{counted(state.episodes, 'episode')})"
        )
    else:
        parts.append("score -")
    parts += [f"{value} {unit}" for value, unit in rates(state)]
    if (left := state.left()) is not None:
        parts.append(f"left {duration(left)}")
    if state.losses:
        parts.append("loss " + " ".join(f"{name} {number(value)}" for name, value in state.losses.items()))
    return "  ".join(parts)


def rates(state: Progress) -> list[tuple[str, str]]:
    """How fast it goes: numbers and their units. A stage has one."""
    found = [(number(state.steps_rate()), f"{state.goal.unit}s/s")]
    return found if state.goal.stage else [*found, (number(state.updates_rate()), "updates/s")]


class _Panel:
    """The live panel. A thread of rich redraws it twice a second, so that its clock runs while Python computes."""

    def __init__(self, state: Progress, file: TextIO) -> None:
        from rich.console import Console as Rich
        from rich.live import Live

        self._state = state
        self._console = Rich(file=file, force_terminal=True)
        self._width = 0
        # What other code prints to stdout and stderr appears above the panel.
        ours = file is sys.stdout
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=2,
            redirect_stdout=ours,
            redirect_stderr=ours,
        )
        self._live.start(refresh=True)

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._live.stop()

    def _draw(self) -> Any:
        from rich.control import Control
        from rich.segment import ControlType

        # Where the line ends the cursor stands: a terminal shows Ctrl-C there, as ^C, and must not break the line.
        width = min(self._console.size.width - len("^C"), _WIDEST)
        if width < self._width:
            # A terminal that becomes narrower wraps the old panel: where it begins is no longer known.
            self._console.control(Control(ControlType.CLEAR, ControlType.HOME))
        self._width = width
        return panel(self._state, width)


def panel(state: Progress, width: int) -> Any:
    """The state as a rich renderable of fixed height."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    goal = state.goal
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for name, parts in rows(state, width).items():
        text = Text(no_wrap=True, overflow="ellipsis")
        for value, unit in parts:
            text.append(value, "bold").append(f" {unit}" if value and unit else unit, "dim").append("   ")
        grid.add_row(name, text)
    bar: list[Any] = [ProgressBar(total=1.0, completed=state.fraction, complete_style="cyan"), Text()]
    return Panel(
        Group(*(bar if goal.steps else []), grid),
        title=Text(goal.task or "fastdream", "bold"),
        title_align="left",
        subtitle=Text(goal.run, "dim") if goal.run else None,
        subtitle_align="left",
        border_style="dim",
        padding=(0, 1),
        width=width,
    )


def rows(state: Progress, width: int = _WIDEST) -> dict[str, list[tuple[str, str]]]:
    """Lines of the panel: name -> values and what each is."""
    goal, out = state.goal, {}
    of = f"of {goal.steps:,}" if goal.steps else ""
    counted = [(f"{state.step:,}", f"{of} {goal.unit}s" if goal.stage else of)]
    if goal.steps:
        counted.append((f"{100 * state.fraction:.1f}", "%"))
    out[goal.stage or "steps"] = counted if goal.stage else [*counted, (f"{state.updates:,}", "updates")]
    if state.episodes:
        recent = f"mean of the last {RECENT}" if state.episodes >= RECENT else f"mean of {state.episodes}"
        out["score"] = [
            (number(state.score), recent),
            (number(state.best), "best"),
            (f"{state.length:.0f}", "long"),
        ]
        out["score"].append((sparkline(state.trend.values(min(16, max(0, width - 74)))), ""))
    else:
        out["score"] = [("-", "no episode has ended yet")]
    out["speed"] = rates(state)
    if goal.device:
        out["speed"].append(("", f"on {goal.device}"))
    out["time"] = [(duration(state.elapsed), "elapsed")]
    if (left := state.left()) is not None:
        out["time"].append((duration(left), "left"))
    if (since := state.since_saved) is not None:
        out["time"].append(("", f"saved {duration(since)} ago"))
    losses = [("", f"{name} {number(value)}") for name, value in state.losses.items()]
    half = len(losses) if len(losses) < 6 else -(-len(losses) // 2)
    out["losses"] = losses[:half] or [("-", "none yet")]
    if losses[half:]:
        out[""] = losses[half:]
    if goal.ops:
        out["ops"] = [("", goal.ops)]
    return out


def sparkline(values: list[float]) -> str:
    """Numbers as a row of blocks of growing height."""
    if len(values) < 2:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(_BLOCKS[round((value - low) / span * 7) if span else 0] for value in values)
