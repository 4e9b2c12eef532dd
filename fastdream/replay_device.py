"""A replay on a GPU: batches are gathered there, and what an update makes of latents never leaves it."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdream.replay import Replay
from fastdream.replay_prefetch import Converted
from fastdream.replay_store import Array, Ids, Rings, Spec, check_value
from fastdream.transfer import DTYPES, TORCH, Arrays, Copies, Inputs, Tensors, Uploads, copies_for

# Steps that wait on the host for one copy of all of them. The copy has this size however few there are.
STAGED = 32


class DeviceStore(Rings):
    """Rings in tensors of a device, which is given all that is asked of it in the order of the calls.

    Steps that are written go up together, before anything is read: some host memory holds up to STAGED of them. One
    row more than `capacity` takes what is to be written nowhere, so that each copy has one shape, whatever is in it.

    copies   how data travel; None is what suits the device.
    Raises ValueError for a spec that it cannot hold, or when the device has too little memory, which is taken at once.
    """

    def __init__(
        self, spec: Spec, capacity: int, workers: int, device: torch.device, copies: Copies | None = None
    ) -> None:
        super().__init__(spec, capacity, workers)
        for key, (_, dtype) in self.spec.items():
            if dtype not in TORCH:
                raise ValueError(
                    f"replay key {key!r} has dtype {dtype}, which a GPU's replay does not hold: leave it in RAM, "
                    "without --replay.on-device"
                )
        copies = copies_for(device) if copies is None else copies
        assert copies is not None, f"{device} is the host: a Store"
        self.device, self._nowhere = device, capacity
        try:
            self.tensors = {
                key: torch.zeros(capacity + 1, *shape, dtype=TORCH[dtype], device=device)
                for key, (shape, dtype) in self.spec.items()
            }
        except torch.OutOfMemoryError as error:
            free = torch.cuda.mem_get_info(device)[0]
            text = self.too_large(free, f"memory of {device}")
            raise ValueError(f"{text}, or keep it in RAM, without --replay.on-device") from error
        staged: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
        staged = {f"step/{key}": ((STAGED, *shape), dtype) for key, (shape, dtype) in self.spec.items()}
        self._uploads = Uploads(copies, staged | {"row": ((STAGED,), np.dtype(np.int64))})
        self._buffers: Arrays = {}
        self._slots: dict[int, int] = {}  # row -> its place among those that wait
        self._read_rows, self._write_rows = Inputs(device, copies), Inputs(device, copies)
        self._lock = threading.Lock()  # of what waits, and of buffers that one copy at a time goes through

    def write(self, worker: int, index: int, values: Mapping[str, Array]) -> None:
        row = int(self.offsets[worker]) + index
        with self._lock:
            if not self._slots:
                self._buffers = self._uploads.buffers()
                self._buffers["row"][:] = self._nowhere
            slot = self._slots.setdefault(row, len(self._slots))
            self._buffers["row"][slot] = row
            for key, value in values.items():
                self._buffers[f"step/{key}"][slot] = value
            if len(self._slots) == STAGED:
                self._flush()

    def gather(self, worker: Ids, start: Ids, length: int) -> Tensors:
        """Copies of windows [batch, length, ...], from ring row `start` on, around its end, on the device."""
        index = (start[:, None] + np.arange(length)) % self.sizes[worker][:, None]
        rows = (self.offsets[worker][:, None] + index).reshape(-1)
        with self._lock:
            self._flush()
            there = self._read_rows({"rows": rows})["rows"]
            found = {key: x.index_select(0, there) for key, x in self.tensors.items()}
        return {key: x.view(len(worker), length, *x.shape[1:]) for key, x in found.items()}

    def read(
        self, worker: Ids, start: Ids, length: int, into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """As `gather`, in arrays; waits for the device."""
        data = {key: x.cpu().numpy() for key, x in self.gather(worker, start, length).items()}
        for key, out in ({} if into is None else into).items():
            out[...] = data[key]
        return data if into is None else dict(into)

    def rewrite(self, worker: Ids, index: Ids, wanted: NDArray[np.bool_], values: Mapping[str, Any]) -> None:
        rows = self.offsets[worker] + index
        last_first = np.flatnonzero(wanted)[::-1]
        _, position = np.unique(rows[last_first], return_index=True)
        kept = last_first[position]
        target = np.full(len(rows), self._nowhere)
        target[kept] = rows[kept]
        with self._lock:
            self._flush()
            there = self._write_rows({"rows": target})["rows"]
            for key, value in values.items():
                value = torch.as_tensor(value).to(self.device).reshape(len(rows), *self.spec[key][0])
                self.tensors[key].index_copy_(0, there, value)

    def check(self, key: str, value: Array | Tensor, shape: tuple[int, ...]) -> None:
        if isinstance(value, Tensor):  # judged by an array that is like it, and empty
            value = np.broadcast_to(np.empty((), DTYPES[value.dtype]), value.shape)
        check_value(key, value, shape, self.spec[key][1])

    def rows(self, key: str, row: int, count: int) -> Array:
        with self._lock:
            self._flush()
            found: Array = self.tensors[key][row : row + count].cpu().numpy()
        return found

    def put_rows(self, key: str, row: int, values: Array) -> None:
        with self._lock:
            self._flush()
            self.tensors[key][row : row + len(values)] = torch.from_numpy(values).to(self.device)

    def describe(self) -> str:
        return f"{self.size()} on {self.device}"

    def check_memory(self, available: int) -> None:
        pass  # all of it is taken

    def _flush(self) -> None:
        """Send up what waits."""
        if not self._slots:
            return
        there = self._uploads.send().tensors()
        for key, x in self.tensors.items():
            x.index_copy_(0, there["row"], there[f"step/{key}"])
        self._slots, self._buffers = {}, {}


class DeviceReplay(Replay):
    """A replay whose steps are kept on a GPU, all of whose memory is taken at once.

    It samples and saves as any other, to the bit, and takes latents from tensors, too. As any other it may be called
    from several threads, if all of them give their work to the same stream.

    device, copies   as for `DeviceStore`; everything else as for `Replay`, without `directory`.
    """

    def __init__(
        self, *args: Any, device: torch.device, copies: Copies | None = None, **options: Any
    ) -> None:
        self._where = device, copies
        super().__init__(*args, **options)

    def gather(self, batch: int) -> Converted[Tensors]:
        """As `sample`, in tensors of the device: nothing crosses to it but which rows are wanted, and nobody waits.

        The tensors, key → [batch, length, ...], are the caller's own.
        """
        draw = self.draw(batch)
        try:
            assert isinstance(self._store, DeviceStore)
            start = draw.start % self._store.sizes[draw.worker]
            data = self._store.gather(draw.worker, start, self.length)
        finally:
            self._gate.leave()
        if "is_first" in data:
            if "is_last" in data:
                data["is_last"][:, :-1] |= data["is_first"][:, 1:]
            data["is_first"][:, 0].fill_(True)
        return Converted(data, self._ids(draw))

    def _memory(self, spec: Spec, capacity: int, workers: int, directory: Path | None) -> Rings:
        assert directory is None, directory
        return DeviceStore(spec, capacity, workers, *self._where)


class Gathering:
    """As `replay_prefetch.Prefetch`, of a replay on a device: a batch is gathered where it is requested."""

    def __init__(self, replay: DeviceReplay, batch: int) -> None:
        self._replay, self._batch = replay, batch
        self._ready: deque[Converted[Tensors]] = deque()

    @property
    def pending(self) -> int:
        """Batches that were requested and not yet got."""
        return len(self._ready)

    def request(self) -> None:
        """Gather one more batch of what the replay holds now. Raises as `Replay.sample` does."""
        self._ready.append(self._replay.gather(self._batch))

    def get(self) -> Converted[Callable[[], Tensors]]:
        """The oldest requested batch, as a function that gives it."""
        data, ids = self._ready.popleft()
        return Converted(lambda: data, ids)

    def close(self) -> None:
        """Drop what is requested."""
        self._ready.clear()
