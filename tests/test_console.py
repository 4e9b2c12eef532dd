"""What is seen on a terminal and what in a file, and the numbers behind both."""

import fcntl
import importlib.util
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdream.console import Console, can_be_live, rows, sparkline
from fastdream.progress import Goal, Progress, Trend, duration, number, tenths
from fastdream.scores import Scores

GOAL = Goal("gym_CartPole-v1", 1000, 0, "cpu", "runs/x", "native: 1, reference: 21")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock, interval: float = 10.0) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(interval=interval, file=file, clock=clock), file


def test_one_plain_line_an_interval_and_the_first_one_early() -> None:
    clock = Clock()
    console, file = plain(clock)
    console.start(GOAL)
    times = []
    for step in range(300):
        clock.now += 0.1
        before = file.tell()
        console.progress(step, 0)
        times += [clock.now - 100] if file.tell() > before else []
    assert [round(t) for t in times] == [2, 12, 22]
    assert times[0] <= 5 and "\x1b" not in file.getvalue() and file.getvalue().isascii()


def test_scores_are_shown_before_there_is_a_loss() -> None:
    clock = Clock()
    console, file = plain(clock, interval=0)
    console.start(GOAL)
    console.progress(0, 0)
    clock.now += 10
    console.episode(41.0, 40)
    console.episode(20.0, 21)
    console.progress(200, 0)
    console.saved()
    console.metrics({"train/loss/dyn": 1.25, "replay/steps": 7.0, "loss/rew": 0.0123})
    console.metrics({"report/loss/dyn": 9.0, "report/unseen/loss/dyn": 8.0})  # of no update
    clock.now += 10
    console.progress(400, 50)
    first, second, third = file.getvalue().splitlines()
    assert "score -" in first and "left" not in first
    assert "score 30.5 (best 41.0, length 30, 2 episodes)" in second
    assert "step 200/1,000 (20%)" in second and "20.0 steps/s" in second and "left 0:40" in second
    assert "loss" not in second and third.endswith("2.50 updates/s  left 0:30  loss dyn 1.25 rew 0.012")
    assert rows(console.state)["time"] == [("0:20", "elapsed"), ("0:30", "left"), ("", "saved 0:10 ago")]


def test_many_losses_take_two_lines() -> None:
    console, _ = plain(Clock())
    console.metrics({f"loss/{name}": 1.0 for name in "abcdefg"})
    shown = rows(console.state)
    assert [[text for _, text in shown[name]] for name in ("losses", "")] == [
        [f"{name} 1.00" for name in part] for part in ("abcd", "efg")
    ]


def test_an_output_that_is_gone_ends_the_display_and_not_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    console = Console(interval=0, file=os.fdopen(write, "w"))
    console.start(GOAL)
    console.progress(1, 0)
    console.print("nobody hears this")
    console.progress(2, 0)
    console.close()
    assert console.state.step == 2
    closed, file = plain(Clock())
    file.close()
    closed.print("nor this")


def test_what_the_encoding_lacks_is_replaced() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, "ascii"))
    console.print("käse")
    assert raw.getvalue() == b"k?se\n"


def test_the_panel_needs_a_terminal_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "UTF-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert can_be_live(Terminal()) and not can_be_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_be_live(Terminal())


def test_rates_slide_and_the_time_left_follows() -> None:
    clock = Clock()
    progress = Progress(Goal(steps=100_000, start=5_000), clock)
    assert math.isnan(progress.steps_rate()) and progress.left() is None
    for second in range(1, 301):
        clock.now += 1
        progress.move(5_000 + (100 * second if second <= 150 else 15_000 + 10 * (second - 150)), second)
    assert progress.steps_rate() == pytest.approx(10, rel=0.02) and progress.updates_rate() == pytest.approx(
        1, rel=0.02
    )
    assert progress.left() == pytest.approx((100_000 - progress.step) / 10, rel=0.02)
    clock.now += 60
    assert progress.steps_rate() == pytest.approx(5, rel=0.05)
    assert len(progress._marks) < 300 and progress.elapsed == 360
    assert Progress(Goal(steps=10**10), clock).left() is None


