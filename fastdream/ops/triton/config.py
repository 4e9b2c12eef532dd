"""How kernels are cut into programs: plain functions of shapes and of the GPU, importable without Triton.

capability is `library.capability`. A GPU without an entry of its own gets the first entry, which every GPU can run.
Nothing is tuned at run time: results do not depend on timing, and tests compile exactly what will be launched.
"""

from typing import NamedTuple

WIDEST = 16384  # columns of a row that one program holds


class Tile(NamedTuple):
    """What one program has in registers at a time."""

    rows: int
    cols: int
    warps: int


# Elements of a tile of whole rows, by capability.
ELEMENTS = {0: 2048, 80: 2048, 90: 4096}


def row_tile(width: int, capability: int, tensors: int = 1) -> Tile:
    """A tile of whole rows of `width` columns, of which a program keeps `tensors` in registers at a time."""
    cols = power_of_two(width)
    budget = entry(ELEMENTS, capability) // power_of_two(tensors)
    rows = max(1, budget // cols)
    # 16 elements a thread and tensor where rows are short, more threads only where one row is longer than that.
    warps = min(16, max(4, rows * cols * tensors // 1024))
    return Tile(rows, cols, power_of_two(warps))


def entry(table: dict[int, int], capability: int) -> int:
    """The number for this GPU, or the default."""
    return table.get(capability, next(iter(table.values())))


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
