"""Timing of other codebases: the protocol with a peer that is made up, and the adapters without their peers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastdream.agents.dreamer_v3_config import SIZES

from .bench_tools import load

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
ADAPTERS = sorted(path.stem for path in PEERS.glob("*.py") if path.stem != "protocol")

FAKE = """
import os, sys, time
sys.path.insert(0, {peers!r})
from protocol import Peer, serve

def build(path, job, threads, device):
    print("building", path.name, job.obs, job.batch, job.length, threads, device)
    if threads == 7:
        import no_such_package
    def update():
        os.write(1, b"updating\\n")
        time.sleep(0.05)
    return Peer(update, job.deter, str({peers!r} in sys.path))

serve("fake", "mark*", "git clone somewhere", build, kinds=("proprio",))
"""


def run(adapter: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(adapter), *args]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "marker").touch()
    path = tmp_path / "fake.py"
    path.write_text(FAKE.format(peers=str(PEERS)))
    return path


def test_an_update_for_every_line_until_stdin_ends(fake: Path):
    args = ["--path", str(fake.parent), "--job", "proprio-12m-4x16", "--threads", "2"]
    done = run(fake, *args, stdin="\ngo\n\n")
    assert done.returncode == 0, done.stderr
    ready, *times = map(json.loads, done.stdout.splitlines())
    seconds = ready.pop("seconds_to_ready")
    assert ready == {"ready": True, "peer": "fake", "version": "False", "parameters": 2048}
    assert seconds >= 0.05, "the warm-up is an update"
    assert len(times) == 3 and all(x.keys() == {"wall", "cpu"} for x in times)
    assert all(x["wall"] >= 0.05 > x["cpu"] >= 0 for x in times), "sleep takes time, and none of a core"
    assert done.stderr.splitlines() == [f"building {fake.parent.name} proprio 4 16 2 cpu", *["updating"] * 4]


def test_it_answers_at_once(fake: Path):
    """Whoever asks waits for the answer before the next line."""
    command = [sys.executable, str(fake), "--path", str(fake.parent), "--job", "proprio-1m-1x1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin and process.stdout
        assert json.loads(process.stdout.readline())["ready"]
        for _ in range(2):
            process.stdin.write("\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["wall"] > 0
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--path": None}, "--path"),
        ({"--job": None}, "--job"),
        ({"--path": "nowhere"}, "--path nowhere holds no mark*; get it by: git clone somewhere"),
        ({"--job": "proprio-3m-4x16"}, "unknown job 'proprio-3m-4x16'; use <proprio|pixels>-<1m|12m>-"),
        ({"--job": "proprio-1m-0x16"}, "unknown job 'proprio-1m-0x16'"),
        ({"--job": "pixels-1m-4x16"}, "no equal network in fake; use proprio"),
        ({"--threads": "0"}, "--threads 0 is not a number of threads; use 1 or more"),
        ({"--threads": "two"}, "invalid int value: 'two'"),
        ({"--threads": "7"}, "has no no_such_package, which fake needs; get it by: git clone somewhere"),
        ({"--device": "tpu"}, "invalid choice: 'tpu'"),
        ({"--speed": "1"}, "--speed"),
    ],
    ids=lambda x: "=".join(map(str, *x.items())) if isinstance(x, dict) else "",
)
def test_wrong_arguments_are_one_line(fake: Path, change: dict[str, str | None], says: str):
    right: dict[str, str | None] = {"--path": str(fake.parent), "--job": "proprio-1m-4x16"}
    args = [word for key, value in (right | change).items() if value for word in (key, value)]
    done = run(fake, *args)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("building")]
    assert len(lines) == 1 and lines[0].startswith("fake: ") and says in lines[0]


def test_a_peer_without_an_integration_is_refused(fake: Path):
    done = run(fake, "--path", str(fake.parent), "--job", "proprio-1m-4x16", "--fastdream")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no fastdream.integrations.fake, which fake needs" in done.stderr


def test_peers_that_run_on_our_ops_are_offered_as_such():
    names = load("clock").adapters()
    assert {"r2dreamer", "r2dreamer+fastdream", "torchrl+fastdream", "dreamerv3"} <= set(names)
    assert "dreamerv3+fastdream" not in names


def test_a_fault_of_the_peer_ends_it(fake: Path):
    fake.write_text(fake.read_text().replace("time.sleep(0.05)", "raise RuntimeError('broken')"))
    done = run(fake, "--path", str(fake.parent), "--job", "proprio-1m-4x16", stdin="\n")
    assert done.returncode == 1 and done.stdout == "" and "RuntimeError: broken" in done.stderr


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_say_how_to_get_their_peers(name: str, tmp_path: Path):
    done = run(PEERS / f"{name}.py", "--path", str(tmp_path), "--job", "proprio-1m-16x64")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{name}: --path {tmp_path} holds no ")
    assert done.stderr.count("\n") == 1 and "DIR" in done.stderr and "install" in done.stderr


@pytest.mark.parametrize("name", ["proprio-1m-16x64", "proprio-12m-4x16", "pixels-12m-4x16"])
def test_jobs_are_ours(name: str):
    protocol, ours = load("peers.protocol"), load("shapes").job(name)
    theirs = protocol.job(name)
    assert SIZES.items() >= protocol.SIZES.items()
    dyn = ours.config.dyn
    widths = (dyn.deter, dyn.hidden, dyn.stoch, dyn.classes)
    assert (theirs.deter, theirs.hidden, theirs.stoch, theirs.classes) == widths
    assert (theirs.depth, theirs.units) == (ours.config.enc.depth, ours.config.policy.units)
    assert (theirs.batch, theirs.length, theirs.horizon) == (ours.batch, ours.length, ours.config.imag_length)
    (obs,), (act,) = ours.obs.values(), ours.act.values()
    assert theirs.observation == obs.shape
    assert theirs.action == act.width and theirs.pixels == (act.kind == "discrete")


def test_revision_of_a_folder(tmp_path: Path):
    protocol = load("peers.protocol")
    assert protocol.revision(tmp_path) == "unknown revision"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    commit = [*who, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "-C", str(tmp_path), *commit], check=True)
    assert len(protocol.revision(tmp_path)) == 7
    inside = tmp_path / "inside"
    inside.mkdir()
    assert protocol.revision(inside) == "unknown revision"
