"""Back through a step's new deter: all gradients of it come together, and go on to the gates and to the old deter.

    d_deter = given + carry + d_hidden V1 + d_own V2
    d_gates [M, 3D] in the layout of gates,  carry = (1 - u) * d_deter, zero where reset

d_hidden is the gradient of the posterior's first layer, d_own that of the core's own layer at the next step (None after
the last one; rows where its reset is True add nothing). Both are made of d_n and dots, see `rowwise_gradient`.

    stacked  [own + H, D]  V1 in its first rows, V2 from row `own`
    carry    [M, D] float32, of the step after; overwritten with that of this step
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import load_planes, moments, row_tiles
from fastdream.ops.triton.rowwise_gradient import Later, gradient_inputs, hat_inputs, means_of
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    split_inputs,
    sum_parts,
    vector_inputs,
)


@triton.jit
def gate_gradients(b_d, b_reset, b_cand, b_update, b_deter):
    """Of reset, cand, update and the old deter, where b_d is the new deter's; all float32."""
    b_r, b_u = tl.sigmoid(b_reset), tl.sigmoid(b_update - 1)
    b_c = tanh(b_r * b_cand)
    b_dc = b_d * b_u * (1 - b_c * b_c)
    b_du = b_d * (b_c - b_deter) * b_u * (1 - b_u)
    return b_dc * b_cand * b_r * (1 - b_r), b_dc * b_r, b_du, b_d * (1 - b_u)


