"""The gates of DreamerV2's core: norm over all three gates together, then the new deter.

p = act(norm(pre)) = [reset | cand | update],  out as in `gates`

pre     [M, 3D]         with the sums that `block_product` stored of it in tiles of `tile`
deter   [M, D]          rows where reset [M] bool is True count as zero; reset may be None
out     [M, D]          written
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.gates import gated
from fastdream.ops.triton.grids import place_of
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import moments, normalize_tile, row_tiles

BM, BN = 4, 128  # rows and columns of deter of a program


@triton.jit
def load_gate(
    pre,  # [M, N]
    scale,  # [N] or None
    shift,  # [N] or None
    b_mean,  # [BM]
    b_rstd,  # [BM]
    o_row,  # [BM] int64
    o_n,  # [BN]
    m_m,  # [BM]
    m_n,  # [BN]
    s_pre,
    ACT: tl.constexpr,
):
    """act(norm(pre)) of these columns, float32."""
    p_pre = pre + o_row[:, None] * s_pre + o_n[None, :]
    b_x = tl.load(p_pre, mask=m_m[:, None] & m_n[None, :], other=0.0)
    return activate(normalize_tile(b_x, b_mean, b_rstd, scale, shift, o_n, m_n), ACT)


@triton.jit(do_not_specialize=["M"])
def dense_gates_kernel(
    pre,  # [M, 3*D]
    sums,  # [tiles, planes, M] or None
    scale,  # [3*D] or None
    shift,  # [3*D] or None
    deter,  # [M, D]
    reset,  # [M] or None
    out,  # [M, D]
    M,
    eps,
    s_pre,
    s_deter,
    s_reset,
    s_out,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    i_m, i_n = place_of(D, BN)
    o_m, o_n = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN)
    o_row = o_m.to(tl.int64)
    m_m, m_n = o_m < M, o_n < D
    b_mean, b_rstd = moments(sums, o_m, M, eps, 3 * D, 3 * D, TILE, BT, NORM)
    b_r = load_gate(pre, scale, shift, b_mean, b_rstd, o_row, o_n, m_m, m_n, s_pre, ACT)
    b_c = load_gate(pre, scale, shift, b_mean, b_rstd, o_row, D + o_n, m_m, m_n, s_pre, ACT)
    b_u = load_gate(pre, scale, shift, b_mean, b_rstd, o_row, 2 * D + o_n, m_m, m_n, s_pre, ACT)
    m_old = m_m
    if reset is not None:
        m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
    p_deter = deter + o_row[:, None] * s_deter + o_n[None, :]
    b_deter = tl.load(p_deter, mask=m_old[:, None] & m_n[None, :], other=0.0).to(tl.float32)
    b_out = gated(b_r, b_c, b_u, b_deter).to(out.dtype.element_ty)
    tl.store(out + o_row[:, None] * s_out + o_n[None, :], b_out, mask=m_m[:, None] & m_n[None, :])


def dense_gates(
    pre: Tensor,
    sums: Tensor | None,
    layer: Layer,
    deter: Tensor,
    reset: Tensor | None,
    out: Tensor,
    tile: int,
) -> None:
    """Compute `out` as above. layer: the gates'."""
    rows, width = deter.shape
    launch(
        dense_gates_kernel,
        (triton.cdiv(width, BN) * triton.cdiv(rows, BM),),
        pre,
        sums,
        layer.scale,
        layer.shift,
        deter,
        reset,
        out,
        rows,
        layer.eps,
        pre.stride(0),
        deter.stride(0),
        0 if reset is None else reset.stride(0),
        out.stride(0),
        D=width,
        NORM=layer.norm,
        ACT=layer.act,
        TILE=tile,
        BT=power_of_two(row_tiles(3 * width, 3 * width, tile)),
        BM=BM,
        BN=BN,
        num_warps=4,
    )
