"""The live panel: what it shows, that it is given back, and that a terminal that is gone ends no run."""

import io
from collections.abc import Iterator
from typing import Any

import pytest

from fastdream import console as module
from fastdream.console import Console, can_be_live, panel, rows
from fastdream.progress import RECENT, Goal

GOAL = Goal("gym_CartPole-v1", 1000, 0, "cpu", "runs/x", "native: 1")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Panel:
    """In the place of the one that rich draws."""

    shown: list["Panel"]
    gone = False

    def __init__(self, state: Any, file: Any) -> None:
        self.printed, self.stops = [], 0
        self.shown.append(self)

    def print(self, text: str) -> None:
        self.printed.append(text)
        self.fail()

    def stop(self) -> None:
        self.stops += 1
        self.fail()

    def fail(self) -> None:
        if self.gone:
            raise OSError("the terminal is gone")


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What would be called when Python ends; panels are stand-ins."""
    calls: list[Any] = []
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "_Panel", Panel)
    monkeypatch.setattr(Panel, "shown", [], raising=False)
    monkeypatch.setattr(module.atexit, "register", calls.append)
    monkeypatch.setattr(module.atexit, "unregister", calls.remove)
    yield calls


@pytest.mark.parametrize("gone", [False, True])
def test_the_terminal_is_given_back_once_however_a_run_ends(
    gone: bool, at_exit: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Panel, "gone", gone)
    terminal = Terminal()
    console = Console(interval=0, file=terminal)
    console.start(GOAL)
    (shown,) = Panel.shown
    console.progress(1, 0)
    console.print("a message")
    assert shown.printed == ["a message"] and not terminal.getvalue()
    (close,) = at_exit
    close()
    assert shown.stops == 1 and not at_exit
    console.close()
    assert shown.stops == 1
    console.progress(2, 0)
    console.print("more")
    assert shown.printed == ["a message"] and terminal.getvalue() == "more\n"


def test_only_a_terminal_that_can_move_its_cursor_and_show_all_letters_has_a_panel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    assert can_be_live(terminal)
    monkeypatch.setattr(Terminal, "encoding", "latin-1")
    assert not can_be_live(terminal)
    monkeypatch.setattr(Terminal, "encoding", "UTF8")
    assert can_be_live(terminal)
    monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    assert not can_be_live(terminal)
    monkeypatch.undo()
    monkeypatch.delenv("TERM", raising=False)
    assert not can_be_live(Terminal())


def test_what_cannot_be_written_is_tried_once() -> None:
    class Broken(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise BrokenPipeError

    console = Console(interval=0, file=(file := Broken()))
    for step in range(5):
        console.progress(step, 0)
    console.close()
    assert file.tries == 1


def drawn(console: Console, width: int = 100) -> str:
    from rich.console import Console as Rich

    rich = Rich(file=io.StringIO(), width=width, force_terminal=False)
    rich.print(panel(console.state, width))
    return rich.file.getvalue()  # type: ignore[attr-defined]


def test_scores_losses_and_the_bar_of_a_panel() -> None:
    console = Console(interval=1e9, file=io.StringIO())
    console.start(GOAL)
    console.progress(250, 10)
    for score in range(RECENT):
        assert f"mean of the last {RECENT}" not in drawn(console)
        console.episode(float(score), 7)
    shown = drawn(console)
    assert f"mean of the last {RECENT}" in shown and "19.0 best" in " ".join(shown.split())
    assert "9.50" in shown and "7 long" in " ".join(shown.split())
    assert "25.0 %" in " ".join(shown.split()) and "━" in shown and "gym_CartPole-v1" in shown
    for count, lines in ((5, [5, 0]), (6, [3, 3])):
        console.metrics({f"loss/l{i}": 1.0 for i in range(count)})
        shown = rows(console.state)
        assert [len(shown.get(name, [])) for name in ("losses", "")] == lines
        console.metrics({"other": 1.0})
        assert rows(console.state) == shown  # until there are other losses
    assert any("▁" in text for text, _ in rows(console.state, 90)["score"])
    assert not any("▁" in text for text, _ in rows(console.state, 74)["score"])
    console.start(Goal("gym_CartPole-v1"))
    assert "━" not in drawn(console) and "%" not in drawn(console)