def test_each_stage_is_counted_by_itself_and_scores_go_on() -> None:
    clock = Clock()
    console, file = plain(clock, interval=0)
    console.start(Goal("doom", 1000, stage="collect"))
    for step in (0, 500, 1000):
        clock.now += 10
        console.progress(step, 0)
    console.episode(20.0, 21)
    console.turn(Goal("doom", 40, 10, stage="control", unit="generation"))
    for generation in (10, 20):
        clock.now += 20
        console.progress(generation, 0)
    *_, collected, turned, last = file.getvalue().splitlines()
    assert "collect: step 1,000/1,000 (100%)" in collected and "50.0 steps/s" in collected
    assert "control: generation 10/40 (25%)  score 20.0" in turned and "left" not in turned
    assert "generation 20/40 (50%)" in last and last.endswith("0.500 generations/s  left 0:40")
    assert "updates" not in file.getvalue() and last.startswith("    1:10")
    shown = rows(console.state)
    assert shown["control"] == [("20", "of 40 generations"), ("50.0", "%")] and "steps" not in shown
    assert shown["speed"] == [("0.500", "generations/s")]


@given(st.lists(st.integers(-1000, 1000), max_size=500), st.integers(0, 20))
def test_a_trend_keeps_few_numbers_of_a_long_history(values: list[int], count: int) -> None:
    trend = Trend()
    for value in values:
        trend.add(value)
    shown = trend.values(count)
    assert len(trend._means) < Trend.LIMIT and len(shown) <= count
    if shown:
        assert min(values) - 1e-6 <= min(shown) and max(shown) <= max(values) + 1e-6
        assert len(sparkline(shown)) == (len(shown) if len(shown) > 1 else 0)


def test_a_trend_is_drawn_from_the_oldest_to_the_latest() -> None:
    trend = Trend()
    for value in range(200):
        trend.add(value)
    assert trend.values(4) == [23.5, 73.5, 123.5, 173.5]
    assert sparkline(trend.values(4)) == "▁▃▆█" and sparkline([2.0, 2.0, 2.0]) == "▁▁▁"


def test_numbers_and_times_for_people() -> None:
    values = [0, 0.0, 1234567.8, 1500, 87.31, -1.2345, 0.01234, 1.2e-5, 3e8, math.nan, math.inf]
    assert [number(v) for v in values] == [
        "0", "0", "1,234,568", "1,500", "87.3", "-1.23", "0.012", "1.2e-05", "3.0e+08", "-", "inf",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 42.9, 725, 11045, 187200)] == [
        "0:00",
        "0:42",
        "12:05",
        "3:04:05",
        "2 d 4 h",
    ]


LIVE = """
import sys, time, warnings
from fastdream.console import Console
from fastdream.progress import Goal
console = Console()
console.start(Goal("gym_CartPole-v1", 1000, 0, "cpu", "runs/x", "reference: [all]"))
end = time.monotonic() + float(sys.argv[1])
step = 0
while time.monotonic() < end:
    time.sleep(0.02)
    step += 1
    console.progress(step, step // 2)
    if step == 10:
        print("printed by other code")
        print("to stderr", file=sys.stderr)
        console.print("a [message]")
        console.episode(20.0, 20)
        console.metrics({"loss/" + k: 1.5 for k in ("dyn", "rep", "rew", "con", "policy", "value")})
        console.saved()
        print("ready", flush=True)
console.close()
print("after the panel")
"""


@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="pip install rich")
def test_the_live_panel_in_a_terminal_that_changes_its_size() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 92, 0, 0))
    environment = os.environ | {"TERM": "xterm", "PYTHONUTF8": "1"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE, "2.5"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    screen = b""
    resized = False
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        screen += chunk
        if not resized and b"ready" in screen:
            resized = True
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 52, 0, 0))
    os.close(ours)
    text = screen.decode()
    assert process.wait() == 0 and "Traceback" not in text
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    bare = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for words in ("gym_CartPole-v1", "printed by other code", "to stderr", "a [message]", "reference: [all]"):
        assert words in bare
    assert re.search(r"score +20\.0 mean of 1 +20\.0 best +20 long", bare)
    assert re.search(r"losses +dyn 1\.50 +rep 1\.50 +rew 1\.50", bare) and "saved 0:0" in bare
    wide, narrow = bare.split("ready", 1)
    # Two columns are left for the ^C that a terminal shows where the cursor stands.
    assert max(map(len, wide.splitlines())) == 90
    assert any(row.startswith("╭─ gym_CartPole-v1 ─") and len(row) == 50 for row in narrow.splitlines())
    assert bare.rstrip().endswith("after the panel")


def test_scores_below_one_keep_their_digits() -> None:
    """Success rates, and the sums of small rewards."""
    told = [tenths(value) for value in (0.0, 0.2531, -0.05, 1e-5, 1.0, -161.82, float("nan"))]
    assert told == ["0.0", "0.253", "-0.05", "1e-05", "1.0", "-161.8", "nan"]
    assert str(Scores([0.0, 0.5], [3, 3])) == "0.25 ± 0.25 over 2 episodes"
