"""python -m fastdream.ahead: compile what an agent will launch on a GPU, beside the start of its run.

Triton compiles a kernel where it is launched first, and one after the other: some fifty seconds of a CPU core for the
first update of DreamerV3's size12m. `start` lets a process of its own find out meanwhile which kernels will be
launched, on tensors without memory, and compile them in as many processes as there are cores. The run finds them in
Triton's cache, and compiles by itself what is not there yet. Nothing but time depends on it.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module, metadata
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdream
from fastdream import agents, entry, nets, ops
from fastdream import config as configs
from fastdream.config import Config
from fastdream.learner import step_spec
from fastdream.ops import triton
from fastdream.spaces import Spaces, spaces_from_json, spaces_to_json
from fastdream.transfer import TORCH

COMMAND = [sys.executable, "-P", "-m", "fastdream.ahead"]
BY_TRITON = "auto", "triton"  # of --ops, what takes Triton's kernels
FEWEST = 4  # cores; fewer would compile what the run itself compiles at the same time
MOST = 16  # processes that compile
POLITE = 5  # how much they give way to the run


@contextmanager
def beside(config: Config, obs_space: Spaces, act_space: Spaces, device: torch.device) -> Iterator[None]:
    """While entered, compile what a run with these settings launches on the device, if that is a GPU.

    Not where cores are few, where the settings take no Triton kernels, or where it was done before. Warns at the end
    where it failed.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = start(config, obs_space, act_space, device, said)
        try:
            yield
        finally:
            if process is not None:
                end(process, said)


def start(
    config: Config, obs_space: Spaces, act_space: Spaces, device: torch.device, said: IO[str]
) -> subprocess.Popen[str] | None:
    """The process that compiles and writes its errors to `said`; None where there is nothing for it to do."""
    if device.type != "cuda" or config.ops not in BY_TRITON or triton.available(device):
        return None
    major, minor = torch.cuda.get_device_capability(device)
    given = request(config, obs_space, act_space, 10 * major + minor)
    if cores() < FEWEST or marker(given).exists():
        return None
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        text=True,
        env=environment(),
        start_new_session=True,  # Ctrl-C is for the run, which ends this and its processes
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(given)
    return process


def end(process: subprocess.Popen[str], said: IO[str]) -> None:
    """Stop the process if it is still compiling; warn if it had failed."""
    if (status := process.poll()) is None:
        # Which leaves nothing half done: Triton's cache takes whole files.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if status:
        said.seek(0)
        reason = (said.read().strip().splitlines() or [f"status {status}"])[-1]
        warnings.warn(f"kernels were not compiled beside the run's start: {reason}", stacklevel=1)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, str]:
    """Variables of a process that needs no GPU, and finds this package where this one did."""
    path = [str(Path(folder).parent) for folder in fastdream.__path__]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)}


def request(config: Config, obs_space: Spaces, act_space: Spaces, capability: int) -> str:
    """All that decides which kernels a run launches, as JSON."""
    facts = {
        "agent": config.agent,
        "dreamer": asdict(config.dreamer),
        "ops": config.ops,
        "environments": config.env.count,
        "batch": [config.train.batch_size, config.train.batch_length],
        "obs": spaces_to_json(obs_space),
        "act": spaces_to_json(act_space),
        "capability": capability,
    }
    return json.dumps(facts, sort_keys=True)


def cache() -> Path:
    """Where Triton keeps what it compiled."""
    return Path(import_module("triton").knobs.cache.dir)


def marker(given: str) -> Path:
    """The file in Triton's cache that says that a request was fulfilled; it goes when the cache goes."""
    sources = sorted(Path(triton.__file__).parent.glob("*.py"))
    facts = [given, fastdream.__version__, *(metadata.version(name) for name in ("torch", "triton"))]
    facts += [f"{path.name} {path.stat().st_mtime_ns}" for path in sources]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return cache() / f"fastdream-{name}"


def main() -> None:
    """Read a request from standard input, compile, leave its marker, and say how many kernels there are."""
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    if not given:
        raise SystemExit("error: a run gives this its request; by hand, use python -m fastdream.precompile")
    os.nice(POLITE)
    print(f"{compile_all(json.loads(given), min(MOST, cores()))} kernels")
    path = marker(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def compile_all(wanted: Mapping[str, Any], workers: int) -> int:
    """Compile all kernels of a request in so many processes; how many there are."""
    kernels = import_module("fastdream.ops.triton.ahead")
    under_way: list[Future[Any]] = []
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        kernels.pretend(
            wanted["capability"], lambda work: under_way.append(pool.submit(kernels.compile_kernel, work))
        )
        with (fakes := FakeTensorMode()):
            agent = make(wanted)
        pool.submit(os.getpid)  # forks them all: what they need is imported, and there are no threads yet
        with fakes:
            launch_all(agent, wanted)
        for each in under_way:
            each.result()
    return len(under_way)


def launch_all(agent: Any, wanted: Mapping[str, Any]) -> None:
    """Act and learn once, as the request says."""
    act(agent, wanted["environments"])
    learn(agent, *wanted["batch"])


def act(agent: Any, n: int) -> None:
    """In n environments, as in training and as in evaluation."""
    spec = step_spec(agent)
    obs = _zeros({key: spec[key] for key in ("is_first", *agent.obs_space)}, n)
    with torch.no_grad():
        for greedy in (False, True):
            agent.act(agent.init_policy(n), obs, greedy=greedy)


def learn(agent: Any, batch: int, length: int) -> None:
    """From so many sequences."""
    spec = step_spec(agent)
    agent.update(agent.init_train(batch), _zeros(spec, batch, length + agent.replay_context))


def make(wanted: Mapping[str, Any]) -> Any:
    """The agent of a request on the CPU, with the ops of a GPU, in a process that pretends to have one."""
    # Fakes cannot be looked at, as to draw again what is too far out, nor moved. Nobody reads parameters here.
    nets.truncated_ = lambda weight, generator: None
    torch.nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]
    spaces = [spaces_from_json(wanted[key]) for key in ("obs", "act")]
    dreamer = configs.from_dict(agents.settings(wanted["agent"]).Config, wanted["dreamer"])
    if dreamer.dtype == "auto":
        dreamer = replace(dreamer, dtype="bfloat16")
    return agents.find(wanted["agent"])(*spaces, dreamer, ops.load(wanted["ops"], device="cuda"))


def _zeros(spec: Mapping[str, tuple[tuple[int, ...], Any]], *lead: int) -> dict[str, Tensor]:
    return {k: torch.zeros(*lead, *shape, dtype=TORCH[dtype]) for k, (shape, dtype) in spec.items()}


if __name__ == "__main__":
    entry.run(main)
