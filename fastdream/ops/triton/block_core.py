"""A step of a block core for many rows, in stages that may be one launch: names as in `block_product` and `gates`.

product     hidden = base + deter^(k) W^(k) + x V^(k), with sums of its rows
norm        hidden = act(norm(hidden)), each program its own tile, which it still has
gates       out, each program for those columns of deter that its tile of hidden had

The norm is over all of a row, and the gates read all of a block: programs of the same rows wait for one another before
the norm, those of the same rows and block before the gates. If whoever reads a row normed it, it would be as often as
there are tiles of columns, and tensor cores would wait for it. Programs that wait for one another are numbered one
after the other, and so run at the same time on any GPU that begins them in their order; where none do, a stage is a
launch.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles, products
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.gates import write_gates
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import moments, normalize_tile, row_tiles, store_sums

STAGES = 3  # of the gates' loop
LINE = tl.constexpr(32)  # counters in a cache line: one for the norm, one for each block's gates


@triton.jit
def meet(arrived, PROGRAMS):
    """Wait until so many programs are here, all of which see what the others wrote before.

    arrived counts all that ever came, and is a multiple of them when the kernel begins.
    """
    tl.debug_barrier()
    before = tl.atomic_add(arrived, 1, sem="release", scope="gpu")
    all_of_them = (before // PROGRAMS + 1) * PROGRAMS
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < all_of_them:
        pass
    tl.debug_barrier()


@triton.jit(do_not_specialize=["M"])
def block_core_kernel(
    deter,  # [M, G*P]
    own,  # [G, P, P]
    x,  # [M, X]
    shared,  # [G, X, P]
    in_bias,  # [G*P] or None
    hidden,  # [M, G*P]
    sums,  # [tiles, planes, M] or None
    arrived,  # [tiles of rows, LINE] zeros at the first launch of all
    scale,  # [G*P] or None
    shift,  # [G*P] or None
    weight,  # [G, P, 3*P]
    bias,  # [G*3*P] or None
    out,  # [M, G*P]
    M,
    eps,
    s_deter,
    s_x,
    s_out,
    s_ig,
    s_ik,
    s_in,
    s_g,
    s_k,
    s_n,
    G: tl.constexpr,
    P: tl.constexpr,
    X: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,  # columns of hidden, and of deter
    BN: tl.constexpr,  # columns of gates at a time
    BK: tl.constexpr,
    DEEP: tl.constexpr,  # stages of the gates' loop
    FIRST: tl.constexpr,  # stage
    END: tl.constexpr,  # stage that is not computed any more
    PDL: tl.constexpr,
):
    begin(PDL)
    i_h, i_g, i_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BM + tl.arange(0, BM)
    o_p = i_h * BH + tl.arange(0, BH)
    m_m, m_p = o_m < M, o_p < P
    o_row, o_h = o_m.to(tl.int64), i_g * P + o_p
    p_hidden = hidden + o_row[:, None] * (G * P) + o_h[None, :]
    m_hidden = m_m[:, None] & m_p[None, :]
    if FIRST == 0:
        b_none = tl.zeros([BM], tl.float32)
        b_h = products(
            deter, m_m, own, x, m_m, shared, b_none, b_none, None, None, s_deter, s_x, s_ig, s_ik, s_in,
            i_g, o_row, o_p, m_p, P, X, "none", "none", BK
        )  # fmt: skip
        if in_bias is not None:
            b_h += tl.load(in_bias + o_h, mask=m_p, other=0.0).to(tl.float32)[None, :]
        b_h = b_h.to(hidden.dtype.element_ty)
        store_sums(sums, b_h.to(tl.float32), m_p, i_g * tl.num_programs(0) + i_h, o_m, M, NORM)
        if END == 1:
            tl.store(p_hidden, b_h, mask=m_hidden)
    if FIRST <= 1 and END > 1:
        if FIRST == 1:
            b_h = tl.load(p_hidden, mask=m_hidden, other=0.0)
        elif NORM != "none":
            meet(arrived + i_m * LINE, G * tl.num_programs(0))
        b_mean, b_rstd = moments(sums, o_m, M, eps, G * P, P, BH, BT, NORM)
        b_h = activate(normalize_tile(b_h, b_mean, b_rstd, scale, shift, o_h, m_p), ACT)
        tl.store(p_hidden, b_h.to(hidden.dtype.element_ty), mask=m_hidden)
    if END > 2:
        if FIRST < 2:
            meet(arrived + i_m * LINE + 1 + i_g, tl.num_programs(0))
        STEPS: tl.constexpr = (P + BK - 1) // BK
        b_r = tl.zeros([BM, BN], tl.float32)
        b_c = tl.zeros([BM, BN], tl.float32)
        b_u = tl.zeros([BM, BN], tl.float32)
        # One loop over all tiles of columns, so that the next one's weights are on their way while this one ends.
        for i in tl.range(0, BH // BN * STEPS, num_stages=DEEP):
            o_n = i_h * BH + i // STEPS * BN + tl.arange(0, BN)
            o_k = i % STEPS * BK + tl.arange(0, BK)
            m_n, m_k = o_n < P, o_k < P
            p_y = hidden + o_row[:, None] * (G * P) + (i_g * P + o_k)[None, :]
            p_w = weight + i_g * s_g + o_k[:, None] * s_k + o_n[None, :] * s_n
            m_w = m_k[:, None] & m_n[None, :]
            b_y = tl.load(p_y, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_r = tl.dot(b_y, tl.load(p_w, mask=m_w, other=0.0), b_r, input_precision="ieee")
            b_c = tl.dot(b_y, tl.load(p_w + P * s_n, mask=m_w, other=0.0), b_c, input_precision="ieee")
            b_u = tl.dot(b_y, tl.load(p_w + 2 * P * s_n, mask=m_w, other=0.0), b_u, input_precision="ieee")
            if i % STEPS == STEPS - 1:
                if bias is not None:
                    p_bias = bias + i_g * 3 * P + o_n
                    b_r += tl.load(p_bias, mask=m_n, other=0.0).to(tl.float32)[None, :]
                    b_c += tl.load(p_bias + P, mask=m_n, other=0.0).to(tl.float32)[None, :]
                    b_u += tl.load(p_bias + 2 * P, mask=m_n, other=0.0).to(tl.float32)[None, :]
                p_deter = deter + o_row[:, None] * s_deter + (i_g * P + o_n)[None, :]
                b_deter = tl.load(p_deter, mask=m_m[:, None] & m_n[None, :], other=0.0).to(tl.float32)
                write_gates(b_r, b_c, b_u, b_deter, out, None, s_out, 0, o_row, m_m, o_n, m_n, i_g, P)
                b_r = tl.zeros([BM, BN], tl.float32)
                b_c = tl.zeros([BM, BN], tl.float32)
                b_u = tl.zeros([BM, BN], tl.float32)


def block_core(
    deter: Tensor,
    x: Tensor,
    layer: Layer,
    gates: Layer,
    hidden: Tensor,
    sums: Tensor | None,
    arrived: Tensor,
    out: Tensor,
    tiles: Tiles,
    columns: int,
    together: bool,
) -> None:
    """Compute `out` [M, D] of the hidden layer, `gates` and deter. hidden [M, D], without gaps: written.

    columns: of the gates, at a time; tiles are those of the product. together: in one launch.
    """
    (blocks, block, _), rows = gates.weight.shape, len(deter)
    own, shared = layer.weight[:, :block], layer.weight[:, block:]
    for first, end in ((0, 3),) if together else ((0, 1), (1, 2), (2, 3)):
        launch(
            block_core_kernel,
            (triton.cdiv(block, tiles.n), blocks, triton.cdiv(rows, tiles.m)),
            deter,
            own,
            x,
            shared,
            layer.bias,
            hidden,
            sums,
            arrived,
            layer.scale,
            layer.shift,
            gates.weight,
            gates.bias,
            out,
            rows,
            layer.eps,
            deter.stride(0),
            x.stride(0),
            out.stride(0),
            *own.stride(),
            *gates.weight.stride(),
            G=blocks,
            P=block,
            X=x.shape[1],
            NORM=layer.norm,
            ACT=layer.act,
            BT=power_of_two(row_tiles(blocks * block, block, tiles.n)),
            BM=tiles.m,
            BH=tiles.n,
            BN=columns,
            BK=tiles.k,
            DEEP=STAGES,
            FIRST=first,
            END=end,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
