"""How things are timed on a GPU: its work waited for, as they are called or as one graph, one after another."""

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastdream import graphs
from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import DreamerV3
from fastdream.dreamer import Dreamer
from fastdream.graphs import CudaGraphs
from fastdream.ops import Ops
from fastdream.transfer import Copies, CudaCopies

from .clock import Peer
from .floors import Floor
from .shapes import EarlierJob, Job, random_batch

T = TypeVar("T")
OURS = "fastdream"
# What Triton's launcher, which names errors by the driver's words, says of those that a process does not survive.
LOST = (
    "illegal memory access",
    "misaligned address",
    "launch failure",
    "illegal instruction",
    "launch timed out",
)


class Again:
    """In the place of CUDA's graphs on a CPU, to see that all runs: a replay does the work again."""

    def warm_up(self, work: Callable[[], object], strict: bool) -> None:
        """Nothing, as to record is to work."""

    def record(
        self, work: Callable[[], T], generators: Iterable[torch.Generator]
    ) -> tuple[Callable[[], object], T]:
        return work, work()


class Direct:
    """In the place of copies to a GPU on a CPU: they are made at once."""

    def host(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def up(self, host: Tensor) -> tuple[Tensor, "Direct"]:
        return host.clone(), self

    def use(self, flat: Tensor, done: Any) -> None:
        pass

    def down(self, flat: Tensor, host: Tensor) -> "Direct":
        host.copy_(flat)
        return self

    def synchronize(self) -> None:
        pass


@dataclass(frozen=True)
class Bench:
    """Where and how long to measure; `dry` only sees whether everything runs, on a CPU and at tiny sizes."""

    dry: bool = False
    peers: tuple[Peer, ...] = ()
    probe: Path | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products; Triton's interpreter gets bfloat16 wrong."""
        return torch.float32 if self.dry else torch.bfloat16

    @property
    def rounds(self) -> int:
        return 9

    def recorder(self) -> graphs.Recorder:
        return Again() if self.dry else CudaGraphs(self.device)

    def copies(self) -> Copies:
        return Direct() if self.dry else CudaCopies(self.device)

    def tables(self) -> dict[str, Ops]:
        """Plain PyTorch, and the fastest that there is where that is something else."""
        tables = {"reference": fd.load("reference", device=self.device)}
        ours = fd.load("auto", device=self.device)
        if any(row.backend != "reference" for row in ours.rows):
            tables[OURS] = ours
        return tables

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], times: int) -> float:
        """Mean of so many calls, which follow one another as fast as the host can make them."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return (time.perf_counter() - start) / times

    def measure(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Median and quartiles of a call's seconds, over samples of 20 ms or more, and the memory that it took."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(0 if self.dry else 3):
            call()
        once = self.seconds(call, 1)
        times = max(1, math.ceil(0.02 / once))
        # What takes seconds is measured less often.
        rounds = max(2, min(self.rounds, math.ceil(6 / (once * times))))
        samples = [once, once] if self.dry else [self.seconds(call, times) for _ in range(rounds)]
        low, _, high = quantiles(samples, n=4, method="inclusive")
        found: dict[str, Any] = {"median": median(samples), "low": low, "high": high, "samples": len(samples)}
        if self.device.type == "cuda":
            found["memory"] = torch.cuda.max_memory_allocated()
        return found

    def graph(self, call: Callable[[], Any]) -> Callable[[], object]:
        """The call recorded, so that kernels follow one another without the host."""
        recorder = self.recorder()
        for strict in (True,) if self.dry else (False, False, True):
            recorder.warm_up(call, strict)
        replay, results = recorder.record(call, ())
        return lambda: (replay(), results)  # its results are kept as long as it is

    def candidates(self, makers: dict[str, Callable[[], Callable[[], Any]]]) -> dict[str, Any]:
        """Each one made, measured and thrown away; what fails is recorded with its error, and ends it if fatal."""
        found: dict[str, Any] = {}
        for name, make in makers.items():
            try:
                found[name] = self.measure(make())
            except Exception as error:  # whatever a candidate does wrong must not take the others with it
                found[name] = {"error": words(error)}
                if fatal(found[name]["error"]):
                    break
            self.clean()
        return found

    def clean(self) -> None:
        """Give memory back before the next candidate."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def agent(self, job: Job | EarlierJob, table: Ops, captured: bool) -> DreamerV3 | Dreamer:
        """An agent on the device."""
        agent = job.agent(table, self.device)
        if captured:
            graphs.capture(agent, self.recorder())
        return agent

    def learner(self, job: Job | EarlierJob, table: Ops, captured: bool) -> Callable[[], Any]:
        """One update of a fresh agent on a batch that lies on the device."""
        agent = self.agent(job, table, captured)
        batch = {key: x.to(self.device) for key, x in random_batch(agent, job.batch, job.length).items()}
        carry = agent.init_train(job.batch)
        return lambda: agent.update(carry, batch)

    def profiled(self, call: Callable[[], Any]) -> dict[str, float]:
        """How many kernels a call runs, and for how long one of them is running."""
        call()
        activity = ProfilerActivity.CPU if self.dry else ProfilerActivity.CUDA
        self.wait()
        with profile(activities=[activity]) as trace:
            call()
            self.wait()
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in trace.events()
            if self.dry or event.device_type == torch.autograd.DeviceType.CUDA
        )
        busy, end = 0.0, -math.inf
        for start, stop in spans:
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return {"kernels": len(spans), "busy": busy * 1e-6}


def fatal(error: str) -> bool:
    """Whether a process can use the GPU no more after an error with these `words`."""
    return any(sign in error for sign in ("CUDA error", "AcceleratorError", *LOST))


def words(error: BaseException) -> str:
    """An error in a few lines."""
    return f"{type(error).__name__}: {error}"[:600]


def floor_of(floor: Floor) -> dict[str, int]:
    """FLOPs and bytes as results hold them."""
    return {"flops": int(floor.flops), "bytes": int(floor.bytes)}


def mapped(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nested tuples, lists and dictionaries with every tensor replaced."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {key: mapped(f, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(f, item) for item in tree))
    return type(tree)(mapped(f, item) for item in tree) if isinstance(tree, (tuple, list)) else tree
