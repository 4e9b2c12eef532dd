"""The program behind cpu.py: takes the bars' jobs one by one, times their candidates, prints and writes what came."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastdream.allocator import keep_freed_memory
from fastdream.ops.native.library import cpu_kernels

from . import jobs
from .bars import FASTEST_PEER, OURS, PATCHED, Bar, Measured, Rates, Sample, Verdict, judge, select, wanted
from .clock import Peer, Running, adapters, interleaved, repeated
from .floors import Floor
from .peer_flags import TakePeer, complete
from .table import seconds

RESULTS = Path(__file__).parent / "results" / "cpu-bars.json"
BYTES = "share"  # the kind of bar whose samples are bytes


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line; `peers` holds a Peer for each --peer, `bars` the chosen ones. Exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        "cpu.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bars", action="store_true", help="run them")
    what.add_argument(
        "--peak", nargs=2, metavar=("JOB", "CANDIDATE"), help="print the memory of updates, in bytes"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="this bar alone; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=9, help="samples of each candidate (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (1 2)")
    parser.add_argument("--without", action="append", default=[], metavar="CANDIDATE", help="as `compiled`")
    parser.add_argument("--peer", action=TakePeer, choices=adapters(), dest="peers", default=[])
    parser.add_argument("--peer-path", action=TakePeer, type=Path, dest="peers", metavar="DIR")
    parser.add_argument(
        "--peer-python", action=TakePeer, dest="peers", metavar="PYTHON", help="that has its needs"
    )
    parser.add_argument(
        "--output", type=Path, help=f"JSON; {RESULTS.name} in benchmarks/results without --only"
    )
    args = parser.parse_args(argv)
    complete(parser, args.peers)
    if args.rounds < 1 or min(args.threads) < 1:
        parser.error("--rounds and --threads are numbers from 1")
    try:
        args.chosen = select(args.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    args.peers = [Peer(**peer) for peer in args.peers]
    args.output = args.output or (None if args.only else RESULTS)
    return args


@dataclass
class Contest:
    """One run of bars: what it was asked for, and what it found so far."""

    bars: list[Bar]
    rounds: int
    peers: list[Peer] = field(default_factory=list)
    without: Sequence[str] = ()
    rates: dict[int, Rates] = field(default_factory=dict)
    measured: dict[tuple[str, int], Measured] = field(default_factory=dict)
    about_peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    convolutions: dict[str, float] = field(default_factory=dict)

    def run(self, threads: int) -> None:
        """Measure every job with so many threads."""
        torch.set_num_threads(threads)
        self.rates[threads] = jobs.machine_rates()
        for job in dict.fromkeys(bar.job for bar in self.bars):
            print(f"{job}, threads: {threads}", file=sys.stderr, flush=True)
            self.measured[job, threads] = self.measure(job, threads)

    def measure(self, job: str, threads: int) -> Measured:
        """Samples of one job's candidates."""
        names = wanted(self.bars, job) - set(self.without)
        kind, _, name = job.partition(":")
        if kind == "memory":
            candidates = [name for name in ("reference", OURS) if name in names]
            return Measured({key: [peak(name, key, threads)] for key in candidates}, Floor(0, 0))
        work = jobs.work(job, names)
        order = sorted(work.candidates, key=("reference", "compiled", OURS).index)
        sources = {key: repeated(work.candidates[key]) for key in order}
        running = []
        try:
            for peer in self.peers:
                if kind == "update" and names & {peer.name.removesuffix(PATCHED), FASTEST_PEER}:
                    running.append(Running(peer, name, threads))
                    self.about_peers[peer.name] = running[-1].about
                    sources[peer.name] = running[-1].sample
            samples = interleaved(sources, self.rounds)
        finally:
            for process in running:
                process.close()
        if kind == "update" and threads == 1 and (share := jobs.convolution_share(name)):
            self.convolutions[name] = share
        return Measured(samples, work.floor)

    def verdicts(self) -> list[tuple[Bar, int, Verdict]]:
        """Every bar, with every number of threads."""
        return [
            (bar, threads, judge(bar, self.measured[bar.job, threads], rates))
            for bar in self.bars
            for threads, rates in self.rates.items()
        ]

    def table(self) -> list[list[str]]:
        """Header and a row for each bar and number of threads."""
        peers = [peer.name for peer in self.peers]
        names = ["reference", "compiled", *peers, OURS]
        rows = [["bar", "threads", *names, "CPU time", "floor", "GFLOP", "MB", "asked", "reached", "verdict"]]
        for bar, threads, verdict in self.verdicts():
            found, rates = self.measured[bar.job, threads], self.rates[threads]
            rows.append([bar.name, str(threads), *(shown(found.wall(name), bar) for name in names)])
            rows[-1] += [
                shown(None if bar.kind == BYTES else found.cpu(OURS), bar),
                *floor_cells(found, rates),
            ]
            rows[-1] += [
                asked(bar),
                reached(bar, verdict),
                {True: "met", False: "MISSED", None: "not measured"}[verdict.met],
            ]
        return rows

    def data(self, argv: Sequence[str]) -> dict[str, Any]:
        """All of it as JSON takes it."""
        machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
        return {
            "command": command(argv),
            "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine | {"torch": torch.__version__, "kernels": cpu_kernels()},
            "rates": {str(threads): rates._asdict() for threads, rates in self.rates.items()},
            "peers": self.about_peers,
            "convolutions": self.convolutions,
            "jobs": [job_data(*key, found, self.rates[key[1]]) for key, found in self.measured.items()],
            "bars": [
                bar._asdict() | {"threads": threads} | verdict._asdict()
                for bar, threads, verdict in self.verdicts()
            ],
        }


