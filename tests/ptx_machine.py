"""A GPU that is NumPy: executes the PTX of Triton's kernels, all threads of a program at once, programs in turn.

For what the compiler makes of kernels in float32, where Triton's interpreter shows what is written. Threads are in
lockstep, so that races do not show; reads of what is no tensor's, and misaligned ones, are errors. What float32 needs
none of (tensor cores, half precision) is not there: an instruction that is unknown ends it with its text.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from .ptx_arithmetic import ARITHMETIC, COMPARISONS, TYPES, Lanes, arithmetic, converted, field, permuted

BASE = 0x700000000000  # where global memory begins
PARAMETER = 16  # bytes from one parameter to the next, in a space of their own
UNWRITTEN = 0x7FC0DEAD  # in shared memory, a NaN as float32
REGISTERS: dict[str, Any] = {"%rd": np.uint64, "%rs": np.uint16, "%r": np.uint32, "%p": np.bool_}
WIDE: dict[str, Any] = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}
MOVES = {
    "ld": "_load", "st": "_store", "cp": "_copy", "atom": "_atom", "shfl": "_shuffle", "ldmatrix": "_matrix",
    "stmatrix": "_matrix",
}  # fmt: skip
NOTHING = ("bar.", "cp.async.wait", "cp.async.commit", "griddepcontrol.", "fence.", "membar.")


class Instruction(NamedTuple):
    """One line of a program."""

    text: str
    guard: tuple[str, bool] | None  # a predicate, and whether it is to be false
    words: tuple[str, ...]  # of the opcode
    operands: tuple[str, ...]


class Program(NamedTuple):
    """A kernel."""

    code: list[Instruction]
    labels: dict[str, int]
    params: list[str]


def parse(text: str) -> Program:
    """The only kernel in a file of PTX."""
    name = re.search(r"\.entry (\w+)\(", text)
    assert name is not None
    head, _, body = text[name.start() :].partition("{")
    program = Program([], {}, re.findall(rf"({name[1]}_param_\d+)", head))
    for line in body.splitlines():
        for part in line.split("//")[0].split(";"):
            part = part.strip()
            if label := re.fullmatch(r"([$\w]+):", part):
                program.labels[label[1]] = len(program.code)
            elif found := re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)", part):
                guard = (found[2], found[1] == "!") if found[2] else None
                operands = tuple(x.strip() for x in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", found[4]))
                program.code.append(Instruction(part, guard, tuple(found[3].split(".")), operands))
            elif part and part[0] not in "{}.)":
                raise ValueError(f"not understood: {part}")
    return program


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
    """One program of a kernel's grid."""

    def __init__(
        self,
        program: Program,
        memory: Memory,
        threads: int,
        shared: int,
        params: list[Any],
        place: tuple[int, ...],
        grid: tuple[int, ...],
    ) -> None:
        self.program, self.memory, self.count = program, memory, threads
        self.params = np.array([int(x) % 2**64 for x in params], np.uint64)
        self.shared = Memory(max(shared, 16))
        self.shared.views[4].fill(UNWRITTEN)
        self.registers: dict[str, Lanes] = {}
        self.known: dict[str, Any] = {"%tid.x": np.arange(threads), "%ntid.x": threads, "global_smem": 0}
        self.known |= {f"%ctaid.{axis}": at for axis, at in zip("xyz", place, strict=True)}
        self.known |= {name: PARAMETER * i for i, name in enumerate(program.params)}
        self.known |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", grid, strict=True)}
        self.live = np.ones(threads, bool)

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

    def _step(self, line: Instruction) -> None:
        word = line.words[0]
        if word == "mov" and "{" in line.text:
            self._halve(line)
        elif word in MOVES:
            getattr(self, MOVES[word])(line)
        elif word in ARITHMETIC or word in ("setp", "selp", "mov", "cvt", "bfe", "prmt"):
            self.put(line.operands[0], self._compute(line))
        else:
            raise NotImplementedError(line.text)

    def _compute(self, line: Instruction) -> Lanes:
        words, (_, *operands) = line.words, line.operands
        kind = words[-1]
        if words[0] == "cvt":
            return converted(self.get(operands[0], kind), words)
        if words[0] == "bfe":
            return field(self.get(operands[0], "u32"), int(operands[1]), int(operands[2]), kind)
        if words[0] == "prmt":
            return permuted(
                *(self.get(x, "u32") for x in operands[:2]), int(operands[2].removesuffix("U"), 0)
            )
        if words[0] == "selp":
            a, b = (self.get(x, kind) for x in operands[:2])
            return np.where(self.get(operands[2], "pred"), a, b)
        wide = "wide" in words
        values = [self.get(x, kind).astype(WIDE[kind]) if wide else self.get(x, kind) for x in operands[:2]]
        if words[0] in ("shl", "shr"):
            values[1] = self.get(operands[1], "u32")
        values += [
            self.get(x, {"s32": "s64", "u32": "u64", "u16": "u32"}[kind] if wide else kind)
            for x in operands[2:]
        ]
        if words[0] == "setp":
            return COMPARISONS[words[1]](*values)
        return values[0] if words[0] == "mov" else arithmetic(words, values)

    def _access(self, line: Instruction, operand: str) -> tuple[Lanes, int, int, Memory]:
        width = int(line.words[-1][1:]) // 8
        count = next((int(word[1]) for word in line.words if re.fullmatch("v[24]", word)), 1)
        memory = self.memory if line.words[1] == "global" else self.shared
        return (
            memory.places(self.address(operand), width * count, width, self.live, line.text),
            width,
            count,
            memory,
        )

    def _load(self, line: Instruction) -> None:
        if line.words[1] == "param":
            at = self.address(line.operands[1]) // PARAMETER
            self.put(line.operands[0], self.params[np.where(self.live, at, 0)].astype(TYPES[line.words[-1]]))
            return
        at, width, _, memory = self._access(line, line.operands[1])
        for i, name in enumerate(_names(line.operands[0])):
            self.put(name, memory.views[width][at + i])

    def _store(self, line: Instruction) -> None:
        at, width, _, memory = self._access(line, line.operands[0])
        for i, name in enumerate(_names(line.operands[1])):
            x = self.get(name, f"b{8 * max(width, 2)}").astype(f"u{width}")
            memory.views[width][(at + i)[self.live]] = x[self.live]

    def _halve(self, line: Instruction) -> None:
        """A number into two registers of half its bits, or the other way round; the lower half comes first."""
        to, origin = line.operands
        whole = line.words[-1]
        bits = int(whole[1:]) // 2
        if to.startswith("{"):
            x = self.get(origin, whole)
            for i, name in enumerate(_names(to)):
                self.put(name, (x >> x.dtype.type(bits * i)).astype(f"u{bits // 8}"))
        else:
            low, high = (self.get(name, f"b{bits}").astype(TYPES[whole]) for name in _names(origin))
            self.put(to, low | high << high.dtype.type(bits))

    def _copy(self, line: Instruction) -> None:
        """From global to shared memory, at once; of what is beyond the last operand's bytes, zeros."""
        to, origin, size, *given = line.operands
        count, live = int(size, 0) // 4, self.live
        some = self.get(given[0], "u32") if given else np.full(self.count, 4 * count)
        target = self.shared.places(self.address(to), 4 * count, 4, live, line.text)
        source = self.memory.places(self.address(origin), 4 * count, 4, live & (some > 0), line.text)
        for i in range(count):
            x = np.where(some > 4 * i, self.memory.views[4][source + i], 0)
            self.shared.views[4][(target + i)[live]] = x[live]

    def _atom(self, line: Instruction) -> None:
        if "add" not in line.words:
            raise NotImplementedError(line.text)
        at = self.memory.places(self.address(line.operands[1]), 4, 4, self.live, line.text)
        x, found = self.get(line.operands[2], "u32"), np.zeros(self.count, np.uint32)
        for i in np.flatnonzero(self.live):
            found[i] = self.memory.views[4][at[i]]
            self.memory.views[4][at[i]] += x[i]
        self.put(line.operands[0], found)

    def _shuffle(self, line: Instruction) -> None:
        x, by = (self.get(name, "u32").reshape(-1, 32) for name in line.operands[1:3])
        lane, by = np.arange(32), by.astype(np.int64)
        kinds = {"bfly": lane ^ by, "idx": by & 31, "up": np.where(lane >= by, lane - by, lane)}
        self.put(line.operands[0], np.take_along_axis(x, kinds[line.words[2]], 1).reshape(-1))

    def _matrix(self, line: Instruction) -> None:
        """Matrices of eight rows of eight halves, whose rows' addresses threads give in turn."""
        assert self.live.all() and "trans" not in line.words, line.text
        loads, lane = line.words[0] == "ldmatrix", np.arange(32)
        names, place = line.operands if loads else line.operands[::-1]
        rows = self.address(place).astype(np.int64).reshape(-1, 32) // 4
        for i, name in enumerate(_names(names)):
            at = rows[:, 8 * i : 8 * i + 8][:, lane // 4] + lane % 4
            if loads:
                self.put(name, self.shared.views[4][at].reshape(-1))
            else:
                self.shared.views[4][at] = self.get(name, "u32").reshape(-1, 32)


def _register(name: str) -> Any:
    prefix = re.match(r"%[a-z]+", name)
    assert prefix is not None, name
    return REGISTERS[prefix[0]]


def _names(operand: str) -> list[str]:
    return [x.strip() for x in operand.strip("{} ").split(",")]
