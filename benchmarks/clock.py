"""Timing candidates in turn, so that whatever else the machine does meets all of them alike."""

import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fastdream.integrations.__main__ import codebases

from .bars import PATCHED, Sample

LEAST = 0.02  # seconds of one sample: shorter calls are repeated
PEERS = Path(__file__).parent / "peers"


def timed(call: Callable[[], Any], times: int = 1) -> Sample:
    """Mean of so many calls in a row."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    return Sample((time.perf_counter() - wall) / times, (time.process_time() - cpu) / times)


def repeated(call: Callable[[], Any]) -> Callable[[], Sample]:
    """The call as a source of samples, after it has warmed up."""
    call()
    times = math.ceil(LEAST / max(1e-9, min(timed(call).wall for _ in range(3))))
    return lambda: timed(call, times)


def best(calls: Iterable[Callable[[], Any]]) -> float:
    """Least time of any of the calls, each made nine times."""
    return min(timed(call).wall for _ in range(9) for call in calls)


def interleaved(sources: dict[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """So many samples of each, taken in turn; every round starts with another one."""
    samples: dict[str, list[Sample]] = {name: [] for name in sources}
    names = list(sources)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(sources[name]())
    finally:
        gc.enable()
    return samples


class Peer(NamedTuple):
    """Another codebase, as it is or on our ops, where it lies, and the Python that has what it needs."""

    name: str
    path: Path
    python: str = sys.executable


def adapters() -> list[str]:
    """The peers that can be timed, and those of them that run on our ops too."""
    names = sorted(path.stem for path in PEERS.glob("*.py") if path.stem != "protocol")
    return [*names, *(f"{name}{PATCHED}" for name in names if name in codebases())]


class Running:
    """An adapter of benchmarks/peers in a process of its own, ready to update; see peers/protocol.py."""

    def __init__(self, peer: Peer, job: str, threads: int, device: str = "cpu") -> None:
        name = peer.name.removesuffix(PATCHED)
        adapter = [peer.python, str(PEERS / f"{name}.py"), "--path", str(peer.path)]
        command = [*adapter, "--job", job, "--threads", str(threads), "--device", device]
        command += ["--fastdream"] if name != peer.name else []
        self.name = peer.name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()

    def sample(self) -> Sample:
        """One update."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._read()
        return Sample(answer["wall"], answer["cpu"])

    def close(self) -> None:
        """End the process, by the end of what it reads."""
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(
                f"{self.name} stopped with status {self.process.wait()}; its words stand above"
            )
        return json.loads(line)