def command(argv: Sequence[str]) -> str:
    """The command line, without where things lie on this machine."""
    hidden = {"--peer-path": "DIR", "--peer-python": "PYTHON", "--output": "FILE"}
    before = [None, *argv]
    words = [hidden.get(str(flag), word) for flag, word in zip(before, argv, strict=False)]
    return shlex.join(["python", "benchmarks/cpu.py", *words])


def peak(name: str, candidate: str, threads: int) -> Sample:
    """Bytes that updates take, measured in a process of its own."""
    script = [sys.executable, str(Path(__file__).with_name("cpu.py")), "--peak", name, candidate]
    done = subprocess.run([*script, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, check=True)
    return Sample(float(done.stdout), float(done.stdout))


def shown(value: float | None, bar: Bar) -> str:
    """A time, or a number of bytes; nothing for what was not measured."""
    if value is None:
        return ""
    return f"{value / 1e6:.1f} MB" if bar.kind == BYTES else seconds(value)


def floor_cells(found: Measured, rates: Rates) -> list[str]:
    """The least time of a job, its FLOPs and its bytes."""
    floor = found.floor
    if not floor.bytes:
        return ["", "", ""]
    return [seconds(rates.seconds(floor)), f"{floor.flops / 1e9:.3g}", f"{floor.bytes / 1e6:.3g}"]


def asked(bar: Bar) -> str:
    """The requirement in words."""
    return {
        "times": f"{bar.limit:g} x faster than {bar.against}",
        "floor": f"{bar.limit:g} x floor",
        "reading": f"{bar.limit:g} x time to read",
        "seconds": seconds(bar.limit),
        "share": f"{bar.limit:g} x {bar.against}",
    }[bar.kind]


def reached(bar: Bar, verdict: Verdict) -> str:
    """What came of it, in the unit of the requirement."""
    if verdict.value is None:
        return ""
    return seconds(verdict.value) if bar.kind == "seconds" else f"{verdict.value:.2f} x"


def aligned(rows: list[list[str]]) -> str:
    """A Markdown table whose columns also stand under one another in a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * wide for wide in widths))
    return "\n".join(f"| {line} |" for line in lines)


def job_data(job: str, threads: int, found: Measured, rates: Rates) -> dict[str, Any]:
    """One job's times as JSON takes them."""
    candidates = {
        name: {"wall": found.wall(name), "cpu": found.cpu(name), "samples": len(samples)}
        | {"fastest": min(sample.wall for sample in samples)}
        for name, samples in found.samples.items()
    }
    floor = found.floor._asdict() | {"seconds": rates.seconds(found.floor)}
    return {"job": job, "threads": threads, "floor": floor, "candidates": candidates}


def cpu_name() -> str:
    """What the processor calls itself (Linux), or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def summary(verdicts: list[tuple[Bar, int, Verdict]]) -> tuple[str, int]:
    """The last line, and the exit status: 1 if any bar is missed."""
    names: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for bar, threads, verdict in verdicts:
        names[verdict.met].append(f"{bar.name} ({asked(bar)}, {threads} thread{'s' if threads > 1 else ''})")
    line = f"{len(names[True])} bars met, {len(names[False])} missed, {len(names[None])} not measured"
    parts = [line]
    if names[False]:
        parts.append("missed: " + "; ".join(names[False]))
    if names[None]:
        parts.append("not measured, hence neither met nor missed: " + "; ".join(names[None]))
    return "\n".join(parts), int(bool(names[False]))


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """The command; returns its exit status: 0, 1 if a bar is missed, 2 if a peer did not run."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv, description)
    torch.set_flush_denormal(True)
    if args.peak:
        torch.set_num_threads(args.threads[0])
        print(jobs.peak_memory(*args.peak))
        return 0
    keep_freed_memory()  # as training does
    contest = Contest(args.chosen, args.rounds, args.peers, args.without)
    try:
        for threads in args.threads:
            contest.run(threads)
    except ChildProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for threads, rates in contest.rates.items():
        words = f"{rates.flops / 1e9:.0f} GFLOP/s of products, {rates.bytes / 1e9:.1f} GB/s read"
        print(f"threads: {threads}, {words}")
    print(aligned(contest.table()))
    for name, share in contest.convolutions.items():
        print(f"convolutions take {share:.0%} of the CPU time of {name}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(contest.data(argv), indent=1) + "\n")
    words, status = summary(contest.verdicts())
    print(words)
    return status
