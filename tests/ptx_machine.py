"""A GPU that is NumPy: executes the PTX of Triton's kernels, all threads of a program at once, programs in turn.

For what the compiler makes of kernels, where Triton's interpreter shows what is written, and that in float32 alone.
Threads are in lockstep, so that races do not show; reads of what is no tensor's, and misaligned ones, are errors. An
instruction that is unknown ends it with its text; `wgmma`, which large products of a Hopper are made of, is one.
"""

import re
from typing import Any

import numpy as np

from . import ptx_moves, ptx_products
from .ptx_arithmetic import (
    ARITHMETIC,
    COMPARISONS,
    HALVES,
    TYPES,
    Lanes,
    arithmetic,
    arithmetic_of_halves,
    converted,
    field,
    paired,
    parted,
    permuted,
)
from .ptx_text import Instruction, Program

BASE = 0x700000000000  # where global memory begins
UNWRITTEN = 0x7FC0DEAD  # in shared memory, a NaN as float32
REGISTERS: dict[str, Any] = {"%rd": np.uint64, "%rs": np.uint16, "%r": np.uint32, "%p": np.bool_}
WIDE: dict[str, Any] = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}
MOVES = {
    "ld": ptx_moves.load, "st": ptx_moves.store, "cp": ptx_moves.copy, "atom": ptx_moves.add_at_once,
    "shfl": ptx_moves.shuffle, "redux": ptx_moves.reduce, "ldmatrix": ptx_moves.matrix, "stmatrix": ptx_moves.matrix,
    "mma": ptx_products.multiply, "wgmma": ptx_products.multiply_in_groups,
}  # fmt: skip
NOTHING = ("bar.", "cp.async.wait", "cp.async.commit", "griddepcontrol.", "fence.", "membar.")


