"""What an environment died of, in the words of its own code."""

import traceback
from types import TracebackType

# Modules whose frames say nothing about what went wrong in an environment.
OURS = ("fastdream", "importlib", "_frozen_importlib", "_frozen_importlib_external")


class Died(Exception):
    """The environment crashed, hung or lost its process.

    reason  how, in one line.
    trace   the traceback of what it raised, from its own code on; "" if it raised nothing.
    """

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason, trace)
        self.reason, self.trace = reason, trace

    def __str__(self) -> str:
        return f"{self.reason}\n{self.trace}".rstrip()


def died_of(error: Exception) -> Died:
    """What an environment that raised this died of."""
    lines = traceback.format_exception_only(error)
    reason = next(line for line in lines if not line.startswith(" ")).splitlines()[0]
    frames = error.__traceback__
    while frames and frames.tb_next and _is_ours(frames):
        frames = frames.tb_next
    return Died(reason, "".join(traceback.format_exception(type(error), error, frames)))


def _is_ours(frames: TracebackType) -> bool:
    return str(frames.tb_frame.f_globals.get("__name__")).split(".")[0] in OURS
