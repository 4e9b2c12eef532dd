"""The hidden layer of a block core for many rows: as `block_product`, whose names these are, normed and activated.

    out = act(norm(base + deter^(k) W^(k) + x V^(k)))

The norm is over all of a row, of which a program has a tile: programs of the same rows wait for one another's sums, and
each norms the tile that it still has. Else whoever reads the row would norm it again, as often as it computes tiles of
columns, and tensor cores would wait for it. Programs of the same rows are numbered one after the other, and so run at
the same time on any GPU that begins programs in their order; where none do, the norm is a launch of its own.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles, products
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import moments, normalize_tile, row_tiles, store_sums

LINE = tl.constexpr(32)  # counters in a cache line


@triton.jit(do_not_specialize=["M"])
def normed_product_kernel(
    deter,  # [M, G*K]
    own,  # [G, K, N]
    x,  # [M, X]
    shared,  # [G, X, N]
    bias,  # [G*N] or None
    out,  # [M, G*N]
    sums,  # [tiles, planes, M] or None
    arrived,  # [tiles of rows, LINE], a multiple of a tile's programs: how many ever stored their sums
    scale,  # [G*N] or None
    shift,  # [G*N] or None
    M,
    eps,
    s_deter,
    s_x,
    s_out,
    s_g,
    s_k,
    s_n,
    G: tl.constexpr,
    K: tl.constexpr,
    X: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    MULTIPLY: tl.constexpr,
    NORMALIZE: tl.constexpr,  # else out is what is normed
    PDL: tl.constexpr,
):
    begin(PDL)
    i_n, i_g, i_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < N
    o_row, o_out = o_m.to(tl.int64), i_g * N + o_n
    p_out = out + o_row[:, None] * s_out + o_out[None, :]
    m_out = m_m[:, None] & m_n[None, :]
    if MULTIPLY:
        b_none = tl.zeros([BM], tl.float32)
        b_out = products(
            deter, m_m, own, x, m_m, shared, b_none, b_none, None, None, s_deter, s_x, s_g, s_k, s_n,
            i_g, o_row, o_n, m_n, K, X, "none", "none", BK
        )  # fmt: skip
        if bias is not None:
            b_out += tl.load(bias + o_out, mask=m_n, other=0.0).to(tl.float32)[None, :]
        b_out = b_out.to(out.dtype.element_ty)
        store_sums(sums, b_out.to(tl.float32), m_n, i_g * tl.num_programs(0) + i_n, o_m, M, NORM)
    else:
        b_out = tl.load(p_out, mask=m_out, other=0.0)
    if NORMALIZE:
        if MULTIPLY and NORM != "none":
            meet(arrived + i_m * LINE, G * tl.num_programs(0))
        b_mean, b_rstd = moments(sums, o_m, M, eps, G * N, N, BN, BT, NORM)
        b_out = activate(normalize_tile(b_out, b_mean, b_rstd, scale, shift, o_out, m_n), ACT)
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def meet(arrived, PROGRAMS):
    """Wait until so many programs are here, all of which see what the others wrote before."""
    tl.debug_barrier()
    before = tl.atomic_add(arrived, 1, sem="release", scope="gpu")
    all_of_them = (before // PROGRAMS + 1) * PROGRAMS
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < all_of_them:
        pass
    tl.debug_barrier()


def normed_product(
    deter: Tensor,
    own: Tensor,
    x: Tensor,
    shared: Tensor,
    layer: Layer,
    out: Tensor,
    sums: Tensor | None,
    arrived: Tensor,
    tiles: Tiles,
    together: bool,
) -> None:
    """Compute `out`. layer: whose bias, norm and activation these are. together: in one launch."""
    (blocks, depth, width), rows = own.shape, len(deter)
    assert shared.stride() == own.stride(), "W and V differ in strides"
    for multiply, normalize in ((True, True),) if together else ((True, False), (False, True)):
        launch(
            normed_product_kernel,
            (triton.cdiv(width, tiles.n), blocks, triton.cdiv(rows, tiles.m)),
            deter,
            own,
            x,
            shared,
            layer.bias,
            out,
            sums,
            arrived,
            layer.scale,
            layer.shift,
            rows,
            layer.eps,
            deter.stride(0),
            x.stride(0),
            out.stride(0),
            *own.stride(),
            G=blocks,
            K=depth,
            X=x.shape[1],
            N=width,
            NORM=layer.norm,
            ACT=layer.act,
            BT=power_of_two(row_tiles(blocks * width, width, tiles.n)),
            BM=tiles.m,
            BN=tiles.n,
            BK=tiles.k,
            MULTIPLY=multiply,
            NORMALIZE=normalize,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
