"""`python -m tests.triton_sizes`: whether addresses fit in their integers where tensors are as large as they get.

Reads cases from standard input, as JSON [[op, case, rows], ...], runs each op forward and backward at the widest
preset on tensors without memory, and of every launch interprets the first and the last program: loads give zeros, and
pointers beyond the tensors, as a product of two 32-bit numbers makes them, are written out. In a process of its own.
"""

import json
import sys
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

from fastdream.ops import triton as backend
from fastdream.ops.triton import library

from . import parity_cases, triton_cases, triton_compile
from .interpreter_tools import BUILDER
from .parity_tools import results

STEPS = 15  # of a dream, and of a scan
MOST_PROGRAMS = 2**31 - 1, 65535, 65535


class Address:
    """A tensor that lies somewhere, as the interpreter takes it."""

    def __init__(self, x: Tensor, place: int) -> None:
        self.dtype, self._place = x.dtype, place + x.storage_offset() * x.element_size()

    def data_ptr(self) -> int:
        return self._place


class Dry:
    """Launches without memory."""

    def __init__(self) -> None:
        self.outside: set[str] = set()
        self._done: set[str] = set()

    def run(self, kernel: Any, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
        flat = [x for arg in args for x in (arg if isinstance(arg, tuple) else (arg,))]
        shapes = [(x.shape, x.stride()) if isinstance(x, Tensor) else x for x in flat]
        launch = f"{kernel.fn.__name__} {grid} {shapes} {constants}"
        if 0 in grid or launch in self._done:
            return
        self._done.add(launch)
        self._kernel, whole = kernel.fn.__name__, (*grid, 1, 1)[:3]
        if any(n > most for n, most in zip(whole, MOST_PROGRAMS, strict=True)):
            self.outside.add(f"{self._kernel}: a grid of {grid}")
        self._places: dict[int, int] = {}
        self._spans: list[tuple[int, int]] = []
        named = dict(zip(kernel.arg_names, args, strict=False)) | constants | {"PDL": False}
        given = {name: self._placed(x) for name, x in named.items() if name in kernel.arg_names}
        executor = interpreter.GridExecutor(kernel.rewrite(), kernel.arg_names, whole)
        given = {k: x if k in executor.constexprs else interpreter._implicit_cvt(x) for k, x in given.items()}
        scope = interpreter._patch_lang(kernel.fn)
        BUILDER.set_grid_dim(*whole)
        for place in {(0, 0, 0), tuple(n - 1 for n in whole)}:
            BUILDER.set_grid_idx(*place)
            executor.fn(**given)
        scope.restore()

    def _placed(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(self._placed, x)) if not hasattr(x, "_fields") else x
        if not isinstance(x, Tensor):
            return x
        memory = x.untyped_storage()
        if memory._cdata not in self._places:
            start = self._spans[-1][1] + 2**33 if self._spans else 2**45
            self._places[memory._cdata] = start
            self._spans.append((start, start + memory.nbytes()))
        return Address(x, self._places[memory._cdata])

    def _check(self, ptrs: Any, mask: Any) -> None:
        pointers = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)].astype(np.int64)
        if len(pointers):
            starts, ends = np.array(self._spans).T
            place = np.searchsorted(starts, pointers, "right") - 1
            if ((place < 0) | (pointers >= ends[place])).any():
                self.outside.add(self._kernel)

    def load(self, ptrs: Any, mask: Any, other: Any, *policy: Any) -> Any:
        self._check(ptrs, mask)
        kind = ptrs.get_element_ty()
        zeros = np.zeros(ptrs.data.shape, interpreter._get_np_dtype(kind))
        return interpreter.TensorHandle(zeros, kind)

    def store(self, ptrs: Any, value: Any, mask: Any, *policy: Any) -> None:
        self._check(ptrs, mask)

    def change(self, op: Any, ptr: Any, value: Any, mask: Any, *order: Any) -> Any:
        self._check(ptr, mask)
        return interpreter.TensorHandle(np.zeros_like(value.data), value.dtype.scalar)


def main() -> None:
    assert backend.interpreted(), "TRITON_INTERPRET is not set"
    np.seterr(all="ignore")  # what is computed of zeros does not matter
    library.register = triton_compile.on_tensors_without_memory
    library.capability = lambda device: 90
    parity_cases.T = STEPS
    dry = Dry()
    library.run = dry.run
    BUILDER.create_masked_load, BUILDER.create_masked_store = dry.load, dry.store
    BUILDER.create_atomic_rmw = dry.change
    for op, case, rows in json.load(sys.stdin):
        triton_cases.ROWS = rows
        args, gradients = triton_cases.blank(op, case, triton_cases.PRESETS[-1], triton_cases.PRECISIONS[1])
        results(getattr(backend, op), args, gradients)
    json.dump(sorted(dry.outside), sys.stdout)


if __name__ == "__main__":
    main()
