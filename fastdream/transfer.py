"""Between host and GPU in one copy: arrays and tensors by key, laid out in one piece of memory.

A GPU copies beside its work, without making anyone wait, where host memory is pinned and the copy has a stream of its
own. `Copies` is all that knows of streams; what it promises, a stand-in on a CPU can keep, too.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

Tensors = dict[str, Tensor]
Arrays = dict[str, np.ndarray[Any, Any]]

ALIGN = 256  # bytes: every entry begins where kernels like their tensors to begin

# NumPy's types by torch's, for what travels.
DTYPES = {
    torch.uint8: np.uint8, torch.bool: np.bool_, torch.float16: np.float16, torch.float32: np.float32,
    torch.float64: np.float64, torch.int8: np.int8, torch.int16: np.int16, torch.int32: np.int32,
    torch.int64: np.int64,
}  # fmt: skip
TORCH: dict[np.dtype[Any], torch.dtype] = {np.dtype(ours): theirs for theirs, ours in DTYPES.items()}


class Entry(NamedTuple):
    """Where a key's elements lie."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int  # in bytes
    stop: int


class Layout(NamedTuple):
    """Entries one after another in so many bytes."""

    entries: tuple[Entry, ...]
    nbytes: int

    def views(self, flat: Tensor) -> Tensors:
        """The entries as tensors in `flat`, uint8 [nbytes], on whichever device it is."""
        return {e.key: flat[e.start : e.stop].view(e.dtype).view(e.shape) for e in self.entries}

    def arrays(self, flat: Tensor) -> Arrays:
        """The same as arrays, in host memory."""
        return {key: value.numpy() for key, value in self.views(flat).items()}


