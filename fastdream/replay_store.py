"""The replay's memory: one ring of steps per worker, one array per key, in RAM or in files on disk."""

import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Ids = NDArray[np.int64]
Spec = Mapping[str, tuple[tuple[int, ...], DTypeLike]]

GIB = 1024**3


class Rings(ABC):
    """Rows of steps, `capacity` of them in all, divided among the workers' rings; a subclass has the memory.

    Every key is one array [capacity, *shape]; worker w owns the `sizes[w]` rows from `offsets[w]` on. The
    first `capacity % workers` workers own one row more than the others, so the total is exact.

    spec   key → (shape of one step, dtype); booleans, integers and floats.
    Raises ValueError for a spec that it cannot hold.
    """

    def __init__(self, spec: Spec, capacity: int, workers: int) -> None:
        self.spec = {key: (tuple(shape), np.dtype(dtype)) for key, (shape, dtype) in spec.items()}
        for key, (shape, dtype) in self.spec.items():
            if dtype.kind not in "biuf":
                raise ValueError(
                    f"replay key {key!r} has dtype {dtype}; booleans, integers and floats can be stored"
                )
            if 0 in shape:
                raise ValueError(f"replay key {key!r} has shape {shape}, which holds nothing")
        self.capacity = capacity
        self.sizes = np.full(workers, capacity // workers, np.int64)
        self.sizes[: capacity % workers] += 1
        self.offsets = np.cumsum(self.sizes) - self.sizes

    @property
    def step_nbytes(self) -> int:
        """Bytes of one step."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in self.spec.values()
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the full store."""
        return self.capacity * self.step_nbytes

    def check_step(self, step: Mapping[str, object]) -> dict[str, Array]:
        """The values of one step as arrays. Raises ValueError naming the first key that does not fit."""
        if step.keys() != self.spec.keys():
            missing, extra = sorted(self.spec.keys() - step.keys()), sorted(step.keys() - self.spec.keys())
            raise ValueError(f"a replay step has missing keys {missing} and unknown keys {extra}")
        values = {key: np.asarray(step[key]) for key in self.spec}
        for key, (shape, dtype) in self.spec.items():
            check_value(key, values[key], shape, dtype)
        return values

    @abstractmethod
    def write(self, worker: int, index: int, values: Mapping[str, Array]) -> None:
        """Copy one checked step into row `index` of a worker's ring."""

    @abstractmethod
    def read(
        self, worker: Ids, start: Ids, length: int, into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Copy windows [batch, length, ...], from ring row `start` on, around its end; `into` None makes arrays."""

    @abstractmethod
    def rewrite(self, worker: Ids, index: Ids, wanted: NDArray[np.bool_], values: Mapping[str, Any]) -> None:
        """Copy values, key → [..., *shape], into the ring rows worker[i], index[i] where wanted[i].

        Of a row that occurs several times the last one stays.
        """

    @abstractmethod
    def rows(self, key: str, row: int, count: int) -> Array:
        """`count` rows of a key from `row` on, over all rings; read them before anything else is done here."""

    @abstractmethod
    def put_rows(self, key: str, row: int, values: Array) -> None:
        """Copy values [count, *shape] into the rows of a key from `row` on, over all rings."""

    @abstractmethod
    def describe(self) -> str:
        """Size and place in a few words."""

    @abstractmethod
    def check_memory(self, available: int) -> None:
        """Raise ValueError when the full store will take RAM that it has not yet, and exceeds `available` bytes."""

    def check(self, key: str, value: Any, shape: tuple[int, ...]) -> None:
        """Raise ValueError, naming key, expected and got, unless `value` has this shape, and the dtype of the key."""
        check_value(key, value, shape, self.spec[key][1])

    def size(self) -> str:
        """How much it holds, in a few words."""
        return f"{self.capacity:,} steps × {self.step_nbytes:,} bytes = {self.nbytes / GIB:.2f} GiB"

    def too_large(self, available: int, memory: str) -> str:
        """What to say where `memory` has too few bytes available for all rows."""
        need, have = self.nbytes / GIB, available / GIB
        fitting = int(0.8 * available) // self.step_nbytes
        return (
            f"the replay needs {need:.2f} GiB of {memory} when full, but {have:.2f} GiB are available: choose "
            f"a smaller --replay.capacity (up to {fitting})"
        )


class Store(Rings):
    """Rings in arrays, in RAM or in files on disk.

    directory  None: RAM, committed by the system row by row as it is first written. Otherwise: nameless files
               in that directory, fully reserved at once, and given back when the process ends, however it
               ends.
    Raises ValueError for a spec that it cannot hold or when the system refuses the RAM, OSError (ENOSPC) when
    the disk has too little space.
    """

    def __init__(self, spec: Spec, capacity: int, workers: int, directory: Path | None = None) -> None:
        super().__init__(spec, capacity, workers)
        self.directory = directory
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            check_disk(directory, self.nbytes, "replay")
        try:
            self.arrays = {key: self._allocate(shape, dtype) for key, (shape, dtype) in self.spec.items()}
        # The system refuses outright what is far above its RAM, and NumPy what is beyond all addresses.
        except (MemoryError, ValueError) as error:
            raise ValueError(self._too_large_for_ram(available_memory())) from error

    def write(self, worker: int, index: int, values: Mapping[str, Array]) -> None:
        row = self.offsets[worker] + index
        for key, value in values.items():
            self.arrays[key][row] = value

    def read(
        self, worker: Ids, start: Ids, length: int, into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        spans = list(self._spans(worker, start, length))
        data = {}
        for key, array in self.arrays.items():
            dims = len(worker), length, *array.shape[1:]
            out = np.empty(dims, array.dtype) if into is None else into[key]
            assert out.shape == dims and out.dtype == array.dtype, (
                key,
                out.shape,
                out.dtype,
                dims,
                array.dtype,
            )
            # Slices, not an index array: each is one long memcpy, about twice as fast for images.
            for window, begin, rows, base in spans:
                out[window, :rows] = array[begin : begin + rows]
                if rows < length:
                    out[window, rows:] = array[base : base + length - rows]
            data[key] = out
        return data

    def rewrite(self, worker: Ids, index: Ids, wanted: NDArray[np.bool_], values: Mapping[str, Any]) -> None:
        rows = self.offsets[worker] + index
        # Each row once: an indexed assignment promises no order.
        last_first = np.flatnonzero(wanted)[::-1]
        rows, position = np.unique(rows[last_first], return_index=True)
        for key, value in values.items():
            self.arrays[key][rows] = value.reshape(len(index), *self.spec[key][0])[last_first[position]]

    def describe(self) -> str:
        place = "in RAM, taken as it fills" if self.directory is None else f"on disk in {self.directory}"
        return f"{self.size()} {place}"

    def rows(self, key: str, row: int, count: int) -> Array:
        return self.arrays[key][row : row + count]

    def put_rows(self, key: str, row: int, values: Array) -> None:
        self.arrays[key][row : row + len(values)] = values

    def check_memory(self, available: int) -> None:
        if self.directory is None and self.nbytes > available:
            raise ValueError(self._too_large_for_ram(available))

    def _too_large_for_ram(self, available: int) -> str:
        return f"{self.too_large(available, 'RAM')}, or keep it on disk with --replay.on-disk"

    def _spans(self, worker: Ids, start: Ids, length: int) -> Iterator[tuple[int, int, int, int]]:
        base = self.offsets[worker]
        rows = np.minimum(length, self.sizes[worker] - start)
        return zip(range(len(worker)), (base + start).tolist(), rows.tolist(), base.tolist(), strict=True)

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        if self.directory is None:
            return np.zeros((self.capacity, *shape), dtype)
        nbytes = self.capacity * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        with tempfile.TemporaryFile(dir=self.directory) as file:
            # Reserved, because writing through a map into a sparse file on a full disk kills the process
            # (SIGBUS). macOS cannot reserve; there the check of free space above is all there is.
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, nbytes)
                except OSError as error:
                    what = f"cannot reserve {nbytes / GIB:.2f} GiB for the replay: {error.strerror}"
                    raise OSError(error.errno, what, str(self.directory)) from error
            return np.memmap(file, dtype, "r+", shape=(self.capacity, *shape)).view(np.ndarray)


def check_value(key: str, value: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """Raise ValueError, naming key, expected and got, unless `value` has this shape and dtype."""
    if value.shape != shape or value.dtype != dtype:
        raise ValueError(
            f"replay key {key!r} expects shape {shape} and dtype {dtype}, "
            f"got shape {value.shape} and dtype {value.dtype}"
        )


def check_disk(directory: Path, nbytes: int, what: str) -> None:
    """Raise OSError (ENOSPC) when the disk of `directory` has fewer than `nbytes` free for `what`."""
    free = shutil.disk_usage(directory).free
    if nbytes > free:
        raise OSError(
            errno.ENOSPC,
            f"the {what} needs {nbytes / GIB:.2f} GiB but the disk has {free / GIB:.2f} GiB free: "
            "make room, choose another directory, or choose a smaller --replay.capacity",
            str(directory),
        )


def available_memory() -> int:
    """Bytes of RAM that this process could still take, by the system and by its container's limit."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux: counts what the page cache would give back
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    return min(available, _container_memory(Path("/sys/fs/cgroup"), available))


def _container_memory(group: Path, default: int) -> int:
    """What is left under a version 2 control group's limit; `default` where there is none."""
    if not (group / "memory.max").exists():
        return default
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return default
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
    return max(0, int(limit) - used)