@triton.jit
def through_layer(
    weight,  # [K, columns], rows N apart
    d_n,  # [M, K], and the rest as of a `Later`
    x,
    sums,
    dots,
    scale,
    eps,
    o_m,  # [BM]
    m_m,  # [BM], rows that add something
    o_n,  # [BN]
    m_n,  # [BN]
    s_dn,
    s_x,
    M,
    K: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    TILES: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The gradient of a layer's pre-activations times its weight, [BM, BN]. PDL: d_n and dots are new."""
    o_row = o_m.to(tl.int64)
    o_k = split_inputs(0, BK, KS)
    b_w = load_weights(weight, o_k, o_k < K, o_n, m_n, N, 1)
    b_mean, b_rstd = moments(sums, o_m, M, eps, K, K, TILE, BT, NORM)
    b_hat = hat_inputs(x, b_mean, b_rstd, o_row, m_m, o_k, o_k < K, s_x, NORM)
    b_scale = vector_inputs(scale, o_k, o_k < K, 1.0)
    begin(PDL)
    b_dots, b_sums = load_planes(dots, o_m, M, TILES, BD, NORM, True)
    b_d = load_inputs(d_n, o_row, m_m, o_k, o_k < K, s_dn)
    b_dot, b_sum = means_of(b_dots, b_sums, K, NORM)
    b_g = gradient_inputs(b_d, b_hat, b_scale, b_rstd, b_dot, b_sum, m_m, o_k < K, NORM)
    b_out = add_product(None, b_g, b_w)
    for i_k in range(BK, K, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < K
        b_hat = hat_inputs(x, b_mean, b_rstd, o_row, m_m, o_k, m_k, s_x, NORM)
        b_d, b_scale = load_inputs(d_n, o_row, m_m, o_k, m_k, s_dn), vector_inputs(scale, o_k, m_k, 1.0)
        b_g = gradient_inputs(b_d, b_hat, b_scale, b_rstd, b_dot, b_sum, m_m, m_k, NORM)
        b_w = load_weights(weight, o_k, m_k, o_n, m_n, N, 1)
        b_out = add_product(b_out, b_g, b_w)
    return sum_parts(b_out)


@triton.jit(do_not_specialize=["M"])
def block_gates_gradient_kernel(
    given,  # [M, G*P] or None
    carry,  # [M, G*P]
    stacked,  # [OWN + H, G*P]
    hidden_scale,  # [U] or None
    hidden_dn,  # [M, U]
    hidden,  # [M, U]
    hidden_sums,  # [tiles, planes, M] or None
    hidden_dots,  # [tiles, planes, M] or None
    reset,  # [M]
    own_scale,  # [H] or None
    own_dn,  # [M, H] or None
    own,  # [M, H]
    own_sums,  # [1, planes, M] or None
    own_dots,  # [tiles, planes, M] or None
    own_reset,  # [M]
    gates,  # [M, G*3*P]
    deter,  # [M, G*P], the old one
    d_gates,  # [M, G*3*P]
    s_hidden_dn,
    s_hidden,
    s_reset,
    s_own_dn,
    s_own,
    s_own_reset,
    M,
    hidden_eps,
    own_eps,
    s_given,
    s_gates,
    s_deter,
    s_d,
    G: tl.constexpr,
    P: tl.constexpr,
    U: tl.constexpr,
    H: tl.constexpr,
    OWN: tl.constexpr,
    HIDDEN_NORM: tl.constexpr,
    HIDDEN_TILE: tl.constexpr,
    HIDDEN_BT: tl.constexpr,
    HIDDEN_TILES: tl.constexpr,
    HIDDEN_BD: tl.constexpr,
    OWN_NORM: tl.constexpr,
    OWN_TILES: tl.constexpr,
    OWN_BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_n, i_g, i_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    o_n = i_n * BN + tl.arange(0, BN)
    o_d = i_g * P + o_n
    m_m, m_n = o_m < M, o_n < P
    m_x = m_m[:, None] & m_n[None, :]
    m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
    p_carry = carry + o_row[:, None] * (G * P) + o_d[None, :]
    b_d = tl.load(p_carry, mask=m_x, other=0.0, cache_modifier=".cg")
    if given is not None:
        p_given = given + o_row[:, None] * s_given + o_d[None, :]
        b_d += tl.load(p_given, mask=m_x, other=0.0).to(tl.float32)
    o_p = o_row[:, None] * s_gates + (i_g * 3 * P + o_n)[None, :]
    b_r = tl.load(gates + o_p, mask=m_x, other=0.0).to(tl.float32)
    b_c = tl.load(gates + o_p + P, mask=m_x, other=0.0).to(tl.float32)
    b_u = tl.load(gates + o_p + 2 * P, mask=m_x, other=0.0).to(tl.float32)
    b_old = tl.load(deter + o_row[:, None] * s_deter + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_old = tl.where(m_old[:, None], b_old, 0.0)
    if own_dn is not None:
        # Of the step after: written before the kernel before began.
        m_kept = m_m & (tl.load(own_reset + o_row * s_own_reset, mask=m_m, other=1) == 0)
        b_d += through_layer(
            stacked + OWN * G * P,
            own_dn,
            own,
            own_sums,
            own_dots,
            own_scale,
            own_eps,
            o_m,
            m_kept,
            o_d,
            m_n,
            s_own_dn,
            s_own,
            M,
            H,
            G * P,
            OWN_NORM,
            H,
            1,
            OWN_TILES,
            OWN_BD,
            BK,
            KS,
            False,
        )
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
        o_d,
        m_n,
        s_hidden_dn,
        s_hidden,
        M,
        U,
        G * P,
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
    o_p = o_row[:, None] * s_d + (i_g * 3 * P + o_n)[None, :]
    tl.store(d_gates + o_p, b_dr.to(d_gates.dtype.element_ty), mask=m_x)
    tl.store(d_gates + o_p + P, b_dc.to(d_gates.dtype.element_ty), mask=m_x)
    tl.store(d_gates + o_p + 2 * P, b_du.to(d_gates.dtype.element_ty), mask=m_x)
    b_carry = tl.where(m_old[:, None], b_carry, 0.0)
    tl.store(p_carry, b_carry, mask=m_x)


def block_gates_gradient(
    given: Tensor | None,
    carry: Tensor,
    stacked: Tensor,
    layers: tuple[Layer, Layer],
    hidden: Later,
    own: Later | None,
    at: int,
    gates: Tensor,
    deter: Tensor,
    d_gates: Tensor,
    blocks: int,
    tile: int,
    tiles: Tiles,
) -> None:
    """Write d_gates and carry as above.

    layers: the posterior's first and the core's own, of which hidden (with the reset of this step) and own are read.
    at: `own` above. tile: of the sums of hidden.
    """
    rows, width = carry.shape
    block, units = width // blocks, hidden.x.shape[1]
    first, core = layers
    hidden_tiles, own_tiles = hidden.tiles(), own.tiles() if own else 0
    launch(
        block_gates_gradient_kernel,
        (triton.cdiv(block, tiles.n), blocks, triton.cdiv(rows, tiles.m)),
        given,
        carry,
        stacked,
        first.scale,
        *hidden,
        core.scale,
        *(own or (None,) * 5),
        gates,
        deter,
        d_gates,
        *hidden.strides(),
        *(own.strides() if own else (0, 0, 0)),
        rows,
        first.eps,
        core.eps,
        0 if given is None else given.stride(0),
        gates.stride(0),
        deter.stride(0),
        d_gates.stride(0),
        G=blocks,
        P=block,
        U=units,
        H=len(stacked) - at,
        OWN=at,
        HIDDEN_NORM=first.norm,
        HIDDEN_TILE=tile,
        HIDDEN_BT=power_of_two(row_tiles(units, units, tile)),
        HIDDEN_TILES=hidden_tiles,
        HIDDEN_BD=power_of_two(hidden_tiles),
        OWN_NORM=core.norm,
        OWN_TILES=own_tiles,
        OWN_BD=power_of_two(own_tiles),
        BM=tiles.m,
        BN=tiles.n,
        BK=min(tiles.k, power_of_two(max(16 * tiles.warps, units, len(stacked) - at))),
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
