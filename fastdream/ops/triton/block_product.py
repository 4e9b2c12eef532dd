"""One product for the hidden layer of a block core and for every dense layer that reads deter.

    out^(k) = base^(k) + deter^(k) W^(k) + x V^(k)        for each of g blocks k

The product is block-diagonal in deter [M, g*K], while every block reads x [M, X]: V is one dense map, and x is never
repeated in memory. With one block and without x this is a dense layer, for all who read a new deter at once (the
posterior's or prior's first layer, the next step's deter layer, the actor's first layer): stack their weights.

    deter   [M, g*K]      rows where reset [M] bool is True count as zero; reset may be None. Or pre-activations of a
                          layer before, which `normed` describes, and which are normed and activated while they are read
    own     [g, K, N]     W, any strides, one of the last two of them 1
    x       [M, X]        activated: each program of a row would otherwise activate all of it again; or None
    shared  [g, X, N]     V, with the strides of W, or None
    base    [M, B]        added to the first B columns; a bias is its `expand(M, -1)`. It may be `out` itself, or None
    out     [M, g*N]      written, with sums of its rows where a norm follows

sums are laid out as `rowwise` says, WIDTH = g*N, SEGMENT = N, TILE = tiles.n; `product_sums` allocates them.
All 2-D tensors have unit stride in their rows; rows may be any distance apart, so that they can be views of one
time step. Floats have one dtype, but for sums, which are float32, and base, which has any.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import PLANES, moments, normalize_tile, row_tiles, store_sums
from fastdream.ops.triton.split_product import load_base, split_products


class Tiles(NamedTuple):
    """What a program of a product computes at a time: rows, columns, depth; with how many warps and stages.

    split: into how many parts the inputs of a piece are split, as many as there are warps, or 1; see `split`.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    split: int = 1


PIECE = 32 * 1024  # bytes of weights that a program multiplies by at a time, at the most


