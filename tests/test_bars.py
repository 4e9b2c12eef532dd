"""benchmarks/cpu.py: reading its command line, judging bars, timing in turn, peers, and what it prints and writes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdream.ops import reference
from fastdream.ops.native import library

from .bench_tools import load

ROOT = Path(__file__).parents[1]

FAKE_PEER = """
import json, sys
print(json.dumps({"ready": True, "peer": "fake", "version": "1", "argv": sys.argv[1:]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"wall": 3.0, "cpu": 4.0}), flush=True)
"""


bars, clock, contest, jobs, floors, shapes = map(
    load, ("bars", "clock", "contest", "jobs", "floors", "shapes")
)
RATES = bars.Rates(flops=1e9, bytes=1e9)


def measured(**walls: float) -> Any:
    """One sample a candidate, on a job whose floor is 1 s of products and 0.5 s of reading."""
    samples = {name: [bars.Sample(wall, 2 * wall)] for name, wall in walls.items()}
    return bars.Measured(samples, floors.Floor(10**9, 5 * 10**8))


@pytest.mark.parametrize(
    ("kind", "limit", "against", "value", "met"),
    [
        ("times", 3.0, "reference", 3.0, True),
        ("times", 3.1, "reference", 3.0, False),
        ("times", 2.0, "torchrl", None, None),
        ("times", 2.0, "fastest peer", 2.5, True),
        ("floor", 1.4, "", 4 / 3, True),
        ("floor", 1.3, "", 4 / 3, False),
        ("reading", 4.0, "", 4.0, True),
        ("reading", 3.9, "", 4.0, False),
        ("seconds", 2.0, "", 2.0, True),
        ("seconds", 1.9, "", 2.0, False),
        ("share", 1.0, "reference", 1 / 3, True),
        ("share", 0.3, "reference", 1 / 3, False),
    ],
)
def test_judging(kind: str, limit: float, against: str, value: float | None, met: bool | None):
    found = measured(native=2.0, reference=6.0, compiled=1.0, r2dreamer=7.0, dreamerv3=5.0)
    verdict = bars.judge(bars.Bar("x", "update:x", kind, limit, against), found, RATES)
    assert verdict == (value, met)


def test_nothing_is_judged_without_native_or_a_peer():
    bar = bars.Bar("x", "update:x", "times", 1, bars.FASTEST_PEER)
    assert bars.judge(bar, measured(native=1.0, reference=2.0), RATES) == (None, None)
    assert bars.judge(bars.Bar("x", "x", "seconds", 1), measured(reference=2.0), RATES) == (None, None)


def test_medians_are_compared():
    samples = {"native": [bars.Sample(x, 2 * x) for x in (1.0, 9.0, 2.0)]}
    found = bars.Measured(samples, floors.Floor(0, 0))
    assert (found.wall("native"), found.cpu("native"), found.wall("reference")) == (2.0, 4.0, None)


def test_bars_speak_of_jobs_and_candidates_that_exist():
    peers = {*clock.adapters(), bars.FASTEST_PEER}
    for bar in bars.BARS:
        kind, _, rest = bar.job.partition(":")
        assert bar.limit > 0 and (bar.against != "") == (bar.kind in ("times", "share"))
        assert bar.against in {"", "reference", "compiled"} | (peers if kind == "update" else set())
        assert (kind == "memory") == (bar.kind == "share")
        if kind in jobs.OPS:
            assert shapes.shape(rest).batch == 16 and kind != "memory"
        else:
            assert kind in ("policy", "update", "memory") and shapes.job(rest).batch >= 1


def test_selection():
    assert bars.select([]) == list(bars.BARS)
    chosen = bars.select(["observe-1m"])
    assert {bar.name for bar in chosen} == {"observe-1m"}
    assert bars.wanted(chosen, "observe:1m") == {"native", "reference", "compiled"}
    assert bars.wanted(chosen, "observe:12m") == {"native"}


def test_command_line(tmp_path: Path):
    args = contest.parse(["--bars"], None)
    assert (args.threads, args.peers, args.output) == ([1, 2], [], contest.RESULTS)
    words = ["--bars", "--only", "update-1m", "--threads", "2", "--rounds", "3", "--without", "compiled"]
    words += ["--peer", "torchrl", "--peer-path", "a", "--peer-python", "py"]
    args = contest.parse([*words, "--peer", "r2dreamer", "--peer-path", str(tmp_path)], None)
    assert args.peers == [clock.Peer("torchrl", Path("a"), "py"), clock.Peer("r2dreamer", tmp_path)]
    assert args.peers[1].python == sys.executable
    assert {bar.name for bar in args.chosen} == {"update-1m"}
    assert (args.threads, args.rounds, args.without, args.output) == ([2], 3, ["compiled"], None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "one of the arguments --bars --peak is required"),
        ("--bars --only nothing", "--only: no bar is called 'nothing'; there are observe-1m"),
        ("--bars --peer nobody", "invalid choice: 'nobody'"),
        ("--bars --peer torchrl", "--peer torchrl needs a --peer-path DIR; benchmarks/peers/torchrl.py"),
        ("--bars --peer-path x", "--peer-path comes after the --peer that it belongs to"),
        ("--bars --rounds 0", "numbers from 1"),
        ("--bars --threads 0", "numbers from 1"),
    ],
)
def test_bad_command_lines(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        contest.parse(words.split(), None)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_the_script_finds_its_neighbours():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cpu.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--peer-path DIR" in done.stdout, done.stderr


def test_samples_are_taken_in_turn():
    order: list[str] = []

    def source(name: str) -> Callable[[], Any]:
        return lambda: order.append(name) or bars.Sample(1.0, 1.0)

    samples = clock.interleaved({name: source(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(found) for name, found in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_short_calls_are_repeated():
    calls: list[int] = []
    sample = clock.repeated(lambda: calls.append(1))
    before = len(calls)
    taken = sample()
    assert len(calls) - before > 1000 and 0 < taken.wall < 1e-3
    assert clock.best([lambda: None, lambda: calls.append(1)]) < 1e-3


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command with made-up work: native takes no time, the reference a little."""
    work = jobs.Work({"native": lambda: None, "reference": lambda: sum(range(1000))}, floors.Floor(8, 9))
    monkeypatch.setattr(jobs, "work", lambda name, wanted: work)
    monkeypatch.setattr(jobs, "machine_rates", lambda: RATES)
    monkeypatch.setattr(jobs, "convolution_share", lambda name: 0.25)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return contest.main(["--bars", "--rounds", "2", *words])


