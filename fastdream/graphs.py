"""CUDA graphs: an agent's policy step and update, recorded once for each shape of their inputs and then replayed.

    graphs.capture(agent)    from now on agent.act and agent.update replay; every number is as before

A replay launches thousands of kernels in one call. It does to the same addresses what was done while recording, so:

inputs      are copied to where the recorded work reads them.
outputs     are copied away before they are given out: graphs share their memory, and any later replay overwrites it.
state       that an update changes must be changed in place, and be part of `state_dict`. Before anything is recorded
            the work is done three times, to compile and load kernels; then `load_state_dict` undoes what that changed,
            so that the first replay is the first update.
randomness  comes from the agent's generators, which are told of each graph: draws go on from where the generator
            stands, and follow its seed and `set_state`.
the host    must not wait: the last of the three warm-ups fails where something does, and names it.

Other shapes, dtypes, keys or options are recorded anew, beside the others.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Results = tuple[Tensors, ...]
Graph = Literal["auto", "on", "off"]
T = TypeVar("T")

WARM_UPS = 3
TOGETHER = 256  # rows of dreams
MOST = 8  # recordings of one function; the one that was not used for longest goes first


class CaptureError(RuntimeError):
    """Something in a policy step or an update cannot be recorded."""


def wanted(choice: Graph, device: torch.device, kind: Any) -> bool:
    """Whether graphs are to be used for a kind of agent; ValueError if they are asked for where there are none.

    An agent whose `capturable` is false counts or chooses in Python, which a graph would freeze.
    """
    if choice == "on" and device.type != "cuda":
        raise ValueError(f"--train.graph on needs a CUDA device, this is {device}; use auto or off")
    if choice == "on" and not kind.capturable:
        raise ValueError(f"--train.graph on is not possible with {kind.__name__}; use auto or off")
    return choice != "off" and device.type == "cuda" and kind.capturable


def captured(agent: Any) -> bool:
    """Whether an agent's updates are replayed."""
    return isinstance(getattr(agent, "update", None), Captured)


class Recorder(Protocol):
    """What records work: CUDA, or a stand-in for it."""

    def warm_up(self, work: Callable[[], object], strict: bool) -> None:
        """Do the work as it will be recorded; strict: RuntimeError where it waits for the device."""

    def record(
        self, work: Callable[[], T], generators: Iterable[torch.Generator]
    ) -> tuple[Callable[[], object], T]:
        """What does the work again, and the results that it then writes anew."""


