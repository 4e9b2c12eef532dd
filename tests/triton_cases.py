"""What Triton's kernels are compiled, budgeted and compared at: every op at the widths of the agents' sizes.

A new op gets its lines in CASES, in BUDGETS if it needs more than rows do, and in WIDE.
"""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.agents.dreamer_v3_config import SIZES

from . import parity_cases as ops
from .ops_tools import Maker, Sizes
from .parity_cases import Arguments, Case
from .parity_tools import cast, changed

PRESETS = tuple(name for name in SIZES if name.endswith("m"))
USUAL = "12m"  # what the default run compiles
CAPABILITIES = (80, 90)
PRECISIONS = (torch.bfloat16, torch.float32)
ROWS = 1024  # 16 sequences of 64 steps


class Budget(NamedTuple):
    """What a program may take at the most."""

    registers: int = 128  # a thread
    shared: int = 16 * 1024  # bytes
    spilled: int = 0  # bytes a thread


class Blank(Maker):
    """Makes tensors of no memory, for the shapes alone."""

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta").requires_grad_()

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    def index(self, *shape: int, high: int | None = None) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def onehot(self, *shape: int) -> Tensor:
        return self.normal(*shape, self.sizes.classes)


def sizes(preset: str) -> Sizes:
    """The widths of a size of DreamerV3; embeddings are as wide as two more layers of features."""
    deter, hidden, classes, depth, units = SIZES[preset]
    return Sizes(deter, hidden, 32, classes, 16 * 4 * depth, 8, units)


def at(width: str, function: Any, m: Maker, n: int) -> Arguments:
    """The arguments of `function`, which looks at deter, at another of the widths."""
    m.sizes = m.sizes._replace(deter=getattr(m.sizes, width))
    return function(m, n)


def norm_acts(*triples: tuple[str, str, str]) -> dict[str, Case]:
    return {"-".join(t): Case(partial(at, t[2], partial(ops.norm_act, *t[:2]))) for t in triples}


# The agents' layers, at the widths of their hidden layers and of the recurrent state.
CASES: dict[str, dict[str, Case]] = {
    "norm_act": norm_acts(
        ("rms", "silu", "units"),
        ("rms", "silu", "deter"),
        ("layer", "elu", "units"),
        ("none", "silu", "units"),
    ),
}

# Positions of arguments that stay float32 where the others are in half precision.
WIDE: dict[str, tuple[int, ...]] = {"norm_act": (1, 2)}
FULL_PRECISION: tuple[str, ...] = ()  # ops that take no half precision
IN_PLACE: tuple[str, ...] = ()  # ops that change their arguments
BUDGETS: dict[str, Budget] = {
    "norm_act": Budget(spilled=8),  # of rows of 6144 on sm_80: ptxas prefers a second program on the SM
}


def in_precision(op: str, args: Arguments, dtype: torch.dtype) -> Arguments:
    """The arguments with floats in dtype, or in float32 where the op wants that."""
    wide = WIDE.get(op, ())
    return tuple(changed(cast(torch.float32 if i in wide else dtype), arg) for i, arg in enumerate(args))


def blank(op: str, case: str, preset: str, dtype: torch.dtype) -> tuple[Arguments, bool]:
    """Arguments without memory, and whether the op has gradients."""
    make, gradients = CASES[op][case]
    args = make(Blank(0, torch.float32, sizes(preset)), ROWS)
    return changed(lambda x: x.to("meta"), in_precision(op, args, dtype)), gradients


def made(op: str, case: str, preset: str, dtype: torch.dtype) -> Arguments:
    """Random arguments."""
    return in_precision(op, CASES[op][case].make(Maker(0, torch.float32, sizes(preset)), ROWS), dtype)


def names(
    presets: tuple[str, ...] = PRESETS, precisions: tuple[torch.dtype, ...] = PRECISIONS
) -> list[tuple]:
    """(op, case, preset, dtype) of everything."""
    cases = [(op, case) for op, found in CASES.items() for case in found]
    return [
        (*case, preset, dtype)
        for case, preset, dtype in product(cases, presets, precisions)
        if dtype == torch.float32 or case[0] not in FULL_PRECISION
    ]