def test_what_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "new" / "bars.json"
    words = ["--only", "imagine-1m", "--only", "pixels-12m", "--output", str(out)]
    assert run_main(monkeypatch, *words) == 0
    text = capsys.readouterr().out
    assert "2 bars met, 0 missed, 2 not measured" in text
    assert "hence neither met nor missed: pixels-12m (2 x faster than r2dreamer, 1 thread); pixels" in text
    assert "convolutions take 25% of the CPU time of pixels-12m-4x16" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and len({len(line) for line in table}) == 1
    data = json.loads(out.read_text())
    chosen = "--only imagine-1m --only pixels-12m --output FILE"
    assert data["command"] == f"python benchmarks/cpu.py --bars --rounds 2 {chosen}"
    assert (
        data["rates"]["1"] == {"flops": 1e9, "bytes": 1e9} and data["machine"]["torch"] == torch.__version__
    )
    assert data["machine"]["kernels"] == library.cpu_kernels()
    assert [(bar["name"], bar["threads"], bar["met"]) for bar in data["bars"]] == [
        ("imagine-1m", 1, True),
        ("imagine-1m", 2, True),
        ("pixels-12m", 1, None),
        ("pixels-12m", 2, None),
    ]
    job = data["jobs"][0]
    assert job["floor"] == {"flops": 8, "bytes": 9, "seconds": 1.7e-8}
    assert job["candidates"]["native"]["samples"] == 2


def test_a_missed_bar_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(bars, "BARS", (bars.Bar("dream", "imagine:1m", "times", 1e9, "reference"),))
    assert run_main(monkeypatch, "--only", "dream", "--threads", "1") == 1
    assert "missed: dream (1e+09 x faster than reference, 1 thread)" in capsys.readouterr().out


