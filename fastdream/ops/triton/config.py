"""How kernels are cut into programs: plain functions of shapes and of the GPU, importable without Triton.

capability is `library.capability`. A GPU without an entry of its own gets the first entry, which every GPU can run,
if perhaps in fewer stages: see `library.launch`.
Nothing is tuned at run time: results do not depend on timing, and tests compile exactly what will be launched.
"""

from typing import NamedTuple, TypeVar

Entry = TypeVar("Entry")

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


# Elements that one warp has, at the most.
WARP_ELEMENTS = 1024


def warp_tile(width: int, capability: int, tensors: int = 1) -> Tile:
    """As `row_tile`, for kernels that add up rows several times: a warp has whole ones, and waits for no other."""
    cols = power_of_two(width)
    if cols * power_of_two(tensors) > WARP_ELEMENTS:
        return row_tile(width, capability, tensors)
    return Tile(WARP_ELEMENTS // (cols * power_of_two(tensors)), cols, 1)


class TailCut(NamedTuple):
    """How the tail of a step, whose programs have whole rows, takes in weights. Sizes are in bytes of weights."""

    whole: int  # of a layer that multiplies at once, and does so while its rows are in registers
    stage: int  # of deeper layers, at a time
    depth: int  # inputs of those, at the most, at a time
    drawn: int  # logits of a row from which is drawn at a time
    dense: int  # classes up to which one-hots are multiplied by; of more, rows of weights are gathered
    warps: int
    stages: int


# Half precision, by capability. On Hopper few pieces, for each of them waits for memory before it computes.
TAIL_CUTS = {
    80: TailCut(whole=0, stage=2**14, depth=64, drawn=128, dense=0, warps=8, stages=5),
    90: TailCut(whole=2**17, stage=2**16, depth=256, drawn=512, dense=16, warps=16, stages=3),
}
# Without tensor cores arithmetic takes longer than memory.
PRECISE_TAIL = TailCut(whole=0, stage=2**15, depth=64, drawn=128, dense=0, warps=8, stages=3)


def tail_cut(capability: int, itemsize: int) -> TailCut:
    """That of a GPU, for weights of `itemsize` bytes."""
    return entry(TAIL_CUTS, capability) if itemsize == 2 else PRECISE_TAIL


def entry(table: dict[int, Entry], capability: int) -> Entry:
    """What the table has for this GPU, or the default."""
    return table.get(capability, next(iter(table.values())))


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
