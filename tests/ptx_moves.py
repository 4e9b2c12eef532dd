"""What PTX moves: to and from memory, and between threads of a warp. Each is a function of the machine and a line."""

import re
from typing import Any

import numpy as np

from .ptx_arithmetic import ARITHMETIC, TYPES, Lanes, paired, parted
from .ptx_text import Instruction, names_in

PARAMETER = 16  # bytes from one parameter to the next, in a space of their own


def _access(m: Any, line: Instruction, operand: str) -> tuple[Lanes, int, Any]:
    """Where in the memory's numbers of a width, and that memory."""
    width = int(line.words[-1][1:]) // 8
    count = next((int(word[1]) for word in line.words if re.fullmatch("v[24]", word)), 1)
    at = m.address(operand)
    if line.words[1] == "global":
        return m.memory.places(at, width * count, width, m.live, line.text), width, m.memory
    return m.in_shared(at, width * count, width, line.text), width, m.shared


def load(m: Any, line: Instruction) -> None:
    if line.words[1] == "param":
        at = m.address(line.operands[1]) // PARAMETER
        m.put(line.operands[0], m.params[np.where(m.live, at, 0)].astype(TYPES[line.words[-1]]))
        return
    at, width, memory = _access(m, line, line.operands[1])
    for i, name in enumerate(names_in(line.operands[0])):
        m.put(name, memory.views[width][at + i])


def store(m: Any, line: Instruction) -> None:
    at, width, memory = _access(m, line, line.operands[0])
    for i, name in enumerate(names_in(line.operands[1])):
        x = m.get(name, f"b{8 * max(width, 2)}").astype(f"u{width}")
        memory.views[width][(at + i)[m.live]] = x[m.live]


def halve(m: Any, line: Instruction) -> None:
    """A number into two registers of half its bits, or the other way round; the lower half comes first."""
    to, origin = line.operands
    whole = line.words[-1]
    bits = int(whole[1:]) // 2
    if to.startswith("{"):
        x = m.get(origin, whole)
        for i, name in enumerate(names_in(to)):
            m.put(name, (x >> x.dtype.type(bits * i)).astype(f"u{bits // 8}"))
    else:
        low, high = (m.get(name, f"b{bits}").astype(TYPES[whole]) for name in names_in(origin))
        m.put(to, low | high << high.dtype.type(bits))


def copy(m: Any, line: Instruction) -> None:
    """From global to shared memory, at once; of what is beyond the last operand's bytes, zeros."""
    to, origin, size, *given = line.operands
    count, live = int(size, 0) // 4, m.live
    some = m.get(given[0], "u32") if given else np.full(m.count, 4 * count)
    target = m.in_shared(m.address(to), 4 * count, 4, line.text)
    source = m.memory.places(m.address(origin), 4 * count, 4, live & (some > 0), line.text)
    for i in range(count):
        x = np.where(some > 4 * i, m.memory.views[4][source + i], 0)
        m.shared.views[4][(target + i)[live]] = x[live]


def add_at_once(m: Any, line: Instruction) -> None:
    """`atom.add`, of one thread after the other."""
    if "add" not in line.words:
        raise NotImplementedError(line.text)
    at = m.memory.places(m.address(line.operands[1]), 4, 4, m.live, line.text)
    x, found = m.get(line.operands[2], "u32"), np.zeros(m.count, np.uint32)
    for i in np.flatnonzero(m.live):
        found[i] = m.memory.views[4][at[i]]
        m.memory.views[4][at[i]] += x[i]
    m.put(line.operands[0], found)


def shuffle(m: Any, line: Instruction) -> None:
    x, by = (m.get(name, "u32").reshape(-1, 32) for name in line.operands[1:3])
    lane, by = np.arange(32), by.astype(np.int64)
    kinds = {"bfly": lane ^ by, "idx": by & 31, "up": np.where(lane >= by, lane - by, lane)}
    m.put(line.operands[0], np.take_along_axis(x, kinds[line.words[2]], 1).reshape(-1))


def reduce(m: Any, line: Instruction) -> None:
    """`redux`: one number of all threads of a warp, for each of them."""
    m.together(32)
    x = m.get(line.operands[1], line.words[3]).reshape(-1, 32)
    m.put(line.operands[0], np.repeat(ARITHMETIC[line.words[2]].reduce(x, 1), 32))


def matrix(m: Any, line: Instruction) -> None:
    """Matrices of eight rows of eight halves, whose rows' addresses threads give in turn."""
    loads, warps = line.words[0] == "ldmatrix", m.together(32)
    names, place = line.operands if loads else line.operands[::-1]
    rows = np.where(m.live, m.address(place).astype(np.int64) + m.own, 0).reshape(-1, 32) // 2
    group, pair = np.arange(32) // 4, np.arange(32) % 4 * 2
    for i, name in enumerate(names_in(names)):
        eight = rows[:, 8 * i : 8 * i + 8]
        both = [
            eight[:, pair + j] + group if "trans" in line.words else eight[:, group] + pair + j
            for j in (0, 1)
        ]
        if loads:
            m.put(name, paired(*(m.shared.views[2][at].reshape(-1) for at in both)))
            continue
        for at, half in zip(both, parted(m.get(name, "u32")), strict=True):
            m.shared.views[2][at[warps]] = half.reshape(-1, 32)[warps]
