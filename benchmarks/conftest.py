"""What all benchmarks share: options, the clock, and a JSON file that says how it was made and stays small.

    pytest benchmarks                                 what ends within minutes; one thread
    pytest benchmarks -m "slow or not slow"           large presets too
    pytest benchmarks --threads 2 --benchmark-json=two_threads.json

`python benchmarks/table.py two_threads.json` makes a table of such a file.
"""

import os
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdream.allocator import keep_freed_memory

from .floors import Floor

KEPT = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads of PyTorch while benchmarks run")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    torch.set_flush_denormal(True)
    keep_freed_memory()
    # A second for each, pytest-benchmark's default, would make a long run.
    if not any(arg.startswith("--benchmark-max-time") for arg in config.invocation_params.args):
        config.option.benchmark_max_time = "0.4"


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """timed(call, floor, what=..., preset=..., mode=..., backend=...) times a call and returns its result.

    Beside pytest-benchmark's statistics, extra_info holds these names, the floor, the threads, and how many cores
    were busy while it ran.
    """

    def run(call: Callable[[], Any], floor: Floor, what: str, preset: str, mode: str, backend: str) -> Any:
        benchmark.group = f"{what} {preset} {mode}"
        benchmark.extra_info |= {"what": what, "preset": preset, "mode": mode, "backend": backend}
        benchmark.extra_info |= {"threads": torch.get_num_threads(), **floor._asdict()}
        wall, cpu = time.perf_counter(), time.process_time()
        result = benchmark(call)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        benchmark.extra_info["cores"] = round(cpu / wall, 2)
        return result

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What matters to a time: processor, Python, PyTorch; not whose computer it is."""
    cpu = machine_info.get("cpu", {})
    kept = {
        "python": machine_info.get("python_version"),
        "cpu": cpu.get("brand_raw"),
        "cores": os.cpu_count(),
    }
    machine_info.clear()
    machine_info |= kept | {"torch": torch.__version__}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list, output_json: dict[str, Any]
) -> None:
    """The statistics without every single time, and the command that made them."""
    output_json["command"] = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    output_json.pop("commit_info", None)
    for result in output_json["benchmarks"]:
        for name in ("options", "params", "param", "fullname", "group"):
            result.pop(name, None)
        result["stats"] = {name: result["stats"][name] for name in KEPT}
