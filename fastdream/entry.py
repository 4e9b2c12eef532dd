"""How a command runs for whoever stands before it: warnings in words, and a quiet end where they have had enough."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PACKAGE = Path(__file__).parent
# What a shell says of a program that SIGPIPE or SIGINT ended.
PIPE_CLOSED, INTERRUPTED = 128 + 13, 128 + 2


def run(main: Callable[[], None]) -> None:
    """Run a command. Ends without a traceback when its output is no longer read (`| head`), and on Ctrl-C.

    What the terminal's encoding does not have is shown as '?', instead of ending the command.
    """
    plain_warnings()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be written goes nowhere, so that the interpreter does not fail at it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def fail(message: str, code: int = 2) -> NoReturn:
    """End a command that cannot go on, for a known reason: the message on stderr, no traceback."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def plain_warnings() -> None:
    """Show what this library warns of as a line; what others warn of stays as Python shows it."""
    shown = warnings.formatwarning

    def text(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        if Path(filename).is_relative_to(PACKAGE):
            return f"warning: {message}\n"
        return shown(message, category, filename, lineno, line)

    warnings.formatwarning = text