def piece(most: int, inputs: int, columns: int, itemsize: int, parts: int) -> int:
    """How many of so many inputs are multiplied by weights of so many columns at a time: a power of two up to most."""
    fitting = power_of_two(PIECE // (columns * itemsize) + 1) // 2
    return max(16 * parts, min(most, fitting, power_of_two(inputs)))


def split_warps(width: int, columns: int = 0, itemsize: int = 2) -> int:
    """Warps among which the inputs of so many units are split: each has sixteen of a piece that fits, or more."""
    return 8 if width >= 256 and 8 * 16 * columns * itemsize <= PIECE else 4


def product_tiles(rows: int, width: int, segment: int, itemsize: int) -> Tiles:
    """Tiles for a product of `rows` rows and `width` columns in segments of `segment`.

    Few rows (observing): latency counts, and columns are cut until about every multiprocessor has some. Many rows
    (imagining): the bandwidth of the L2 cache counts, and tiles are the largest of which there are enough. The largest
    of them keep four pieces on their way: with two, a product of 1024 rows took up to a third longer on an H200.
    """
    depth = 128 // itemsize
    if rows <= 16:
        n = next((n for n in (64, 32) if width // n >= 96 and segment % n == 0), 16)
        most, warps = 8 * depth, split_warps(segment)
        return Tiles(16, n, piece(most, most, n, itemsize, warps), warps, 4 if n == 16 else 3, split=warps)
    shapes = (128, 128), (64, 128), (128, 64), (64, 64), (64, 32), (32, 32)
    # Masks of a ragged tile of 128 columns take registers that its sums need.
    fitting = [(m, n) for m, n in shapes if n <= segment and not (n == 128 and segment % n)]
    enough = [
        (m, n)
        for m, n in fitting
        if triton.cdiv(rows, m) * (width // segment) * triton.cdiv(segment, n) >= (96 if n == 128 else 120)
    ]
    m, n = (*enough, *fitting[-1:], (32, 32))[0]
    return Tiles(m, n, depth, 8 if m == 128 else 4, 5 if n == 128 else 3)


class Normed(NamedTuple):
    """The norm and activation that pre-activations still need."""

    layer: Layer
    sums: Tensor | None  # [tiles, planes, M], of the rows
    tile: int  # columns of a tile of them


@triton.jit
def products(
    deter, m_own, own, x, m_m, shared, b_mean, b_rstd, in_scale, in_shift, s_deter, s_x, s_g, s_k, s_n,
    i_g, o_row, o_n, m_n, K: tl.constexpr, X: tl.constexpr, IN_NORM: tl.constexpr, IN_ACT: tl.constexpr,
    BK: tl.constexpr
):  # fmt: skip
    """A tile [BM, BN] of deter^(k) W^(k) + x V^(k) of block i_g, rows o_row, of which deter has m_own and x m_m."""
    o_k = tl.arange(0, BK)
    CHUNKS: tl.constexpr = (K + BK - 1) // BK
    b_out = tl.zeros([o_row.shape[0], o_n.shape[0]], tl.float32)
    # One loop over both operands, so that there is one pipeline.
    for i_k in range(CHUNKS + (X + BK - 1) // BK):
        if X == 0:
            o_c, m_a, width = i_k * BK + o_k, m_own, K
            p_a, p_b = deter + i_g * K + o_row * s_deter, own
        else:
            mine = i_k < CHUNKS
            o_c = (i_k - tl.where(mine, 0, CHUNKS)) * BK + o_k
            m_a, width = m_m & (m_own | (i_k >= CHUNKS)), tl.where(mine, K, X)
            p_a = tl.where(mine, deter + i_g * K, x) + o_row * tl.where(mine, s_deter, s_x)
            p_b = tl.where(mine, own, shared)
        m_c = o_c < width
        p_b += i_g * s_g
        b_a = tl.load(p_a[:, None] + o_c[None, :], mask=m_a[:, None] & m_c[None, :], other=0.0)
        b_b = tl.load(
            p_b + o_c[:, None] * s_k + o_n[None, :] * s_n, mask=m_c[:, None] & m_n[None, :], other=0.0
        )
        if IN_NORM != "none" or IN_ACT != "none":
            b_a = normalize_tile(b_a, b_mean, b_rstd, in_scale, in_shift, i_g * K + o_c, m_c)
            b_a = activate(b_a, IN_ACT).to(b_b.dtype)
        b_out = tl.dot(b_a, b_b, b_out, input_precision="ieee")
    return b_out


@triton.jit(do_not_specialize=["M"])
def block_product_kernel(
    deter,  # [M, G*K]
    reset,  # [M] or None
    own,  # [G, K, N]
    x,  # [M, X] or None
    shared,  # [G, X, N] or None
    base,  # [M, BASE] or None
    out,  # [M, G*N]
    sums,  # [tiles, planes, M] or None
    in_sums,  # [tiles, planes, M] or None, of deter if it is normed, like the next two
    in_scale,  # [G*K] or None
    in_shift,  # [G*K] or None
    M,
    in_eps,
    s_deter,
    s_reset,
    s_x,
    s_base,
    s_out,
    s_g,
    s_k,
    s_n,
    G: tl.constexpr,
    K: tl.constexpr,
    X: tl.constexpr,
    N: tl.constexpr,
    BASE: tl.constexpr,
    NORM: tl.constexpr,
    IN_NORM: tl.constexpr,
    IN_ACT: tl.constexpr,
    IN_TILE: tl.constexpr,
    IN_BT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BX: tl.constexpr,  # of x, where inputs are split
    KS: tl.constexpr,  # among how many warps inputs are split, or 1
    PDL: tl.constexpr,
):
    i_n, i_g, i_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    o_row, o_out = o_m.to(tl.int64), i_g * N + o_n
    m_m, m_n = o_m < M, o_n < N
    if KS > 1:
        b_out = split_products(
            deter, reset, own, x, shared, base, in_sums, in_scale, in_shift, M, in_eps, s_deter, s_reset, s_x,
            s_base, s_g, s_k, s_n, i_g, o_m, o_n, G, K, X, N, BASE, IN_NORM, IN_ACT, IN_TILE, IN_BT, BK, BX, KS, PDL
        )  # fmt: skip
    else:
        begin(PDL)
        m_own = m_m
        if reset is not None:
            m_own = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
        b_mean, b_rstd = moments(in_sums, o_m, M, in_eps, G * K, K, IN_TILE, IN_BT, IN_NORM)
        b_out = products(
            deter, m_own, own, x, m_m, shared, b_mean, b_rstd, in_scale, in_shift, s_deter, s_x, s_g, s_k, s_n,
            i_g, o_row, o_n, m_n, K, X, IN_NORM, IN_ACT, BK
        )  # fmt: skip
        if base is not None:
            b_out += load_base(base, o_row, m_m, o_out, m_n, s_base, BASE)
    b_out = b_out.to(out.dtype.element_ty)
    tl.store(out + o_row[:, None] * s_out + o_out[None, :], b_out, mask=m_m[:, None] & m_n[None, :])
    store_sums(sums, b_out.to(tl.float32), m_n, i_g * tl.num_programs(0) + i_n, o_m, M, NORM)


def product_sums(out: Tensor, blocks: int, tiles: Tiles, norm: str) -> Tensor | None:
    """Sums of rows [M, g*N] like `out`, for the norm that follows; None if none does."""
    rows, width = out.shape
    shape = row_tiles(width, width // blocks, tiles.n), PLANES[norm], rows
    return out.new_empty(shape, dtype=torch.float32) if norm != "none" else None


def _pieces(tiles: Tiles, *inputs: int) -> dict[str, int]:
    """Of deter's inputs and of x's."""
    if tiles.split == 1:
        return {"BK": tiles.k, "BX": tiles.k, "KS": 1}
    sizes = [min(tiles.k, power_of_two(max(16 * tiles.split, n))) for n in inputs]
    return {"BK": sizes[0], "BX": sizes[1], "KS": tiles.split}


def block_product(
    deter: Tensor,
    reset: Tensor | None,
    own: Tensor,
    x: Tensor | None,
    shared: Tensor | None,
    base: Tensor | None,
    out: Tensor,
    sums: Tensor | None,
    norm: str,
    tiles: Tiles,
    normed: Normed | None = None,
) -> None:
    """Compute `out` and `sums` as above. norm: which one follows, "none", "rms" or "layer"."""
    blocks, depth, width = own.shape
    rows = deter.shape[0]
    before = normed.layer if normed else Layer(own)
    assert normed is None or x is None, "only deter alone can be normed"
    assert x is None or (shared is not None and shared.stride() == own.stride()), "W and V differ in strides"
    reads = 0 if x is None else x.shape[1]
    launch(
        block_product_kernel,
        (triton.cdiv(width, tiles.n), blocks, triton.cdiv(rows, tiles.m)),
        deter,
        reset,
        own,
        x,
        shared,
        base,
        out,
        sums,
        normed.sums if normed else None,
        before.scale,
        before.shift,
        rows,
        before.eps,
        deter.stride(0),
        0 if reset is None else reset.stride(0),
        0 if x is None else x.stride(0),
        0 if base is None else base.stride(0),
        out.stride(0),
        *own.stride(),
        G=blocks,
        K=depth,
        X=reads,
        N=width,
        BASE=0 if base is None else base.shape[1],
        NORM=norm,
        IN_NORM=before.norm,
        IN_ACT=before.act,
        IN_TILE=normed.tile if normed else 1,
        IN_BT=power_of_two(row_tiles(blocks * depth, depth, normed.tile)) if normed else 1,
        BM=tiles.m,
        BN=tiles.n,
        **_pieces(tiles, depth, reads),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
