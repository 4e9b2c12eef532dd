"""The program behind gpu.py: takes the parts one by one, each in a process that may fail, and writes what came."""

import argparse
import json
import os
import platform
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastdream import ahead
from fastdream.config import Config, TrainConfig

from .clock import Peer, adapters
from .gpu_bench import Bench, fatal, words
from .gpu_parts import Part, parts
from .gpu_table import page
from .peer_flags import TakePeer, complete
from .shapes import job

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu.json"
MINUTES = 8.0
LATE = "time ran out before this part"


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """The command; 0 if every part ran."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse(argv, description)
    bench = Bench(args.dry_run, args.peers, args.probe)
    if args.table:
        path = args.output or RESULTS
        print(page(json.loads(path.read_text()) if path.exists() else None))
        return 0
    if not bench.dry and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device; --dry-run runs it on a CPU", file=sys.stderr)
        return 2
    if args.first:
        return first(args.first, args.alone, bench)
    if args.worker:
        return work(bench)
    try:
        chosen = select(parts(bench), args.only)
    except ValueError as error:
        print(f"gpu.py: --only: {error}", file=sys.stderr)
        return 2
    if bench.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # of the workers
    data: dict[str, Any] = {"command": words_of(argv), **about(bench, args.commit), "parts": {}}
    results: dict[str, Any] = data["parts"]
    for name, result in run(chosen, command(argv), time.monotonic() + 60 * args.minutes):
        results[name] = result
        # Part by part: whoever gives up on this program still finds what it measured.
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(data, indent=1) + "\n")
    print(page(data))
    failed = [name for name, result in results.items() if errors(result)]
    for name in failed:
        print(f"{name}: {'; '.join(errors(results[name]))}", file=sys.stderr)
    return int(bool(failed))


def parse(argv: Sequence[str], description: str | None) -> argparse.Namespace:
    """The command line; `peers` holds a Peer for each --peer. Exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        "gpu.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="run everything on a CPU at tiny sizes")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="a section, or SECTION:WHAT"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON; benchmarks/results/gpu.json without --only")
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured before")
    parser.add_argument("--commit", default="", help="what is measured, where there is no git to ask")
    parser.add_argument("--probe", type=Path, help="the compiled hardware probe, where there is no nvcc")
    parser.add_argument("--peer", action=TakePeer, choices=adapters(), dest="peers", default=[])
    parser.add_argument("--peer-path", action=TakePeer, type=Path, dest="peers", metavar="DIR")
    parser.add_argument(
        "--peer-python", action=TakePeer, dest="peers", metavar="PYTHON", help="that has its needs"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.output = args.output or (None if args.only or args.dry_run else RESULTS)
    args.peers = tuple(Peer(**peer) for peer in complete(parser, args.peers))
    return args


def select(found: list[Part], only: list[str]) -> list[Part]:
    """The parts of these sections or names, or all. Raises ValueError for what there is not."""
    known = {part.name for part in found} | {part.section for part in found}
    if unknown := [name for name in only if name not in known]:
        sections = ", ".join(dict.fromkeys(part.section for part in found))
        raise ValueError(f"there is no part {unknown[0]!r}; sections are {sections}")
    return [part for part in found if not only or {part.name, part.section} & set(only)]


def run(chosen: list[Part], worker: list[str], deadline: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part and its result. A worker does them in their order, and a fresh one those after one that failed it."""
    process: Worker | None = None
    try:
        for part in chosen:
            left = deadline - time.monotonic()
            if left <= 0:
                yield part.name, {"error": LATE}
                continue
            print(f"{part.name}, {left:.0f} s left", file=sys.stderr, flush=True)
            process = process or Worker(worker)
            start = time.monotonic()
            result = process.do(part.name, min(part.limit, left))
            yield part.name, {**result, "took": round(time.monotonic() - start, 1)}
            if result.get("fatal"):
                process.end()
                process = None
    finally:  # Ctrl-C does not reach the worker, which may wait for the GPU for ever
        if process:
            process.end()


class Worker:
    """A process that does parts: a name on its stdin asks for one, which it answers with a line of JSON."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0)
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def do(self, name: str, limit: float) -> dict[str, Any]:
        """The result of a part; `fatal` if this process can do no more."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            return {"error": f"given up after {limit:.0f} s", "fatal": True}
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"the process ended with status {self.process.wait()}", "fatal": True}
        result: dict[str, Any] = json.loads(line)
        return result

    def end(self) -> None:
        """By the end of what it reads; if it is still at work, at once, and with it what it has started."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")


def work(bench: Bench) -> int:
    """Do the parts that stdin names, until it ends or one leaves this process unfit for more."""
    set_up(bench)
    known = {part.name: part for part in parts(bench)}
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # whatever else is printed
        for line in sys.stdin:
            try:
                result = known[line.strip()].run(bench)
            except Exception as error:  # a part must not take the others with it
                result = {"error": words(error)}
            lost = any(fatal(error) for error in errors(result))
            print(json.dumps(result | {"fatal": True} if lost else result), file=out, flush=True)
            if lost:
                return 1
            bench.clean()
    return 0


def first(name: str, alone: bool, bench: Bench) -> int:
    """Say on stdout when the first update of an agent is done, as a run makes it, and how it was made."""
    set_up(bench)
    task = job(name)
    settings = Config(dreamer=task.config, train=TrainConfig(batch_size=task.batch, batch_length=task.length))
    with nullcontext() if alone else ahead.beside(settings, task.obs, task.act, bench.device):
        table = list(bench.tables().values())[-1]
        update = bench.learner(task, table, captured=True)
        update()
        bench.wait()
    print(json.dumps({"graph": not bench.dry}), flush=True)
    return 0


def set_up(bench: Bench) -> None:
    """As runs do; with one thread where times mean nothing."""
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    if bench.dry:
        torch.set_num_threads(1)


def command(argv: Sequence[str]) -> list[str]:
    """What starts a worker."""
    return [sys.executable, str(HERE / "gpu.py"), *argv, "--worker"]


def words_of(argv: Sequence[str]) -> str:
    """The command line, without where things lie on this machine."""
    hidden = {"--peer-path": "DIR", "--peer-python": "PYTHON", "--output": "FILE", "--probe": "FILE"}
    before = [None, *argv]
    given = [hidden.get(str(flag), word) for flag, word in zip(before, argv, strict=False)]
    return shlex.join(["python", "benchmarks/gpu.py", *given])


def about(bench: Bench, commit: str) -> dict[str, Any]:
    """Where and with what it ran."""
    machine: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    machine["cuda"] = torch.version.cuda
    machine["commit"] = commit or output("git", "-C", str(HERE), "rev-parse", "--short", "HEAD")
    try:
        machine["triton"] = __import__("triton").__version__
    except ImportError:
        machine["triton"] = "none"
    if not bench.dry:
        machine["gpu"] = torch.cuda.get_device_name(0)
        machine["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {"datetime": datetime.now(UTC).isoformat(timespec="seconds"), "dry": bench.dry, "machine": machine}


def output(*command: str) -> str:
    """What a command prints, `unknown` where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def errors(result: dict[str, Any]) -> list[str]:
    """What went wrong in a part or in any of its candidates."""
    found = [result["error"]] if "error" in result else []
    candidates = result.get("candidates", {}).items()
    return found + [f"{name}: {entry['error']}" for name, entry in candidates if "error" in entry]
