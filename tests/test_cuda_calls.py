"""What is asked of torch.cuda, without a GPU: its functions are replaced by some that have the same arguments."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from fastdream import transfer
from fastdream.graphs import CudaGraphs, waiting_is_an_error
from fastdream.transfer import CudaCopies

DEVICE = torch.device("cuda:0")


class Calls:
    """A torch.cuda that only notes what it is asked for, and refuses arguments that the real one does not have."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self.mode = 0
        self.current = self.stream("current")
        streams = "Stream", "stream", "current_stream", "device"
        graphs = "CUDAGraph", "graph", "graph_pool_handle"
        for name in (*streams, *graphs, "get_sync_debug_mode", "set_sync_debug_mode"):
            real = getattr(torch.cuda, name)
            patch.setattr(torch.cuda, name, create_autospec(real, side_effect=getattr(self, f"_{name}")))

    def stream(self, name: str) -> Any:
        made = create_autospec(REAL_STREAM, instance=True)
        made.wait_stream.side_effect = lambda other: self.seen.append(f"{name} waits for {self.name(other)}")
        made.wait_event.side_effect = lambda event: self.seen.append(f"{name} waits for {event}")
        made.record_event.side_effect = lambda event=None: (
            self.seen.append(f"{name} records") or f"event of {name}"
        )
        self.names = {**getattr(self, "names", {}), id(made): name}
        return made

    def name(self, stream: Any) -> str:
        return self.names[id(stream)]

    def _Stream(self, device: Any = None, priority: int = 0, **_: Any) -> Any:
        return self.stream(f"side {len(self.names)}")

    def _CUDAGraph(self, *_: Any, **__: Any) -> Any:
        # torch without CUDA has a dummy here, which lacks the first of these methods.
        return SimpleNamespace(
            register_generator_state=lambda generator: self.seen.append(f"register {generator}"),
            replay=lambda: self.seen.append("replay"),
        )

    @contextmanager
    def _device(self, device: Any) -> Iterator[None]:
        self.seen.append(f"with {device}")
        yield

    @contextmanager
    def _graph(self, graph: Any, pool: Any = None, stream: Any = None, **options: Any) -> Iterator[None]:
        self.seen.append(f"capture on {self.name(stream)} in {pool}, {options}")
        yield
        self.seen.append("captured")

    @contextmanager
    def _stream(self, stream: Any) -> Iterator[None]:
        self.seen.append(f"on {self.name(stream)}")
        yield
        self.seen.append("back")

    def _current_stream(self, device: Any = None) -> Any:
        return self.current

    def _graph_pool_handle(self) -> str:
        return "pool"

    def _get_sync_debug_mode(self) -> int:
        return self.mode

    def _set_sync_debug_mode(self, mode: Any) -> None:
        self.seen.append(f"mode {mode}")


REAL_STREAM = torch.cuda.Stream


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.mark.parametrize("strict", [False, True])
def test_warm_ups_run_on_the_side_stream_between_two_waits(calls: Calls, strict: bool):
    graphs = CudaGraphs(DEVICE)
    graphs.warm_up(lambda: calls.seen.append("work"), strict)
    work = ["mode error", "work", "mode 0"] if strict else ["work"]
    assert calls.seen == [
        "side 1 waits for current",
        "on side 1",
        *work,
        "back",
        "current waits for side 1",
    ]


def test_work_is_captured_on_the_same_stream_with_its_generators_known(calls: Calls):
    generators: Any = ["first", "second"]
    replay, results = CudaGraphs(DEVICE).record(lambda: calls.seen.append("work") or "results", generators)
    assert results == "results"
    replay()
    assert calls.seen == [
        "with cuda:0",
        "register first",
        "register second",
        "capture on side 1 in pool, {'capture_error_mode': 'thread_local'}",
        "work",
        "captured",
        "replay",
    ]


def test_the_mode_comes_back_after_an_error(calls: Calls):
    with pytest.raises(RuntimeError, match="waits"), waiting_is_an_error():
        raise RuntimeError("it waits")
    assert calls.seen == ["mode error", "mode 0"]


def test_copies_go_up_and_down_on_streams_of_their_own(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    copies = CudaCopies(DEVICE)
    real, kept = torch.empty, []
    monkeypatch.setattr(transfer.torch, "empty", lambda n, *, dtype, pin_memory: real(n, dtype=dtype))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, non_blocking: calls.seen.append(f"to {device}") or x
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: kept.append(calls.name(stream)))
    host = copies.host(8)
    flat, done = copies.up(host)
    copies.use(flat, done)
    assert calls.seen == [
        "on side 1",
        "to cuda:0",
        "side 1 records",
        "back",
        "current waits for event of side 1",
    ]
    assert kept == ["current"]
    calls.seen.clear()
    other = torch.arange(8, dtype=torch.uint8)
    assert copies.down(other, host) == "event of side 2"
    assert torch.equal(host, other) and kept == ["current", "side 2"]
    assert calls.seen == ["side 2 waits for current", "on side 2", "side 2 records", "back"]
