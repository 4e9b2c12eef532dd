"""Tensor cores: products of a warp, and those that four warps of a Hopper make of what lies in shared memory.

Exact but for the last rounding. What each thread has of a matrix is in the PTX ISA, under "Matrix fragments" of `mma`
and `wgmma`, as is how the latter's matrices lie ("Shared memory matrix layout", "Strides").
"""

import re
from typing import Any

import numpy as np

from .ptx_arithmetic import HALVES, Lanes, parted
from .ptx_text import Instruction, names_in

LANE = np.arange(32)
GROUP, PAIR = LANE // 4, LANE % 4 * 2
SPANS = {1: 128, 2: 64, 3: 32}  # bytes of a row whose pieces of 16 change places, by the layout's number


def _numbers(x: Lanes, kind: str) -> list[Lanes]:
    """Of a register: two of 16 bits, or one of 32, the last 13 of which are not looked at."""
    if kind == "tf32":
        return [(x & np.uint32(0xFFFFE000)).view(np.float32)]
    return [HALVES[kind][0](half) for half in parted(x)]


def _left(m: Any, names: list[str], kind: str) -> Lanes:
    """[warps, 16, k] of four registers, whose numbers lie along k."""
    of = [_numbers(m.get(name, "u32"), kind) for name in names]
    n = len(of[0])
    found = np.zeros((m.count // 32, 16, 8 * n))
    for i, numbers in enumerate(of):
        for j, x in enumerate(numbers):
            found[:, GROUP + i % 2 * 8, LANE % 4 * n + i // 2 * 4 * n + j] = x.reshape(-1, 32)
    return found


def _right(m: Any, names: list[str], kind: str) -> Lanes:
    """[warps, k, 8] of two registers, likewise."""
    of = [_numbers(m.get(name, "u32"), kind) for name in names]
    n = len(of[0])
    found = np.zeros((m.count // 32, 8 * n, 8))
    for i, numbers in enumerate(of):
        for j, x in enumerate(numbers):
            found[:, LANE % 4 * n + i * 4 * n + j, GROUP] = x.reshape(-1, 32)
    return found


def _places(columns: int) -> list[tuple[Lanes, Lanes]]:
    """Rows and columns [32] of a sum [16, columns] that the threads of a warp have, register by register."""
    return [(GROUP + i // 2 % 2 * 8, PAIR + i % 2 + i // 4 * 8) for i in range(columns // 2)]


def _sums(m: Any, names: list[str]) -> Lanes:
    found = np.zeros((m.count // 32, 16, 2 * len(names)))
    for (row, column), name in zip(_places(2 * len(names)), names, strict=True):
        found[:, row, column] = m.get(name, "f32").reshape(-1, 32)
    return found


def _put(m: Any, names: list[str], sums: Lanes) -> None:
    for (row, column), name in zip(_places(sums.shape[2]), names, strict=True):
        m.put(name, sums[:, row, column].astype(np.float32).reshape(-1))


def multiply(m: Any, line: Instruction) -> None:
    """`mma`, of each warp."""
    m.together(32)
    kind, depth = line.words[7], "k8" if line.words[7] == "tf32" else "k16"
    if line.words[3:] != (f"m16n8{depth}", "row", "col", "f32", kind, kind, "f32"):
        raise NotImplementedError(line.text)
    out, left, right, sums = map(names_in, line.operands)
    _put(m, out, _sums(m, sums) + _left(m, left, kind) @ _right(m, right, kind))


def _described(m: Any, name: str, rows: int, across: bool, kind: str) -> Lanes:
    """[groups, rows, 16] of shared memory, the 16 that are summed over side by side, or the rows, if `across`."""
    lives = m.live[::128]
    described = np.where(lives, m.get(name, "u64")[::128], np.uint64(1) << np.uint64(62)).astype(object)
    if len({x >> 62 for x in described}) != 1 or described[0] >> 62 not in SPANS or described[0] >> 49 & 7:
        raise NotImplementedError(f"a matrix as {described[0]:#x} describes it")
    span = SPANS[described[0] >> 62]
    start, leading, stride = (
        np.array([(x >> bits & 0x3FFF) << 4 for x in described], np.int64)[:, None, None]
        for bits in (0, 16, 32)
    )
    row, k = np.arange(rows)[None, :, None], np.arange(16)[None, None]
    if across:
        line, wide = span // 2, row
        at = 2 * (wide % line) + wide // line * leading + k % 8 * span + k // 8 * stride
    else:
        at = row % 8 * span + row // 8 * stride + 2 * k
    at = start + at
    at = at ^ (at >> 3 & span - 16)
    return HALVES[kind][0](m.shared.views[2][(at + m.own[::128, None, None]) // 2].astype(np.uint16))


def multiply_in_groups(m: Any, line: Instruction) -> None:
    """`wgmma.mma_async`, of each four warps, at once."""
    if line.words[1] != "mma_async":
        return  # of its waits
    m.together(128)
    columns, kind = int(re.fullmatch(r"m64n(\d+)k16", line.words[4])[1]), line.words[6]  # type: ignore[index]
    out, left, right, adds, *factors = line.operands
    across = factors[2:]
    if line.words[5:] != ("f32", kind, kind) or factors[:2] != ["1", "1"]:
        raise NotImplementedError(line.text)
    a = (
        _left(m, names_in(left), kind).reshape(-1, 64, 16)
        if left.startswith("{")
        else _described(m, left, 64, across[0] != "0", kind)
    )
    b = _described(m, right, columns, across[-1] != "0", kind)
    products = (a @ b.astype(np.float64).transpose(0, 2, 1)).reshape(-1, 16, columns)
    kept = np.where(m.get(adds, "pred")[::32, None, None], _sums(m, names_in(out)), 0)
    _put(m, names_in(out), kept + products)
