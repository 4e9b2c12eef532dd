"""Grids of one dimension for tiles of rows and columns, as a device function.

A GPU starts 65535 programs at the most along the other dimensions: a million rows are more, in tiles of few.
"""

import triton
import triton.language as tl


@triton.jit
def place_of(N: tl.constexpr, BN: tl.constexpr):
    """Which tile of rows is this program's, and which of the tiles of BN of N columns; those of the same rows come
    after one another.
    """
    i = tl.program_id(0)
    TILES: tl.constexpr = (N + BN - 1) // BN
    return i // TILES, i % TILES
