"""Back through a step's new deter in DreamerV1's or PlaNet's core, to the gates and to the old deter, of what was kept.

d_deter = given + carry + d_hidden V1        d_gates [M, 4D] of cand | reset | update | h, as `gru` has them
                                             of `planet` cand and update alone: next comes `reset_gradient`
carry = u * d_deter, zero where reset; what comes through the products with deter is added by `state_gradient`
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.gates_gradient import through_layer
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.rowwise import row_tiles
from fastdream.ops.triton.rowwise_gradient import Later


@triton.jit(do_not_specialize=["M"])
def gru_gradient_kernel(
    given,  # [M, D] or None
    carry,  # [M, D]
    stacked,  # [U, D]
    hidden_scale,  # [U] or None
    hidden_dn,  # [M, U]
    hidden,  # [M, U]
    hidden_sums,  # [tiles, planes, M] or None
    hidden_dots,  # [tiles, planes, M] or None
    reset,  # [M]
    gates,  # [M, 4*D]
    deter,  # [M, D], the old one
    d_gates,  # [M, 4*D] or [M, 3*D]
    s_hidden_dn,
    s_hidden,
    s_reset,
    M,
    hidden_eps,
    s_given,
    s_gates,
    s_deter,
    s_d,
    D: tl.constexpr,
    AFTER: tl.constexpr,  # the reset gate comes after its product
    U: tl.constexpr,
    HIDDEN_NORM: tl.constexpr,
    HIDDEN_TILE: tl.constexpr,
    HIDDEN_BT: tl.constexpr,
    HIDDEN_TILES: tl.constexpr,
    HIDDEN_BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < D
    m_x = m_m[:, None] & m_n[None, :]
    m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
    p_carry = carry + o_row[:, None] * D + o_n[None, :]
    b_d = tl.load(p_carry, mask=m_x, other=0.0, cache_modifier=".cg")
    if given is not None:
        p_given = given + o_row[:, None] * s_given + o_n[None, :]
        b_d += tl.load(p_given, mask=m_x, other=0.0).to(tl.float32)
    p_old = deter + o_row[:, None] * s_deter + o_n[None, :]
    b_old = tl.load(p_old, mask=m_old[:, None] & m_n[None, :], other=0.0).to(tl.float32)
    p_gates = gates + o_row[:, None] * s_gates + o_n[None, :]
    b_c = tanh(tl.load(p_gates, mask=m_x, other=0.0).to(tl.float32))
    b_u = tl.sigmoid(tl.load(p_gates + 2 * D, mask=m_x, other=0.0).to(tl.float32))
    if AFTER:
        b_r = tl.sigmoid(tl.load(p_gates + D, mask=m_x, other=0.0).to(tl.float32))
        b_h = tl.load(p_gates + 3 * D, mask=m_x, other=0.0).to(tl.float32)
    b_d += through_layer(
        stacked,
        hidden_dn,
        hidden,
        hidden_sums,
        hidden_dots,
        hidden_scale,
        hidden_eps,
        o_m,
        m_m,
        o_n,
        m_n,
        s_hidden_dn,
        s_hidden,
        M,
        U,
        D,
        HIDDEN_NORM,
        HIDDEN_TILE,
        HIDDEN_BT,
        HIDDEN_TILES,
        HIDDEN_BD,
        BK,
        KS,
        PDL,
    )
    b_dc = b_d * (1 - b_u) * (1 - b_c * b_c)
    b_du = b_d * (b_old - b_c) * b_u * (1 - b_u)
    tl.store(p_carry, tl.where(m_old[:, None], b_d * b_u, 0.0), mask=m_x)
    DTYPE: tl.constexpr = d_gates.dtype.element_ty
    p_d = d_gates + o_row[:, None] * s_d + o_n[None, :]
    tl.store(p_d, b_dc.to(DTYPE), mask=m_x)
    tl.store(p_d + 2 * D, b_du.to(DTYPE), mask=m_x)
    if AFTER:
        tl.store(p_d + D, (b_dc * b_h * b_r * (1 - b_r)).to(DTYPE), mask=m_x)
        tl.store(p_d + 3 * D, (b_dc * b_r).to(DTYPE), mask=m_x)


def gru_gradient(
    given: Tensor | None,
    carry: Tensor,
    stacked: Tensor,
    first: Layer,
    hidden: Later,
    hidden_tile: int,
    gates: Tensor,
    deter: Tensor,
    d_gates: Tensor,
    tiles: Tiles,
    after: bool,
) -> None:
    """Write d_gates and carry as above. after: whether the reset gate comes after its product.

    first, hidden, hidden_tile: the posterior's first layer, its description with the reset of this step, and the tile
    of its sums.
    """
    rows, width = carry.shape
    units = hidden.x.shape[1]
    launch(
        gru_gradient_kernel,
        (triton.cdiv(width, tiles.n), triton.cdiv(rows, tiles.m)),
        given,
        carry,
        stacked,
        first.scale,
        *hidden,
        gates,
        deter,
        d_gates,
        *hidden.strides(),
        rows,
        first.eps,
        0 if given is None else given.stride(0),
        gates.stride(0),
        deter.stride(0),
        d_gates.stride(0),
        D=width,
        AFTER=after,
        U=units,
        HIDDEN_NORM=first.norm,
        HIDDEN_TILE=hidden_tile,
        HIDDEN_BT=power_of_two(row_tiles(units, units, hidden_tile)),
        HIDDEN_TILES=hidden.tiles(),
        HIDDEN_BD=power_of_two(hidden.tiles()),
        BM=tiles.m,
        BN=tiles.n,
        BK=min(tiles.k, power_of_two(max(16 * tiles.warps, units))),
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
