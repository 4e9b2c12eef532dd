"""The gates of DreamerV2's core: norm over all three gates together, then the new deter.

p = norm(pre) = [reset | cand | update],  out as in `gates`

pre     [M, 3D]         with the sums that `block_product` stored of it in tiles of `tile`
deter   [M, D]          rows may be any distance apart
out     [M, D]          written
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.gates import gated
from fastdream.ops.triton.layers import activate
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.rowwise import moments, normalize_tile, row_tiles

BM, BD = 4, 256  # rows and columns of deter of a program


@triton.jit
def _gate(pre, s_pre, scale, shift, b_mean, b_rstd, o_row, o_n, m_x, m_n, ACT: tl.constexpr):
    b_x = tl.load(pre + o_row[:, None] * s_pre + o_n[None, :], mask=m_x, other=0.0)
    return activate(normalize_tile(b_x, b_mean, b_rstd, scale, shift, o_n, m_n), ACT)


@triton.jit(do_not_specialize=["M"])
def dense_gates_kernel(
    pre,  # [M, 3D]
    sums,  # [planes, tiles, M] or None
    scale,  # [3D] or None
    shift,  # [3D] or None
    deter,  # [M, D]
    reset,  # [M] or None
    out,  # [M, D]
    M,
    eps,
    s_deter,
    s_out,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    o_row = o_m.to(tl.int64)
    m_d = o_d < D
    m_x = (o_m < M)[:, None] & m_d[None, :]
    b_mean, b_rstd = moments(sums, o_m, M, eps, 3 * D, 3 * D, TILE, BT, NORM)

    b_r = _gate(pre, 3 * D, scale, shift, b_mean, b_rstd, o_row, o_d, m_x, m_d, ACT)
    b_c = _gate(pre, 3 * D, scale, shift, b_mean, b_rstd, o_row, o_d + D, m_x, m_d, ACT)
    b_u = _gate(pre, 3 * D, scale, shift, b_mean, b_rstd, o_row, o_d + 2 * D, m_x, m_d, ACT)
    m_old = m_x
    if reset is not None:
        m_old = m_x & (tl.load(reset + o_row, mask=o_m < M, other=1) == 0)[:, None]
    b_deter = tl.load(deter + o_row[:, None] * s_deter + o_d[None, :], mask=m_old, other=0.0).to(tl.float32)
    b_out = gated(b_r, b_c, b_u, b_deter)
    tl.store(out + o_row[:, None] * s_out + o_d[None, :], b_out.to(out.dtype.element_ty), mask=m_x)


def dense_gates(
    pre: Tensor,
    sums: Tensor | None,
    layer: Layer,
    deter: Tensor,
    reset: Tensor | None,
    out: Tensor,
    tile: int,
) -> None:
    """Compute `out` as above. layer: of the gates."""
    rows, width = deter.shape
    launch(
        dense_gates_kernel,
        (triton.cdiv(rows, BM), triton.cdiv(width, BD)),
        pre,
        sums,
        layer.scale,
        layer.shift,
        deter,
        reset,
        out,
        rows,
        layer.eps,
        deter.stride(0),
        out.stride(0),
        D=width,
        NORM=layer.norm,
        ACT=layer.act,
        TILE=tile,
        BT=power_of_two(row_tiles(3 * width, 3 * width, tile)),
        BM=BM,
        BD=BD,
        num_warps=4,
    )