def layout(spec: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> Layout:
    """The layout of entries with these shapes and dtypes, in their order."""
    entries, end = [], 0
    for key, (shape, dtype) in spec.items():
        start = -(-end // ALIGN) * ALIGN
        end = start + prod(shape) * dtype.itemsize
        entries.append(Entry(key, tuple(shape), dtype, start, end))
    return Layout(tuple(entries), end)


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """The layout of these tensors."""
    return layout({key: (tuple(x.shape), x.dtype) for key, x in tensors.items()})


def pack(tensors: Mapping[str, Tensor], into: Layout) -> Tensor:
    """Copies of tensors of one device in one piece, uint8 [nbytes]."""
    flat = next(iter(tensors.values())).new_empty(into.nbytes, dtype=torch.uint8)
    for key, view in into.views(flat).items():
        view.copy_(tensors[key])
    return flat


class Event(Protocol):
    """A moment in the work of a device."""

    def synchronize(self) -> None:
        """Wait until it has passed."""


class Copies(Protocol):
    """Copies between host and device that go on beside other work."""

    def host(self, nbytes: int) -> Tensor:
        """Host memory, uint8 [nbytes], that the device can read and write by itself."""

    def up(self, host: Tensor) -> tuple[Tensor, Event]:
        """Begin to copy to the device: where it will be, and when it is done. `host` must not change until then."""

    def use(self, flat: Tensor, done: Event) -> None:
        """Let the work that is given to the device from now on wait for the copy, and keep the memory while it runs."""

    def down(self, flat: Tensor, host: Tensor) -> Event:
        """Begin to copy what the work given so far makes of `flat` to `host`; when that is done."""


class CudaCopies:
    """Copies on a stream for each direction: what goes up must not wait for the work that what comes down waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.upwards, self.downwards = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def host(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def up(self, host: Tensor) -> tuple[Tensor, Event]:
        with torch.cuda.stream(self.upwards):
            flat = host.to(self.device, non_blocking=True)
            return flat, self.upwards.record_event()

    def use(self, flat: Tensor, done: Any) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        flat.record_stream(current)

    def down(self, flat: Tensor, host: Tensor) -> Event:
        self.downwards.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.downwards):
            flat.record_stream(self.downwards)
            host.copy_(flat, non_blocking=True)
            return self.downwards.record_event()


def copies_for(device: torch.device) -> Copies | None:
    """What copies to a device; None for the CPU, where nothing needs to be copied."""
    return CudaCopies(device) if device.type == "cuda" else None


class Uploaded(NamedTuple):
    """A batch that is on its way to the device, or there."""

    flat: Tensor
    layout: Layout
    done: Event
    copies: Copies

    def tensors(self) -> Tensors:
        """Its entries, for the work that is given to the device from now on."""
        self.copies.use(self.flat, self.done)
        return self.layout.views(self.flat)


class Uploads:
    """Batches of one layout to the device: `buffers` to write the next one into, `send` when it is written.

    Two pinned buffers take turns, so that one can be written while the other is copied. For one thread.
    """

    def __init__(self, copies: Copies, spec: Mapping[str, tuple[tuple[int, ...], DTypeLike]]) -> None:
        self.copies = copies
        self.layout = layout({key: (shape, TORCH[np.dtype(dtype)]) for key, (shape, dtype) in spec.items()})
        self._slots = [copies.host(self.layout.nbytes) for _ in range(2)]
        self._arrays = [self.layout.arrays(slot) for slot in self._slots]
        self._done: list[Event | None] = [None, None]
        self._turn = 0

    def buffers(self) -> Arrays:
        """Arrays for the next batch; waits until what was in them before has been copied."""
        if (done := self._done[self._turn]) is not None:
            done.synchronize()
        return self._arrays[self._turn]

    def send(self) -> Uploaded:
        """Begin to copy what was written into the buffers."""
        flat, done = self.copies.up(self._slots[self._turn])
        self._done[self._turn] = done
        self._turn = 1 - self._turn
        return Uploaded(flat, self.layout, done, self.copies)

    def put(self, data: Mapping[str, np.ndarray[Any, Any]]) -> Uploaded:
        """Begin to copy a batch that lies elsewhere."""
        for key, array in self.buffers().items():
            array[...] = data[key]
        return self.send()


class Downloaded:
    """Tensors that are on their way to the host, or there."""

    def __init__(self, copies: Copies, tensors: Mapping[str, Tensor]) -> None:
        self._layout = layout_of(tensors)
        self._host = copies.host(self._layout.nbytes)
        # Held until the copy is done: its memory must not be given to other tensors.
        self._flat: Tensor | None = pack(tensors, self._layout)
        self._done = copies.down(self._flat, self._host)

    def arrays(self) -> Arrays:
        """Waits until they are there."""
        self._done.synchronize()
        self._flat = None
        return self._layout.arrays(self._host)


class Inputs:
    """Arrays to tensors of a device for whoever needs them at once; on the CPU they stay where they are."""

    def __init__(self, device: torch.device, copies: Copies | None = None) -> None:
        self.copies = copies or copies_for(device)
        self._uploads: dict[Any, Uploads] = {}

    def __call__(self, data: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        """Tensors of the same shapes and dtypes, for the work that is given to the device from now on."""
        if self.copies is None:
            return {key: torch.from_numpy(value) for key, value in data.items()}
        spec = {key: (value.shape, value.dtype) for key, value in data.items()}
        uploads = self._uploads.get(kind := tuple(spec.items()))
        if uploads is None:
            uploads = Uploads(self.copies, spec)
            self._uploads = {kind: uploads}  # of other shapes than the last ones
        return uploads.put(data).tensors()

    def back(self, *parts: Mapping[str, Tensor]) -> tuple[Arrays, ...]:
        """Dictionaries of tensors as arrays; waits for the device, once."""
        if self.copies is None:
            return tuple([{key: x.numpy() for key, x in part.items()} for part in parts])
        named = {f"{i}/{key}": x for i, part in enumerate(parts) for key, x in part.items()}
        arrays = Downloaded(self.copies, named).arrays()
        return tuple({key: arrays[f"{i}/{key}"] for key in part} for i, part in enumerate(parts))