class CudaGraphs:
    """CUDA's recorder: one stream to warm up and to record on, and one memory pool for all graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object], strict: bool) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream), waiting_is_an_error() if strict else nullcontext():
                work()
        finally:  # what was begun before an error goes on, and whoever undoes it must come after it
            current.wait_stream(self.stream)

    def record(
        self, work: Callable[[], T], generators: Iterable[torch.Generator]
    ) -> tuple[Callable[[], object], T]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):  # where the generators' states for the graph are allocated
            for generator in generators:
                graph.register_generator_state(generator)
            # Another thread may allocate and copy the next batch meanwhile, which "global" would not allow.
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                results = work()
        return graph.replay, results


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Let torch raise RuntimeError where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Recording(NamedTuple):
    """Where recorded work reads, what does it again, and what it writes."""

    inputs: Results
    replay: Callable[[], object]
    outputs: "_Outputs"


class _Outputs:
    """Results as they are taken out: the scalars of each type as one vector, so that it takes few copies."""

    def __init__(self, results: Results) -> None:
        self.larger = [{k: x for k, x in part.items() if x.dim()} for part in results]
        self.scalars: dict[torch.dtype, list[tuple[int, str]]] = {}
        for i, part in enumerate(results):
            for key, x in part.items():
                if not x.dim():
                    self.scalars.setdefault(x.dtype, []).append((i, key))
        self.order = [list(part) for part in results]
        self.vectors = [_stacked([results[i][k] for i, k in places]) for places in self.scalars.values()]

    def copies(self) -> Results:
        """The results in memory of their own."""
        found: list[Tensors] = [{k: x.clone() for k, x in part.items()} for part in self.larger]
        for vector, places in zip(self.vectors, self.scalars.values(), strict=True):
            for (i, key), x in zip(places, vector.clone().unbind(), strict=True):
                found[i][key] = x
        return tuple({k: part[k] for k in order} for part, order in zip(found, self.order, strict=True))


def _stacked(scalars: list[Tensor]) -> Tensor:
    """As torch.stack, whose kernel takes long for so few numbers."""
    vector = scalars[0].new_empty(len(scalars))
    torch._foreach_copy_(list(vector.unbind()), [x.detach() for x in scalars])
    return vector


class Captured:
    """A function of an agent that is recorded at the first call with each kind of inputs, and replayed from then on.

    function   dictionaries of tensors -> dictionaries of tensors; further keyword arguments choose what it does.
    agent      whose state it changes: `state_dict`, `load_state_dict` and `generators`.
    check      asked before every replay; raises if the device has said that earlier work failed.
    """

    def __init__(
        self, function: Callable[..., Results], agent: Any, recorder: Recorder, check: Callable[[], None]
    ) -> None:
        self.function, self.agent, self.recorder, self.check = function, agent, recorder, check
        self.recordings: OrderedDict[Any, _Recording] = OrderedDict()

    @torch.no_grad()
    def __call__(self, *inputs: Mapping[str, Tensor], **options: Any) -> Results:
        key = (
            tuple(tuple((k, x.shape, x.dtype, x.device) for k, x in part.items()) for part in inputs),
            tuple(options.items()),
        )
        if key not in self.recordings:
            self.recordings[key] = self._record(inputs, options)
            while len(self.recordings) > MOST:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(key)
        recording = self.recordings[key]
        for static, given in zip(recording.inputs, inputs, strict=True):
            if static:
                torch._foreach_copy_(list(static.values()), list(given.values()))
        self.check()
        recording.replay()
        return recording.outputs.copies()

    def _record(self, inputs: tuple[Mapping[str, Tensor], ...], options: dict[str, Any]) -> _Recording:
        static = tuple({key: x.clone() for key, x in part.items()} for part in inputs)

        def work() -> _Outputs:
            with torch.enable_grad():
                return _Outputs(self.function(*static, **options))

        before = _clone(self.agent.state_dict())
        try:
            for _ in range(WARM_UPS - 1):
                self.recorder.warm_up(work, strict=False)
            with _explained(self.function.__qualname__):
                self.recorder.warm_up(work, strict=True)
                replay, outputs = self.recorder.record(work, self.agent.generators.values())
        finally:
            self.agent.load_state_dict(before)
        return _Recording(static, replay, outputs)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CaptureError(
            f"{name} cannot be recorded as a CUDA graph: {error}\nNothing in it may wait for the device (item(), "
            "bool(), nonzero(), copies from memory that is not pinned); the traceback above shows where it does. "
            "--train.graph off does without graphs."
        ) from error


def capture(agent: Any, recorder: Recorder | None = None, check: Callable[[], None] = lambda: None) -> None:
    """Let `agent.act` and `agent.update` be recorded and replayed; without a recorder, by CUDA on the agent's device.

    Nothing else changes: `policy` calls `act`, and evaluation, reports and checkpoints work as before.
    check   as in `Captured`: ops that are called ask by themselves, recorded ones cannot.
    """
    recorder = CudaGraphs(agent.device) if recorder is None else recorder
    for name in ("act", "update"):
        setattr(agent, name, Captured(getattr(agent, name), agent, recorder, check))


def capture_dreams(agent: Any, recorder: Recorder | None = None) -> None:
    """Let `agent.dream_steps` of World Models be recorded and replayed, unless it is already.

    Rows that remain are rounded up, so that a generation's dreams need few recordings.
    """
    if isinstance(agent.dream_steps, Captured):
        return
    recorder = CudaGraphs(agent.device) if recorder is None else recorder
    agent.dream_steps = Captured(agent.dream_steps, agent, recorder, lambda: None)
    agent.together = TOGETHER


def _clone(tree: Any) -> Any:
    """A copy of nested dictionaries of tensors."""
    if isinstance(tree, dict):
        return {key: _clone(value) for key, value in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) else tree
