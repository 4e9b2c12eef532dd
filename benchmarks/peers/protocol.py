"""How a peer's updates are timed: the command line, the jobs, and the loop that every adapter in this folder runs.

    PYTHON benchmarks/peers/NAME.py --path DIR --job JOB --threads N [--device cuda] [--fastdream]

runs in the peer's own Python environment, so only the standard library is imported here. With --fastdream the peer's
functions are replaced by `fastdream.integrations.NAME`, of the fastdream around this folder. The adapter builds the
peer's agent and a batch in memory, does one update to warm up, and says so on stdout with one line of JSON:

    {"ready": true, "peer": NAME, "version": ..., "parameters": ..., "seconds_to_ready": ...}

Then every line on stdin asks for one update, optimiser included, which is answered with one line

    {"wall": seconds, "cpu": seconds of all threads of this process}

until stdin ends. Whatever the peer prints goes to stderr. Wrong arguments are one line on stderr and exit status 2.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

# deter, hidden, classes, depth, units: those of fastdream's presets of the same names.
SIZES = {"1m": (512, 64, 4, 4, 64), "12m": (2048, 256, 16, 16, 256)}


@dataclass(frozen=True)
class Job:
    """What an update learns from, and the widths of the networks."""

    obs: str  # proprio: 24 numbers in, 6 continuous actions out; pixels: an image in, one of 17 actions out
    batch: int
    length: int
    deter: int
    hidden: int
    classes: int
    depth: int
    units: int
    stoch: int = 32
    horizon: int = 15

    @property
    def pixels(self) -> bool:
        return self.obs == "pixels"

    @property
    def observation(self) -> tuple[int, ...]:
        """Shape of one observation: an image of bytes, or float32 numbers."""
        return (64, 64, 3) if self.pixels else (24,)

    @property
    def action(self) -> int:
        """Classes of the discrete action, or numbers in the continuous one."""
        return 17 if self.pixels else 6


@dataclass(frozen=True)
class Peer:
    """An agent that is ready to learn from its batch. `update` is done when it returns."""

    update: Callable[[], object]
    parameters: int
    version: str


def job(name: str) -> Job:
    """`<proprio|pixels>-<1m|12m>-<batch>x<length>`."""
    found = re.fullmatch(rf"(proprio|pixels)-({'|'.join(SIZES)})-([1-9]\d*)x([1-9]\d*)", name)
    if not found:
        raise ValueError(
            f"unknown job {name!r}; use <proprio|pixels>-<1m|12m>-<batch>x<length>, as proprio-1m-16x64"
        )
    obs, size, batch, length = found.groups()
    return Job(obs, int(batch), int(length), *SIZES[size])


def waited(update: Callable[[], object], device: str) -> Callable[[], None]:
    """The update of a peer that uses torch, which is done on the device too when it returns."""
    import torch

    def done() -> None:
        update()
        if device == "cuda":
            torch.cuda.synchronize()

    return done


def on(tree: Any, device: str) -> Any:
    """A dictionary of torch's tensors on the device."""
    return {key: value.to(device) for key, value in tree.items()}


def revision(path: Path) -> str:
    """The short git revision of a checkout, or `unknown revision` for a folder that is none."""
    command = ["git", "-C", str(path), "rev-parse", "--show-cdup", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    first, _, name = done.stdout.partition("\n")
    return name.strip() if done.returncode == 0 and not first else "unknown revision"


def set_up_torch(threads: int, device: str) -> None:
    """Torch on so many threads of the CPU, without denormal numbers, which moments decay to and which are slow."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_flush_denormal(True)  # before any thread is started, which inherits it
    torch.set_num_threads(threads)
    torch.manual_seed(0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def serve(
    name: str,
    marker: str,
    remedy: str,
    build: Callable[[Path, Job, int, str], Peer],
    kinds: tuple[str, ...] = ("proprio", "pixels"),
    source: str = "",
) -> None:
    """Run an adapter: answer stdin with the times of updates.

    name: of the peer.
    marker: a file, as a pattern of glob, that the folder of the peer holds.
    remedy: the commands that bring the peer and what it needs.
    build: the agent, from that folder, the job, the number of threads and the device.
    kinds: of jobs that the peer has equal networks for.
    source: the folder in that of the peer that holds its modules.
    """
    start = time.perf_counter()
    # Adapters bear the names of their peers, which must not be what `import name` finds.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    parser = _Parser(name, allow_abbrev=False)
    parser.add_argument("--path", type=Path, required=True, help="folder of the peer")
    parser.add_argument("--job", required=True, help="<proprio|pixels>-<1m|12m>-<batch>x<length>")
    parser.add_argument("--threads", type=int, default=1, help="threads that an update may use")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where updates run (%(default)s)"
    )
    parser.add_argument(
        "--fastdream", action="store_true", help="replace functions of the peer by fastdream's integration"
    )
    args = parser.parse_args()
    if args.threads < 1:
        parser.error(f"--threads {args.threads} is not a number of threads; use 1 or more")
    if not any(args.path.glob(marker)):
        parser.error(f"--path {args.path} holds no {marker}; get it by: {remedy}")
    try:
        task = job(args.job)
    except ValueError as error:
        parser.error(f"--job: {error}")
    if task.obs not in kinds:
        parser.error(f"--job {args.job}: there is no equal network in {name}; use {' or '.join(kinds)}")
    with answers() as out:
        try:
            if args.fastdream:
                set_up_torch(args.threads, args.device)
                patch(name, args.path.resolve() / source)
            peer = build(args.path.resolve(), task, args.threads, args.device)
        except ModuleNotFoundError as error:
            parser.error(f"{sys.executable} has no {error.name}, which {name} needs; get it by: {remedy}")
        peer.update()
        about = {
            "peer": f"{name}+fastdream" if args.fastdream else name,
            "version": peer.version,
            "parameters": peer.parameters,
        }
        answer(out, {"ready": True, **about, "seconds_to_ready": time.perf_counter() - start})
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            peer.update()
            answer(out, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})


def patch(name: str, source: Path) -> None:
    """Replace functions of the peer, whose modules are in `source`, as `python -m fastdream.integrations` does."""
    sys.path[:0] = [str(source), str(Path(__file__).parents[2])]
    print(import_module(f"fastdream.integrations.{name}").install().describe("cpu"))
    import_module("fastdream.allocator").keep_freed_memory()


@contextmanager
def answers() -> Iterator[IO[str]]:
    """The stdout for answers, while all else that is printed, also from C, goes to stderr."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield out


def answer(out: IO[str], values: dict[str, object]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(values), file=out, flush=True)
