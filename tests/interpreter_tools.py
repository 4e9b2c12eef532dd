"""How the interpreter of Triton runs a grid, changed: in which order, and with what in memory that nobody wrote."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

BUILDER = interpreter.interpreter_builder
# Bits of numbers that nobody wrote, by size: a NaN of half or single precision, and no index.
UNWRITTEN = {2: 0x7FD5, 4: 0x7FD5A5A5, 8: 0x7FF5A5A57FD5A5A5}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
EMPTY = torch.empty
Order = Callable[[int], Any]  # numbers of that many programs, as they run


def backwards(programs: int) -> range:
    return range(programs)[::-1]


def shuffled(programs: int) -> list[int]:
    return np.random.default_rng(programs).permutation(programs).tolist()


@contextmanager
def ordered(order: Order, start: Callable[[int], None] = lambda program: None) -> Iterator[None]:
    """Programs of every grid run in this order; start: told each program's number before."""

    def place(x: int, y: int, z: int) -> None:
        _, ny, nz = BUILDER.grid_dim
        number = (x * ny + y) * nz + z
        if number == 0:
            numbers[:] = order(int(np.prod(BUILDER.grid_dim)))
        chosen = numbers[number]
        type(BUILDER).set_grid_idx(BUILDER, chosen // (ny * nz), chosen // nz % ny, chosen % nz)
        start(chosen)

    numbers: list[int] = []
    with mock.patch.object(BUILDER, "set_grid_idx", place):
        yield


@contextmanager
def unwritten() -> Iterator[None]:
    """New uninitialised tensors are full of numbers that are known to be nobody's."""

    def marked(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            out = original(*args, **kwargs)
            size = out.element_size()
            if size in INTEGERS and out.device.type == "cpu":
                memory = EMPTY(0, dtype=INTEGERS[size]).set_(out.untyped_storage())
                memory.fill_(UNWRITTEN[size])
            return out

        return allocate

    with ExitStack() as stack:
        for owner, name in (
            *((torch, name) for name in ("empty_like", "empty_strided")),
            *((Tensor, name) for name in ("new_empty", "new_empty_strided")),
            (torch, "empty"),
        ):
            stack.enter_context(mock.patch.object(owner, name, marked(getattr(owner, name))))
        yield
