"""python -m fastdream.integrations: run another codebase's own command on fastdream's kernels."""

import importlib
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastdream import integrations
from fastdream.allocator import keep_freed_memory

USAGE = "usage: python -m fastdream.integrations CODEBASE (SCRIPT | -m MODULE) [ARGUMENT...]"
FRAME = "__main__", "laprop", "modules", "patching", "resets"  # modules beside those of codebases


def codebases() -> list[str]:
    """Those that there is an integration for."""
    return sorted({module.name for module in pkgutil.iter_modules(integrations.__path__)}.difference(FRAME))


def main(args: Sequence[str] | None = None) -> None:
    """The command. Exits with 2 after a mistake of its user; else as the other command does."""
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{integrations.__doc__}\nCodebases: {', '.join(codebases())}")
        return
    if len(args) < 2 or (args[1] == "-m" and len(args) < 3):
        fail(f"{USAGE}\ncodebases: {', '.join(codebases())}")
    codebase, *command = args
    if codebase not in codebases():
        fail(f"there is no integration for {codebase!r}, only for {', '.join(codebases())}")
    module = command[0] == "-m"
    target, rest = (command[1], command[2:]) if module else (command[0], command[1:])
    if not module and not Path(target).is_file():
        fail(f"there is no file {target}")
    folder = str(Path.cwd() if module else Path(target).resolve().parent)
    # The command finds its own modules as it does without us: in the place of the working directory, if that is there.
    sys.path[: 0 if sys.flags.safe_path else 1] = [folder]
    try:
        patch = importlib.import_module(f"fastdream.integrations.{codebase}").install()
    except (ImportError, ValueError) as error:
        fail(str(error))
    keep_freed_memory()
    print(patch.describe("cuda" if torch.cuda.is_available() else "cpu"), flush=True)
    sys.argv = [target, *rest]
    if module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


def fail(message: str) -> None:
    """Say what is wrong and how to mend it, and exit with 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
