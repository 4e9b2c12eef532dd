"""benchmarks/gpu.py on a machine without a GPU: everything runs at tiny sizes, and what fails is recorded."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from .bench_tools import load

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
# What a machine with a GPU may lack: the run must need none of it.
ABSENT = ("tyro", "gymnasium", "rich", "safetensors", "pytest", "hypothesis", "matplotlib", "tensorboard")


gpu_run, gpu_parts, gpu_table, gpu_bench = map(load, ("gpu_run", "gpu_parts", "gpu_table", "gpu_bench"))
gpu_programs = load("gpu_programs")

WORKER = """
import json, os, signal, sys, time
for line in sys.stdin:
    name = line.strip()
    if name == "a:crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "a:hang":
        time.sleep(60)
    answer = {"pid": os.getpid()}
    if name == "a:broken":
        answer = {"error": "CUDA error: an illegal memory access", "fatal": True}
    print(json.dumps(answer), flush=True)
    if "fatal" in answer:
        sys.exit(1)
"""


def part(what: str, limit: float = 10) -> Any:
    return gpu_parts.Part("a", what, limit, lambda bench: {})


def gpu(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=280, **options)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not there to compile the hardware probe")
def test_everything_runs_without_a_gpu_and_without_what_a_gpu_machine_may_lack(tmp_path: Path):
    """Every part: the sizes are tiny, the device is the CPU, all else is as on a GPU."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} must not be needed')")
    # Which Python reads when it starts.
    faster = Path(__file__).with_name("interpreter_speed.py").read_text() + "\nhasten()\n"
    (tmp_path / "sitecustomize.py").write_text(faster)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    output = tmp_path / "gpu.json"
    done = gpu(str(SCRIPT), "--dry-run", "--output", str(output), env=path)
    assert done.returncode == 0, done.stderr[-3000:]
    for title in gpu_table.SECTIONS.values():
        assert (title in done.stdout) == (title != "Other codebases")
    assert "a dry run on a CPU: the times mean nothing" in done.stdout
    assert "triton + graph" in done.stdout  # interpreted
    assert "failed" not in done.stdout and "Parts that did not run" not in done.stdout
    # What the probe measures, which was compiled without a warning.
    probed = json.loads(output.read_text())["parts"]["hardware"]["hardware"]
    assert {"grid_barrier_cooperative_us", "clusters_of_16", "l2_read_gb_per_s"} <= set(probed)


def test_a_part_that_crashes_hangs_or_breaks_the_gpu_leaves_the_others():
    names = ("first", "second", "crash", "third", "hang", "fourth", "broken", "fifth")
    chosen = [part(name, 2 if name == "hang" else 20) for name in names]
    results = dict(gpu_run.run(chosen, [sys.executable, "-c", WORKER], time.monotonic() + 60))
    assert "status -11" in results["a:crash"]["error"]
    assert "given up after 2 s" in results["a:hang"]["error"]
    assert "illegal memory access" in results["a:broken"]["error"]
    pids = [results[f"a:{name}"]["pid"] for name in ("first", "second", "third", "fourth", "fifth")]
    assert pids[0] == pids[1] and len(set(pids)) == 4
    assert [name for name in results if gpu_run.errors(results[name])] == ["a:crash", "a:hang", "a:broken"]


def test_an_interrupted_run_leaves_no_worker_behind(monkeypatch: pytest.MonkeyPatch):
    begun = []

    class Interrupted(gpu_run.Worker):
        def do(self, name: str, limit: float) -> dict[str, Any]:
            begun.append(self.process)
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_run, "Worker", Interrupted)
    results = gpu_run.run([part("first")], [sys.executable, "-c", WORKER], time.monotonic() + 60)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert begun[0].poll() is not None


def test_what_the_deadline_leaves_no_time_for_is_an_error():
    chosen = [part("first"), part("second")]
    results = dict(gpu_run.run(chosen, [sys.executable, "-c", WORKER], time.monotonic() - 1))
    assert results == {"a:first": {"error": gpu_run.LATE}, "a:second": {"error": gpu_run.LATE}}


def test_a_candidate_that_fails_makes_the_part_fail_and_not_the_others():
    def broken() -> Any:
        raise ValueError("no kernel for this")

    bench = gpu_bench.Bench(dry=True)
    found = bench.candidates({"good": lambda: lambda: torch.ones(2), "bad": broken})
    assert found["good"]["median"] > 0 and found["good"]["low"] <= found["good"]["high"]
    assert gpu_run.errors({"candidates": found}) == ["bad: ValueError: no kernel for this"]


def test_nothing_more_is_tried_in_a_process_that_lost_its_gpu():
    def lost() -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    found = gpu_bench.Bench(dry=True).candidates({"lost": lost, "next": lambda: lambda: None})
    assert list(found) == ["lost"] and gpu_bench.fatal(gpu_run.errors({"candidates": found})[0])
    assert gpu_bench.fatal("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered")
    assert not gpu_bench.fatal("ValueError: no kernel for this")
    assert not gpu_bench.fatal("RuntimeError: Triton Error [CUDA]: invalid argument")


