"""fastdream: world-model reinforcement learning, fast because of its kernels."""

import os
import signal
import sys
from pkgutil import extend_path
from types import FrameType

__version__ = "0.1.0"

# Python started in a clone finds the clone's folder first: the compiled module of the installed copy still counts.
__path__ = extend_path(__path__, __name__)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def after_imports() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as Python has it: for commands, once their imports are done."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# As Python comes here on its way to `python -m fastdream.<command>`, whose imports take seconds: Ctrl-C ends them with
# a line. An exception would not do, as some of them swallow a KeyboardInterrupt.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
