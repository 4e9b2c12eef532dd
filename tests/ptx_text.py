"""What a file of PTX says: the instructions of its only kernel."""

import re
from typing import NamedTuple


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


def names_in(operand: str) -> list[str]:
    """Of one register, or of several in braces."""
    return [x.strip() for x in operand.strip("{} ").split(",")]