def test_the_most_valuable_parts_come_first_and_all_named_work_is_there():
    found = gpu_parts.parts(gpu_bench.Bench())
    sections = list(dict.fromkeys(part.section for part in found))
    assert sections[:4] == ["machine", "update", "observe", "imagine"]
    updates = [part.what for part in found if part.section == "update"]
    assert updates[0] == "proprio-1m-16x64"
    assert updates[1:4] == [f"pixels-{size}-16x64" for size in ("12m", "50m", "200m")]
    assert [name.partition("-")[0] for name in updates[4:]] == list(load("shapes").EARLIER_KINDS)
    assert {part.what.split("-")[0] for part in found if part.section == "op"} | {
        "observe",
        "imagine",
    } == set(gpu_parts.PLANS)
    assert len({part.name for part in found}) == len(found)


@pytest.mark.parametrize(
    ("only", "names"),
    [(["hardware"], ["hardware"]), (["observe:12m", "machine"], ["machine", "observe:12m"])],
)
def test_parts_are_chosen_by_section_or_name(only: list[str], names: list[str]):
    chosen = gpu_run.select(gpu_parts.parts(gpu_bench.Bench()), only)
    assert [part.name for part in chosen] == names


def test_wrong_arguments_say_what_is_right():
    unknown = gpu(str(SCRIPT), "--dry-run", "--only", "obsrve")
    assert (
        unknown.returncode == 2
        and "there is no part 'obsrve'; sections are machine, update" in unknown.stderr
    )
    if not torch.cuda.is_available():
        without = gpu(str(SCRIPT))
        assert without.returncode == 2 and "--dry-run runs it on a CPU" in without.stderr
    peer = gpu(str(SCRIPT), "--peer", "torchrl")
    assert peer.returncode == 2 and "--peer torchrl needs a --peer-path DIR" in peer.stderr


def test_without_results_the_tables_say_so(tmp_path: Path):
    done = gpu(str(SCRIPT), "--table", "--output", str(tmp_path / "none.json"))
    assert done.returncode == 0 and "On a GPU: not yet measured" in done.stdout


def test_tables_hold_medians_floors_ratios_and_failures(tmp_path: Path):
    times = {"median": 2e-3, "low": 1e-3, "high": 3e-3, "samples": 9, "memory": 3 * 10**9}
    machine = {
        "gpu": "A GPU",
        "driver": "1",
        "cuda": "13",
        "torch": "2",
        "triton": "3",
        "python": "3",
        "commit": "c",
    }
    parts = {
        "machine": {"rates": {"flops": 1e12, "bytes": 1e9}},
        "update:x": {
            "floor": {"flops": 10**9, "bytes": 10},
            "candidates": {"a": times, "b": {"error": "no"}},
        },
        "update:y": {"error": "given up"},
        "hardware": {"hardware": {"graph_node_us": 1.5}},
        "profile:x": {"profiles": {"a": {"kernels": 7, "busy": 1e-3, "wall": 2e-3, "utilisation": 0.5}}},
        "first:x": {"seconds_to_first_update": 9.0},
    }
    data = {"command": "c", "datetime": "2026-01-01T", "dry": False, "machine": machine, "parts": parts}
    (tmp_path / "gpu.json").write_text(json.dumps(data))
    text = gpu(str(SCRIPT), "--table", "--output", str(tmp_path / "gpu.json")).stdout
    assert "| x | 2 ms | failed | 1 ms | 2.0 | 3.00 GB |" in text
    assert "| graph_node_us | 1.5 |" in text
    assert "| x | a | 7 | 1 ms | 50 % |  |" in text and "9 s" in text
    assert "- update:y: given up" in text


def test_peers_are_asked_for_updates_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(load("clock"), "PEERS", tmp_path)
    (tmp_path / "torchrl.py").write_text(
        "import json, sys\nprint(json.dumps({'ready': True, 'argv': sys.argv[1:]}), flush=True)\n"
        "for line in sys.stdin: print(json.dumps({'wall': 2.0, 'cpu': 1.0}), flush=True)"
    )
    bench = gpu_bench.Bench(dry=True, peers=(load("clock").Peer("torchrl", tmp_path),))
    assert "peer:torchrl-proprio-1m-1x2" in [part.name for part in gpu_parts.parts(bench)]
    found = gpu_programs.peer_update(0, "proprio-1m-1x2", bench)
    assert found["about"]["argv"][-4:] == ["--threads", "1", "--device", "cpu"]
    assert found["candidates"]["torchrl"]["median"] == 2.0


def test_a_machine_without_nvcc_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(gpu_programs.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(FileNotFoundError, match="give it as --probe FILE"):
        gpu_programs.compile_probe(tmp_path)


def test_a_graph_of_candidates_equals_the_call():
    """The stand-in for graphs on a CPU does the same work."""
    x = torch.ones(3)
    replay = gpu_bench.Bench(dry=True).graph(lambda: x.add_(1))
    before = x.clone()
    replay()
    assert torch.equal(x, before + 1)
