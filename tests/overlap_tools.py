"""What kernels that overlap with the one before may read before they wait for it: see `ops.triton.overlap`."""

from typing import Any

import numpy as np
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode

from .parity_tools import tensors
from .shadow_tools import Shadow

SECTOR = 32  # bytes that a cache reads at a time


class Chain(TorchDispatchMode):
    """Kernels of which each overlaps with the one before; any other kernel, also of torch's, begins a new one."""

    def __init__(self) -> None:
        super().__init__()
        self._begin()

    def _begin(self) -> None:
        self._before: Shadow | None = None
        self._read = self._outdated = np.zeros(0, np.int64)  # numbers of sectors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastdream":  # look inside
            key = getattr(DispatchKey, tensors(args)[0].device.type.upper())
            with self:
                return func._op_dk(key, *args, **(kwargs or {}))
        views = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        if not views and "empty" not in func._schema.name and "detach" not in func._schema.name:
            self._begin()
        return func(*args, **(kwargs or {}))

    def early(self, pointers: np.ndarray, size: int, cached: bool) -> str | None:
        """What is wrong with a load before the wait. cached: not read past the multiprocessor's cache."""
        if self._before is None:
            return None
        if self._before.wrote(pointers, size):
            return "reads what the kernel before writes, before it waits"
        if cached and np.isin(pointers // SECTOR, self._outdated).any():
            return "reads before it waits, through the cache, what may lie there from before it was written"
        return None

    def end(self, shadow: Shadow, overlaps: bool) -> None:
        """Of a launch. overlaps: a kernel that does may follow it before its end."""
        if not overlaps:
            self._begin()
            return
        read, written = (np.unique(x // SECTOR) for x in shadow.touched())
        self._read = np.union1d(self._read, read)
        self._outdated = np.union1d(self._outdated, np.intersect1d(self._read, written))
        self._before = shadow
