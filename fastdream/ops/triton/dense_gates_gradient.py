"""Back through a step's new deter in DreamerV2's core: as `gates_gradient`, and on through the norm of all gates.

d_deter = given + carry + d_hidden V1        d_n [M, 3D] of the gates, with dots in tiles of `tiles.n` of each gate
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.dense_gates import load_gate
from fastdream.ops.triton.gates_gradient import gate_gradients, through_layer
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.rowwise import load_vector, moments, row_tiles
from fastdream.ops.triton.rowwise_gradient import Later, load_hat, store_gradient


@triton.jit(do_not_specialize=["M"])
def dense_gates_gradient_kernel(
    given,  # [M, D] or None
    carry,  # [M, D]
    stacked,  # [U, D]
    hidden_scale,  # [U] or None
    hidden_dn,  # [M, U]
    hidden,  # [M, U]
    hidden_sums,  # [tiles, planes, M] or None
    hidden_dots,  # [tiles, planes, M] or None
    reset,  # [M]
    pre,  # [M, 3*D]
    sums,  # [tiles, planes, M] or None
    scale,  # [3*D] or None
    shift,  # [3*D] or None
    deter,  # [M, D], the old one
    d_n,  # [M, 3*D]
    dots,  # [tiles, planes, M] or None
    s_hidden_dn,
    s_hidden,
    s_reset,
    M,
    hidden_eps,
    eps,
    s_given,
    s_pre,
    s_deter,
    s_d,
    D: tl.constexpr,
    U: tl.constexpr,
    HIDDEN_NORM: tl.constexpr,
    HIDDEN_TILE: tl.constexpr,
    HIDDEN_BT: tl.constexpr,
    HIDDEN_TILES: tl.constexpr,
    HIDDEN_BD: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    o_n = i_n * BN + tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < D
    m_x = m_m[:, None] & m_n[None, :]
    m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
    p_carry = carry + o_row[:, None] * D + o_n[None, :]
    b_d = tl.load(p_carry, mask=m_x, other=0.0, cache_modifier=".cg")
    if given is not None:
        p_given = given + o_row[:, None] * s_given + o_n[None, :]
        b_d += tl.load(p_given, mask=m_x, other=0.0).to(tl.float32)
    b_old = tl.load(deter + o_row[:, None] * s_deter + o_n[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_old = tl.where(m_old[:, None], b_old, 0.0)
    b_mean, b_rstd = moments(sums, o_m, M, eps, 3 * D, 3 * D, TILE, BT, NORM)
    b_r = load_gate(pre, scale, shift, b_mean, b_rstd, o_row, o_n, m_m, m_n, s_pre, ACT)
    b_c = load_gate(pre, scale, shift, b_mean, b_rstd, o_row, D + o_n, m_m, m_n, s_pre, ACT)
    b_u = load_gate(pre, scale, shift, b_mean, b_rstd, o_row, 2 * D + o_n, m_m, m_n, s_pre, ACT)
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
    b_dr, b_dc, b_du, b_carry = gate_gradients(b_d, b_r, b_c, b_u, b_old)
    b_carry = tl.where(m_old[:, None], b_carry, 0.0)
    tl.store(p_carry, b_carry, mask=m_x)
    n = tl.num_programs(0)
    for i_gate in tl.static_range(3):
        b_grad = b_dr if i_gate == 0 else (b_dc if i_gate == 1 else b_du)
        o_g = i_gate * D + o_n
        b_hat = load_hat(pre, sums, o_m, o_g, m_n, M, eps, s_pre, 3 * D, 3 * D, TILE, BT, NORM)
        b_scale, b_shift = load_vector(scale, o_g, m_n, 1.0), load_vector(shift, o_g, m_n, 0.0)
        store_gradient(
            b_grad, b_hat, b_scale, b_shift, d_n, dots, i_gate * n + i_n, o_m, o_g, m_n, M, s_d, NORM, ACT
        )


def dense_gates_gradient(
    given: Tensor | None,
    carry: Tensor,
    stacked: Tensor,
    first: Layer,
    hidden: Later,
    hidden_tile: int,
    gates: Layer,
    pre: Tensor,
    sums: Tensor | None,
    tile: int,
    deter: Tensor,
    d_n: Tensor,
    dots: Tensor | None,
    tiles: Tiles,
) -> None:
    """Write d_n, dots and carry as above.

    first, hidden, hidden_tile: the posterior's first layer, its description with the reset of this step, and the tile
    of its sums. gates, pre, sums, tile: the layer of the gates and its pre-activations.
    """
    rows, width = carry.shape
    units = hidden.x.shape[1]
    launch(
        dense_gates_gradient_kernel,
        (triton.cdiv(width, tiles.n), triton.cdiv(rows, tiles.m)),
        given,
        carry,
        stacked,
        first.scale,
        *hidden,
        pre,
        sums,
        gates.scale,
        gates.shift,
        deter,
        d_n,
        dots,
        *hidden.strides(),
        rows,
        first.eps,
        gates.eps,
        0 if given is None else given.stride(0),
        pre.stride(0),
        deter.stride(0),
        d_n.stride(0),
        D=width,
        U=units,
        HIDDEN_NORM=first.norm,
        HIDDEN_TILE=hidden_tile,
        HIDDEN_BT=power_of_two(row_tiles(units, units, hidden_tile)),
        HIDDEN_TILES=hidden.tiles(),
        HIDDEN_BD=power_of_two(hidden.tiles()),
        NORM=gates.norm,
        ACT=gates.act,
        TILE=tile,
        BT=power_of_two(row_tiles(3 * width, 3 * width, tile)),
        BM=tiles.m,
        BN=tiles.n,
        BK=min(tiles.k, power_of_two(max(16 * tiles.warps, units))),
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
