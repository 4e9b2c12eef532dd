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
def load_planes(
    planes,  # [tiles, planes, M] or None
    o_m,  # [BM], rows
    M,
    TILES: tl.constexpr,
    BT: tl.constexpr,  # a power of two, not below TILES
    NORM: tl.constexpr,
    FRESH: tl.constexpr,  # memory that every step writes
):
    """Both planes [BT, BM] of all tiles, zero where there is none: to be read before, and summed up after, others."""
    CACHE: tl.constexpr = ".cg" if FRESH else ""
    STEP: tl.constexpr = 1 if NORM == "rms" else 2
    o_t = tl.arange(0, BT)
    m_t = (o_t < TILES)[:, None] & (o_m < M)[None, :]
    b_first = tl.zeros([BT, o_m.shape[0]], tl.float32)
    b_second = b_first
    if NORM != "none":
        p_planes = planes + STEP * o_t[:, None] * M + o_m[None, :]
        b_first = tl.load(p_planes, mask=m_t, other=0.0, cache_modifier=CACHE)
    if NORM == "layer":
        b_second = tl.load(p_planes + M, mask=m_t, other=0.0, cache_modifier=CACHE)
    return b_first, b_second


@triton.jit
def moments_of(
    b_sums,  # [BT, BM]
    b_squares,  # [BT, BM]
    o_m,  # [BM]
    M,
    eps,
    WIDTH: tl.constexpr,
    SEGMENT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    NORM: tl.constexpr,
):
    """Mean (0 for rms) and 1 / deviation, both [BM], of whole rows, of what `load_planes` read."""
    b_mean = tl.sum(b_sums, 0) / WIDTH
    if NORM == "none":
        return tl.zeros_like(b_mean), tl.zeros_like(b_mean) + 1.0
    elif NORM == "rms":
        return tl.zeros_like(b_mean), tl.rsqrt(b_mean + tl.cast(eps, tl.float32))
    else:
        PER_SEGMENT: tl.constexpr = (SEGMENT + TILE - 1) // TILE
        TILES: tl.constexpr = WIDTH // SEGMENT * PER_SEGMENT
        o_t = tl.arange(0, BT)
        m_t = (o_t < TILES)[:, None] & (o_m < M)[None, :]
        b_count = tl.minimum(SEGMENT - (o_t % PER_SEGMENT) * TILE, TILE).to(tl.float32)[:, None]
        b_off = b_sums / b_count - b_mean[None, :]
        b_var = tl.sum(tl.where(m_t, b_squares + b_count * b_off * b_off, 0.0), 0) / WIDTH
        return b_mean, tl.rsqrt(b_var + tl.cast(eps, tl.float32))


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
    if NORM == "none":
        return tl.zeros_like(o_m).to(tl.float32), tl.zeros_like(o_m).to(tl.float32) + 1.0
    else:
        TILES: tl.constexpr = WIDTH // SEGMENT * ((SEGMENT + TILE - 1) // TILE)
        b_sums, b_squares = load_planes(sums, o_m, M, TILES, BT, NORM, False)
        return moments_of(b_sums, b_squares, o_m, M, eps, WIDTH, SEGMENT, TILE, BT, NORM)


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


@triton.jit
def load_vector(vector, o_n, m_n, other: tl.constexpr):
    """In float32, as o_n is shaped, or `other` where there is no vector."""
    if vector is None:
        return tl.zeros(o_n.shape, tl.float32) + other
    else:
        return tl.load(vector + o_n, mask=m_n, other=0.0).to(tl.float32)