class Memory:
    """Bytes that begin at an address, some of which may be read and written."""

    def __init__(self, size: int, base: int = 0, known: bool = True) -> None:
        self.raw, self.base = np.zeros(-(-size // 8) * 8, np.uint8), base
        self.known = np.full(len(self.raw), known)
        self.views = {n: self.raw.view(f"u{n}") for n in (1, 2, 4, 8)}

    def places(self, at: Lanes, size: int, width: int, live: Lanes, text: str) -> Lanes:
        """Indices of numbers of `width` bytes, of accesses of `size`; 0 of threads that make none."""
        at = np.where(live, at - np.uint64(self.base), 0)
        if (at % size).any():
            raise RuntimeError(f"misaligned: {text}")
        if (at + size > len(self.raw)).any() or not (self.known[at] & self.known[at + size - 1])[live].all():
            raise RuntimeError(f"not in a tensor: {text}")
        return (at // width).astype(np.int64)


class Threads:
    """Some programs of a kernel's grid, whose places in it are `places`."""

    def __init__(
        self,
        program: Program,
        memory: Memory,
        threads: int,
        shared: int,
        params: list[Any],
        places: list[tuple[int, ...]],
        grid: tuple[int, ...],
    ) -> None:
        n, size = len(places), -(-max(shared, 16) // 8) * 8
        self.program, self.memory, self.count = program, memory, threads * n
        self.params = np.array([int(x) % 2**64 for x in params], np.uint64)
        self.shared, self.size = Memory(size * n), size
        self.shared.views[4].fill(UNWRITTEN)
        self.own = np.repeat(np.arange(n) * size, threads)  # where in it each thread's program has its part
        self.registers: dict[str, Lanes] = {}
        self.known: dict[str, Any] = {"%ntid.x": threads, "global_smem": 0}
        self.known["%tid.x"] = np.tile(np.arange(threads), n)
        for i, axis in enumerate("xyz"):
            self.known[f"%ctaid.{axis}"] = np.repeat([place[i] for place in places], threads)
        self.known |= {name: ptx_moves.PARAMETER * i for i, name in enumerate(program.params)}
        self.known |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", grid, strict=True)}
        self.live = np.ones(self.count, bool)

    def run(self) -> None:
        """To the end. Threads that part go on from the earliest place first, and so meet again."""
        waiting = {0: np.ones(self.count, bool)}
        while waiting:
            at = min(waiting)
            group = waiting.pop(at)
            line = self.program.code[at]
            if line.words[0] in ("ret", "exit"):
                continue
            self.live = group & self._guard(line)
            if line.words[0] == "bra":
                targets = {self.program.labels[line.operands[0]]: self.live, at + 1: group & ~self.live}
            else:
                if self.live.any() and not ".".join(line.words).startswith(NOTHING):
                    self._step(line)
                targets = {at + 1: group}
            for target, some in targets.items():
                if some.any():
                    waiting[target] = waiting[target] | some if target in waiting else some

    def _guard(self, line: Instruction) -> Lanes:
        return (
            np.ones(self.count, bool)
            if line.guard is None
            else self.get(line.guard[0], "pred") ^ line.guard[1]
        )

    def get(self, name: str, kind: str) -> Lanes:
        """An operand as numbers of a type."""
        dtype = TYPES[kind]
        if name in self.known:
            return np.full(self.count, self.known[name]).astype(dtype)
        if name.startswith("%"):
            x = self.registers.setdefault(name, np.zeros(self.count, _register(name)))
            return x.view(dtype) if x.itemsize == np.dtype(dtype).itemsize else x.astype(dtype)
        if name.startswith("0f"):
            return np.full(self.count, int(name[2:], 16), np.uint32).view(dtype)
        number = int(name.removesuffix("U"), 0)
        if kind == "pred":
            return np.full(self.count, number != 0)
        width = np.dtype(dtype).itemsize
        return np.full(self.count, number % 2 ** (8 * width), f"u{width}").view(dtype)

    def put(self, name: str, x: Lanes) -> None:
        """Into a register, of the threads that are live; `_` is none."""
        if name == "_":
            return
        dtype = _register(name)
        x = x.view(dtype) if x.itemsize == np.dtype(dtype).itemsize else x.astype(dtype)
        before = self.registers.get(name)
        self.registers[name] = np.where(self.live, x, np.zeros_like(x) if before is None else before)

    def address(self, operand: str) -> Lanes:
        found = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        assert found is not None, operand
        name, offset = found[1], int(found[2] or 0)
        wide = self.get(name, "u64" if name.startswith("%rd") else "s32").astype(np.int64)
        return (wide + offset).astype(np.uint64)

    def in_shared(self, at: Lanes, size: int, width: int, text: str) -> Lanes:
        """Indices as of `Memory.places`, each in its program's part."""
        if (at[self.live] + np.uint64(size) > self.size).any():
            raise RuntimeError(f"not in shared memory: {text}")
        return self.shared.places(at + self.own.astype(np.uint64), size, width, self.live, text)

    def together(self, threads: int) -> Lanes:
        """Which ones of so many threads take part, all of each."""
        groups = self.live.reshape(-1, threads)
        if (groups.any(1) != groups.all(1)).any():
            raise RuntimeError(f"some of {threads} threads, where all of them must take part")
        return groups.any(1)

    def _step(self, line: Instruction) -> None:
        word = line.words[0]
        if word == "mov" and "{" in line.text:
            ptx_moves.halve(self, line)
        elif word in MOVES:
            MOVES[word](self, line)
        elif word == "setp":
            self._compare(line)
        elif word in ARITHMETIC or word in ("selp", "mov", "cvt", "bfe", "prmt"):
            self.put(line.operands[0], self._compute(line))
        else:
            raise NotImplementedError(line.text)

    def _compute(self, line: Instruction) -> Lanes:
        words, (_, *operands) = line.words, line.operands
        kind = words[-1]
        if words[0] == "cvt":
            halves = [converted(self.get(x, kind), words) for x in operands]
            return halves[0] if len(halves) == 1 else paired(*halves[::-1])
        if words[0] == "bfe":
            return field(self.get(operands[0], "u32"), int(operands[1]), int(operands[2]), kind)
        if words[0] == "prmt":
            return permuted(
                *(self.get(x, "u32") for x in operands[:2]), int(operands[2].removesuffix("U"), 0)
            )
        if words[0] == "selp":
            a, b = (self.get(x, kind) for x in operands[:2])
            return np.where(self.get(operands[2], "pred"), a, b)
        if kind.removesuffix("x2") in HALVES:
            return arithmetic_of_halves(words, [self.get(x, kind) for x in operands])
        wide = "wide" in words
        values = [self.get(x, kind).astype(WIDE[kind]) if wide else self.get(x, kind) for x in operands[:2]]
        if words[0] in ("shl", "shr"):
            values[1] = self.get(operands[1], "u32")
        values += [
            self.get(x, {"s32": "s64", "u32": "u64", "u16": "u32"}[kind] if wide else kind)
            for x in operands[2:]
        ]
        return values[0] if words[0] == "mov" else arithmetic(words, values)

    def _compare(self, line: Instruction) -> None:
        """Two numbers, or the halves of two registers, whose results are apart."""
        kind = line.words[-1]
        half = kind.removesuffix("x2")
        values = [self.get(x, kind) for x in line.operands[1:]]
        pairs = [values] if kind == half else list(zip(*map(parted, values), strict=True))
        for name, some in zip(line.operands[0].split("|"), pairs, strict=True):
            some = [HALVES[half][0](x) for x in some] if half in HALVES else some
            self.put(name, COMPARISONS[line.words[1]](*some))


def _register(name: str) -> Any:
    prefix = re.match(r"%[a-z]+", name)
    assert prefix is not None, name
    return REGISTERS[prefix[0]]
