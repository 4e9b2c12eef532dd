"""What gpu.py measures by starting other programs: a first update, the hardware probe, other codebases."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .clock import Running
from .gpu_bench import Bench

HERE = Path(__file__).parent
PROBE = HERE / "probes" / "hardware.cu"
PROBE_LIMIT = 45  # seconds


def first_update(name: str, cold: bool, alone: bool, bench: Bench) -> dict[str, Any]:
    """Seconds from the start of Python to the end of the first update, in a process of its own.

    cold    Triton's cache is empty, as before the very first run; else earlier parts have filled it.
    alone   nothing else compiles beside it, as it does where a run starts.
    """
    command = [sys.executable, str(HERE / "gpu.py"), "--first", name]
    command += ["--alone"] * alone + ["--dry-run"] * bench.dry
    with tempfile.TemporaryDirectory() as empty:
        variables = os.environ | ({"TRITON_CACHE_DIR": empty} if cold else {})
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            took = time.perf_counter() - start
    if not line:
        raise ChildProcessError(f"the process ended with status {process.returncode}; its words stand above")
    return {"seconds_to_first_update": took, **json.loads(line)}


def hardware(bench: Bench) -> dict[str, Any]:
    """Barriers, clusters, graph nodes and L2, by probes/hardware.cu."""
    with tempfile.TemporaryDirectory() as folder:
        program = bench.probe or compile_probe(Path(folder))
        options = ["--list"] if bench.dry else []
        # A barrier that nobody leaves must not keep the device from the parts that follow.
        done = subprocess.run(
            [str(program.resolve()), *options], capture_output=True, text=True, timeout=PROBE_LIMIT
        )
    if done.returncode:
        raise RuntimeError(f"{program.name} ended with status {done.returncode}: {done.stderr.strip()}")
    return {"hardware": done.stdout.split() if bench.dry else json.loads(done.stdout)}


def compile_probe(folder: Path) -> Path:
    """The compiled probe; FileNotFoundError without nvcc, RuntimeError with its words if it fails."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise FileNotFoundError(
            "there is no nvcc here; compile the probe elsewhere and give it as --probe FILE"
        )
    options = ["-O3", "-std=c++17", "-arch=sm_90a", "-Werror", "all-warnings"]
    program = folder / "hardware"
    done = subprocess.run([nvcc, *options, str(PROBE), "-o", str(program)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc refuses {PROBE.name}: {done.stdout}{done.stderr}")
    return program


def peer_update(index: int, name: str, bench: Bench) -> dict[str, Any]:
    """Updates of another codebase."""
    running = Running(bench.peers[index], name, 1, bench.device.type)
    try:
        samples = sorted(running.sample().wall for _ in range(1 + bench.rounds))
    finally:
        running.close()
    found = {"median": samples[len(samples) // 2], "low": samples[0], "high": samples[-1]}
    return {"about": running.about, "candidates": {running.name: found | {"samples": len(samples)}}}