@pytest.fixture
def fake_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(clock, "PEERS", tmp_path)
    (tmp_path / "r2dreamer.py").write_text(FAKE_PEER)
    return tmp_path


def test_a_peer_runs_beside_ours(monkeypatch: pytest.MonkeyPatch, fake_peer: Path, tmp_path: Path):
    out, peer = tmp_path / "x.json", ["--peer", "r2dreamer", "--peer-path", "somewhere"]
    words = ["--only", "pixels-12m", "--threads", "2", "--output", str(out)]
    assert run_main(monkeypatch, *words, *peer) == 0
    data = json.loads(out.read_text())
    arguments = ["--path", "somewhere", "--job", "pixels-12m-4x16", "--threads", "2", "--device", "cpu"]
    assert data["peers"]["r2dreamer"]["argv"] == arguments
    theirs = {"wall": 3.0, "cpu": 4.0, "samples": 2, "fastest": 3.0}
    assert data["jobs"][0]["candidates"]["r2dreamer"] == theirs and data["bars"][0]["met"]


def test_a_peer_that_does_not_start_is_status_2(
    monkeypatch: pytest.MonkeyPatch, fake_peer: Path, capsys: pytest.CaptureFixture[str]
):
    (fake_peer / "r2dreamer.py").write_text("raise SystemExit(5)")
    peer = ["--peer", "r2dreamer", "--peer-path", "somewhere"]
    assert run_main(monkeypatch, "--only", "pixels-12m", "--threads", "1", *peer) == 2
    assert "error: r2dreamer stopped with status 5" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*jobs.OPS, "policy", "update"])
def test_every_kind_of_job_can_be_done(monkeypatch: pytest.MonkeyPatch, kind: str):
    tiny = replace(shapes.shape("1m"), batch=2, length=8, horizon=2)
    monkeypatch.setattr(jobs, "shape", lambda size: tiny)
    monkeypatch.setattr(jobs, "compiled", lambda function, backend: function)
    wanted = {"native", "reference", "torchrl"} | ({"compiled"} if kind == "observe" else set())
    work = jobs.work(f"{kind}:{'1m' if kind in jobs.OPS else 'proprio-1m-1x2'}", wanted)
    assert set(work.candidates) == wanted - {"torchrl"} and work.floor.flops > 0 < work.floor.bytes
    for call in work.candidates.values():
        result = call()
        assert all(x.isfinite().all() for x in floors.tensors(result) if x.is_floating_point())


def test_the_compiled_scan_is_the_whole_scan(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "compiled", lambda function, backend: function)
    call = load("calls").observe(replace(shapes.shape("1m"), batch=2, length=8))
    for ours, theirs in zip(jobs.compiled_observe(*call.args), reference.observe(*call.args), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_recorded_command_names_no_place():
    argv = ["--bars", "--peer", "torchrl", "--peer-path", "/somewhere", "--peer-python", "/else/python"]
    recorded = contest.command(argv)
    assert recorded == "python benchmarks/cpu.py --bars --peer torchrl --peer-path DIR --peer-python PYTHON"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_memory_of_an_update():
    """In a process of its own, as `--bars` asks for it: here the peak of earlier tests would cover it."""
    command = sys.executable, str(ROOT / "benchmarks" / "cpu.py"), "--peak", "proprio-1m-2x3", "native"
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 1e5 < int(printed) < 1e9


def test_convolutions_of_an_update():
    assert 0 < jobs.convolution_share("pixels-1m-1x2") < 1
    assert jobs.convolution_share("proprio-1m-1x2") == 0


def test_rates_of_the_machine():
    rates = jobs.machine_rates(side=64, size=2**16)
    assert rates.flops > 1e6 and rates.bytes > 1e6


def test_crossover():
    """From the least size on that is larger than all at which native loses by more than noise."""
    least = load("crossover").least
    assert least([(1, 0.5), (10, 1.04), (100, 0.2)]) == 0
    assert least([(1, 2.0), (10, 1.2), (10, 0.9), (100, 0.5)]) == 100
    assert least([(1, 0.5), (100, 1.5)]) is None
