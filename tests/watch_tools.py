"""Watches what Triton's kernels do to memory, in the interpreter, which runs one program after the other.

Found is what a GPU does otherwise or not at all: accesses outside of the tensors that a kernel was given, or of other
numbers than those of the view that a pointer came from; programs of a launch that touch the same number, of which one
writes; threads of a program that do so without a barrier between; numbers that nobody wrote; and, of kernels that
overlap with the one before, what they touch before they waited for it. See `Shadow` for the rules of one launch.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import triton
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime import interpreter

from fastdream.ops.triton import library, optim, pointers

from .interpreter_tools import BUILDER, UNWRITTEN, ordered, unwritten
from .overlap_tools import Chain
from .parity_tools import tensors
from .shadow_tools import Finding, Shadow, Touch

THEIRS = str(Path(triton.__file__).parent)


class Watch:
    """Finds what kernels do wrong while it is entered, in `findings`, each with how often.

    overlap: kernels that can overlap with the one before are told that they do.
    """

    def __init__(self, overlap: bool = True) -> None:
        self.findings: Counter[Finding] = Counter()
        self.launches: Counter[str] = Counter()
        self.unattributed: Counter[str] = Counter()  # lines whose pointers came from no argument
        self._overlap = overlap
        self._lines: list[str] = []
        self._numbers: dict[Any, int] = {}
        self._shapes: dict[tuple[int, ...], int] = {}
        self._tables: dict[int, list[Tensor]] = {}  # what tables of addresses lead to, by their own
        self._chain = Chain()

    def __enter__(self) -> "Watch":
        self._stack, self._run = ExitStack(), library.run
        patch = self._stack.enter_context
        patch(self._chain)
        patch(unwritten())
        patch(ordered(range, self._start))
        patch(mock.patch.object(library, "run", self._launch))
        hooks = {
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_atomic_rmw": self._atomic,
            "create_atomic_cas": self._no_such,
            "create_barrier": self._barrier,
            "get_cache_policy": lambda modifier, eviction: modifier,
        }
        for name in ("addptr", "splat", "broadcast", "expand_dims", "reshape", "trans", "select", "bitcast"):
            hooks[f"create_{name}"] = self._traced(f"create_{name}")
        for name, hook in hooks.items():
            patch(mock.patch.object(BUILDER, name, hook, create=True))
        patch(mock.patch.object(triton.language.extra.cuda, "gdc_wait", self._wait))
        patch(mock.patch.object(triton.language.extra.cuda, "gdc_launch_dependents", lambda: None))
        patch(mock.patch.object(optim, "addresses", self._noted(pointers.addresses)))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _noted(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def addresses(given: Any) -> Tensor:
            table = original(given)
            self._tables[table.data_ptr()] = [table, *given]
            return table

        return addresses

    def _launch(self, kernel: Any, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
        self._kernel = kernel.fn.__name__
        self.launches[self._kernel] += 1
        self._threads = 32 * constants.get("num_warps", 4)
        self._pdl = "PDL" in constants
        constants = {k: v for k, v in constants.items() if k != "launch_pdl"}
        if self._pdl:
            constants["PDL"] = self._overlap
        named = dict(zip(kernel.arg_names, args, strict=False))
        self._args = [(name, x) for name, arg in named.items() for x in tensors([arg]) if x.numel()]
        self._begins: dict[int, set[int]] = {}
        for i, (_, x) in enumerate(self._args):
            self._begins.setdefault(x.data_ptr(), set()).add(i)
        self._elements: dict[int, tuple[int, int, np.ndarray | None]] = {}
        known = [y for _, x in self._args for y in self._tables.get(x.data_ptr(), [x])]
        self._shadow, self._started = Shadow(known, int(np.prod(grid)), self._tell), False
        with _disable_current_modes():
            self._run(kernel, grid, args, constants)
        self._end()
        self._chain.end(self._shadow, self._pdl and self._overlap)

    def _start(self, program: int) -> None:
        self._end()
        self._shadow.start(program + 1)
        self._started, self._waits = True, 0

    def _end(self) -> None:
        """Of a program."""
        if self._started and self._pdl and self._overlap and self._waits != 1:
            self.findings[Finding(f"waits {self._waits} times", self._kernel, "", "")] += 1

    def _wait(self) -> None:
        self._waits += 1

    def _barrier(self) -> None:
        self._shadow.barrier()

    def _no_such(self, *_: Any) -> None:
        raise NotImplementedError("the watch knows no such access: teach it")

    def _load(self, ptrs: Any, mask: Any, other: Any, *policy: Any) -> Any:
        mask, touch = self._touch(ptrs, mask)
        if touch is not None:
            self._shadow.load(touch)
            if self._pdl and self._overlap and not self._waits:
                problem = self._chain.early(
                    touch.pointers, touch.size, not str(policy[0]).lower().endswith("cg")
                )
                if problem:
                    self._tell(problem, touch.line)
        result = type(BUILDER).create_masked_load(BUILDER, ptrs, mask, other, *policy)
        if touch is not None and touch.size in UNWRITTEN:
            bits = result.data.ravel()[touch.lanes].view(f"u{touch.size}")
            if (bits == UNWRITTEN[touch.size]).any():
                self._tell("nobody wrote what is read", touch.line)
        return result

    def _store(self, ptrs: Any, value: Any, mask: Any, *policy: Any) -> Any:
        mask, touch = self._touch(ptrs, mask)
        if touch is not None:
            values = np.broadcast_to(value.data, ptrs.data.shape).ravel()[touch.lanes]
            self._shadow.store(touch, values)
            if self._pdl and self._overlap and not self._waits:
                self._tell("writes before it waits", touch.line)
        return type(BUILDER).create_masked_store(BUILDER, ptrs, value, mask, *policy)

    def _atomic(self, op: Any, ptr: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        mask, touch = self._touch(ptr, mask)
        if touch is not None:
            orders = str(sem).rpartition(".")[2] == "ACQUIRE_RELEASE"
            self._shadow.change(touch, orders and len(touch.pointers) == 1)
            if self._pdl and self._overlap and not self._waits:
                self._tell("writes before it waits", touch.line)
        return type(BUILDER).create_atomic_rmw(BUILDER, op, ptr, value, mask, sem, scope)

    def _touch(self, ptrs: Any, mask: Any) -> tuple[Any, Touch | None]:
        """The access of a tile, without the lanes that lie outside of all memory, which are masked out."""
        shape = ptrs.data.shape
        lanes = np.flatnonzero(np.broadcast_to(mask.data, shape))
        if not len(lanes):
            return mask, None
        pointers = ptrs.data.ravel()[lanes].astype(np.int64)
        size, line = max(1, ptrs.get_element_ty().primitive_bitwidth // 8), self._line()
        inside = self._shadow.inside(pointers, size)
        if not inside.all():
            self._tell("outside of all tensors", line)
            lanes, pointers = lanes[inside], pointers[inside]
            allowed = np.zeros(ptrs.data.size, bool)
            allowed[lanes] = True
            mask = interpreter.TensorHandle(allowed.reshape(shape), mask.dtype)
            if not len(lanes):
                return mask, None
        self._attribute(ptrs, pointers, size, line)
        form = self._shapes.setdefault(shape, len(self._shapes))
        return mask, Touch(pointers, size, lanes, form, ptrs.data.size >= self._threads, line)

    def _attribute(self, ptrs: Any, pointers: np.ndarray, size: int, line: int) -> None:
        """Whether the pointers are to elements of the arguments that they came from."""
        origins = self._origins(ptrs)
        if not origins:
            self.unattributed[self._lines[line]] += 1
            return
        left = np.ones(len(pointers), bool)
        for i in origins:
            start, end, elements = self._elements_of(i)
            within = (pointers >= start) & (pointers + size <= end)
            if elements is not None:
                within[within] &= elements[(pointers[within] - start) // size]
            left &= ~within
        if left.any():
            names = " or ".join(sorted({self._args[i][0] for i in origins}))
            self.findings[Finding("outside of its view", self._kernel, self._lines[line], names)] += 1

    def _origins(self, ptrs: Any) -> frozenset[int]:
        found = ptrs.attr.get("origins")
        if found is None:
            found = frozenset(self._begins.get(int(ptrs.data.ravel()[0]), ()) if ptrs.data.size == 1 else ())
        return found

    def _traced(self, name: str) -> Callable[..., Any]:
        """The method, whose result comes from the same arguments as the pointers that it is given."""
        original = getattr(type(BUILDER), name)

        def method(*args: Any) -> Any:
            result = original(BUILDER, *args)
            handles = [x for x in args if isinstance(x, interpreter.TensorHandle) and x.dtype.is_ptr()]
            if handles:
                result.attr["origins"] = frozenset().union(*map(self._origins, handles))
            return result

        return method

    def _elements_of(self, i: int) -> tuple[int, int, np.ndarray | None]:
        """Where an argument begins and ends, and which numbers between are its own, None for all."""
        if i not in self._elements:
            x = self._args[i][1]
            extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
            own = None
            if extent != x.numel():
                own = np.zeros(extent, bool)
                np.lib.stride_tricks.as_strided(own, x.shape, x.stride())[...] = True
            start = x.data_ptr()
            self._elements[i] = start, start + extent * x.element_size(), own
        return self._elements[i]

    def _line(self) -> int:
        """The number of the line of the kernel that is being interpreted, and of the functions that led there."""
        frame, found = sys._getframe(2), []
        while frame is not None and frame.f_code is not interpreter.GridExecutor.__call__.__code__:
            if not frame.f_code.co_filename.startswith(THEIRS) and frame.f_code.co_filename != __file__:
                found.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        key = tuple(found)
        if key not in self._numbers:
            self._numbers[key] = len(self._lines)
            names = [f"{Path(code.co_filename).name}:{line} {code.co_name}" for code, line in found]
            self._lines.append(" < ".join(names))
        return self._numbers[key]

    def _tell(self, kind: str, line: int, other: int | None = None) -> None:
        before = "" if other is None else self._lines[other]
        self.findings[Finding(kind, self._kernel, self._lines[line], before)] += 1
