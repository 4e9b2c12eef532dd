"""Norms over rows of which a program has but a tile: one kernel stores sums of its tiles, the next one normalizes.

Whoever reads a row adds up the sums of its tiles in a fixed order: no atomics, nothing to zero, the same bits at every
run. They are laid out as

    sums [tiles, planes, M] float32    rms: one plane, the sum of x^2 over a tile
                                       layer: two, the sum of x, and that of (x - mean of the tile)^2

for M rows, so that the first tiles of a product are the sums of its first columns. A row is cut into segments of
SEGMENT columns (the blocks of a block product; else it is one segment), and each segment into tiles of TILE columns,
the last of which may be shorter.
"""

import triton
import triton.language as tl

PLANES = {"none": 0, "rms": 1, "layer": 2}


def row_tiles(width: int, segment: int, tile: int) -> int:
    """Number of tiles of a row."""
    return width // segment * triton.cdiv(segment, tile)


@triton.jit
def store_sums(
    sums,  # [tiles, planes, M] or None
    b_x,  # [BM, BN], a tile
    m_n,  # [BN], which of its columns are the row's
    i_tile,
    o_m,  # [BM], its rows
    M,
    NORM: tl.constexpr,
):
    """Write the sums of one tile."""
    if NORM != "none":
        b_x = tl.where(m_n[None, :], b_x, 0.0)
        if NORM == "rms":
            tl.store(sums + i_tile * M + o_m, tl.sum(b_x * b_x, 1), mask=o_m < M)
        else:
            p_sums = sums + 2 * i_tile * M + o_m
            b_sum = tl.sum(b_x, 1)
            b_off = b_x - (b_sum / tl.sum(m_n.to(tl.float32), 0))[:, None]
            b_off = tl.where(m_n[None, :], b_off, 0.0)
            tl.store(p_sums, b_sum, mask=o_m < M)
            tl.store(p_sums + M, tl.sum(b_off * b_off, 1), mask=o_m < M)


@triton.jit
def moments(
    sums,  # [tiles, planes, M] or None
    o_m,  # [BM], rows
    M,
    eps,
    WIDTH: tl.constexpr,
    SEGMENT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,  # a power of two, not below the number of tiles
    NORM: tl.constexpr,
):
    """Mean (0 for rms) and 1 / deviation, both [BM], of whole rows."""
    b_mean = tl.zeros_like(o_m).to(tl.float32)
    b_rstd = b_mean + 1.0
    # No early return: Triton compiles what follows one too, where there may be no sums.
    if NORM != "none":
        PER_SEGMENT: tl.constexpr = (SEGMENT + TILE - 1) // TILE
        TILES: tl.constexpr = WIDTH // SEGMENT * PER_SEGMENT
        STEP: tl.constexpr = 1 if NORM == "rms" else 2
        o_t = tl.arange(0, BT)
        m_t = (o_t < TILES)[:, None] & (o_m < M)[None, :]
        p_sums = sums + STEP * o_t[:, None] * M + o_m[None, :]
        b_sums = tl.load(p_sums, mask=m_t, other=0.0)
        b_var = tl.sum(b_sums, 0) / WIDTH
        if NORM == "layer":
            b_mean = b_var
            b_count = tl.minimum(SEGMENT - (o_t % PER_SEGMENT) * TILE, TILE).to(tl.float32)[:, None]
            b_off = b_sums / b_count - b_mean[None, :]
            b_squares = tl.load(p_sums + M, mask=m_t, other=0.0) + b_count * b_off * b_off
            b_var = tl.sum(tl.where(m_t, b_squares, 0.0), 0) / WIDTH
        b_rstd = tl.rsqrt(b_var + tl.cast(eps, tl.float32))
    return b_mean, b_rstd


@triton.jit
def normalize_tile(
    b_x,  # [BM, BN]
    b_mean,  # [BM]
    b_rstd,  # [BM]
    scale,  # [N] or None
    shift,  # [N] or None
    o_n,  # [BN], which columns of the row b_x has
    m_n,  # [BN]
):
    """(x - mean) * rstd * scale + shift in float32."""
    b_x = (b_x.to(tl.float32) - b_mean[:, None]) * b_rstd[:, None]
    if scale is not None:
        b_x *= tl.load(scale + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if shift is not None:
        b_x += tl.load(shift + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    return b_x
