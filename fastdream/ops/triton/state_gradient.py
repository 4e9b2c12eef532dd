"""Back through a step's hidden layer to the state before it: to the old deter, and to the layers that read the state.

d^(k) = gradient of the hidden layer's pre-activations of block k, made of d_n and dots, see `rowwise_gradient`
carry^(k) += W^(k) d^(k), zero where reset        through activation and norm: x_dn of the sum over k of V^(k) d^(k)

W, V    [g, P, K] and [g, 2H, K] or [g, H, K], any strides
x_dn    [M, 2H] or [M, H] of the layers of deter and stoch, or of stoch's, with dots of each in tiles of `tiles.n`
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.rowwise import load_vector, moments, row_tiles
from fastdream.ops.triton.rowwise_gradient import (
    Later,
    load_hat,
    store_gradient,
)
from fastdream.ops.triton.through_blocks import through_blocks


@triton.jit(do_not_specialize=["M"])
def state_gradient_kernel(
    of_deter,  # [G, P, DEPTH]
    of_x,  # [G, LAYERS*H, K]
    scale,  # [G*K] or None
    d_n,  # [M, G*K], of which of_deter's are DEPTH of each block, from SKIPPED on
    hidden,  # [M, G*K]
    sums,  # [tiles, planes, M] or None
    dots,  # [tiles, planes, M] or None
    reset,  # [M]
    carry,  # [M, G*P] float32
    own,  # [M, H] or None
    own_scale,  # [H] or None
    own_shift,
    own_sums,  # [1, planes, M] or None
    own_dots,  # [tiles, planes, M] or None
    stoch,  # [M, H]
    stoch_scale,
    stoch_shift,
    stoch_sums,
    stoch_dots,
    x_dn,  # [M, LAYERS*H]
    s_dn,
    s_hidden,
    s_reset,
    M,
    eps,
    x_eps,
    s_own,
    s_stoch,
    s_x,
    s_g,
    s_r,
    s_k,
    s_xg,
    s_xr,
    s_xk,
    G: tl.constexpr,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    SKIPPED: tl.constexpr,
    NORM: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    TILES: tl.constexpr,
    BD: tl.constexpr,
    X_NORM: tl.constexpr,
    X_ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BX: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    m_m = o_m < M
    # First the tiles of the input layers, one after the other, which sum over all blocks, then those of every block.
    LAYERS: tl.constexpr = 1 if own is None else 2
    X_TILES: tl.constexpr = (H + BN - 1) // BN
    P_TILES: tl.constexpr = (P + BN - 1) // BN
    b_mean, b_rstd = moments(sums, o_m, M, eps, G * K, K, TILE, BT, NORM)
    if i_n < LAYERS * X_TILES:
        o_n = i_n % X_TILES * BN + tl.arange(0, BN)
        m_n = o_n < H
        b_hat, b_scale, b_shift, p_dots = (
            tl.zeros([BM, BN], tl.float32),
            tl.zeros([BN], tl.float32),
            tl.zeros([BN], tl.float32),
            stoch_dots,
        )
        if i_n >= (LAYERS - 1) * X_TILES:
            b_hat = load_hat(stoch, stoch_sums, o_m, o_n, m_n, M, x_eps, s_stoch, H, H, H, 1, X_NORM)
            b_scale, b_shift = (
                load_vector(stoch_scale, o_n, m_n, 1.0),
                load_vector(stoch_shift, o_n, m_n, 0.0),
            )
        # Decided while compiling: joined with what is known while running, both sides would be compiled.
        elif own is not None:
            b_hat = load_hat(own, own_sums, o_m, o_n, m_n, M, x_eps, s_own, H, H, H, 1, X_NORM)
            b_scale, b_shift = load_vector(own_scale, o_n, m_n, 1.0), load_vector(own_shift, o_n, m_n, 0.0)
            p_dots = own_dots
        b_out = through_blocks(
            of_x,
            scale,
            d_n,
            hidden,
            dots,
            b_mean,
            b_rstd,
            o_m,
            m_m,
            i_n // X_TILES * H + o_n,
            m_n,
            0,
            s_dn,
            s_hidden,
            M,
            s_xg,
            s_xr,
            s_xk,
            G,
            G,
            K,
            NORM,
            TILES,
            BD,
            BX,
            KS,
            PDL,
        )
        store_gradient(
            b_out,
            b_hat,
            b_scale,
            b_shift,
            x_dn + i_n // X_TILES * H,
            p_dots,
            i_n % X_TILES,
            o_m,
            o_n,
            m_n,
            M,
            s_x,
            X_NORM,
            X_ACT,
        )
    else:
        i_g, i_t = (i_n - LAYERS * X_TILES) // P_TILES, (i_n - LAYERS * X_TILES) % P_TILES
        o_n = i_t * BN + tl.arange(0, BN)
        m_n = o_n < P
        m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
        m_out = m_old[:, None] & m_n[None, :]
        p_carry = carry + o_row[:, None] * (G * P) + (i_g * P + o_n)[None, :]
        # Of a core without layers between its gates and its state, the kernel before wrote it: then after the wait.
        if own is not None:
            b_carry = tl.load(p_carry, mask=m_out, other=0.0, cache_modifier=".cg")
        b_out = through_blocks(
            of_deter,
            scale,
            d_n + SKIPPED,
            hidden,
            dots,
            b_mean,
            b_rstd,
            o_m,
            m_m,
            o_n,
            m_n,
            i_g,
            s_dn,
            s_hidden,
            M,
            s_g,
            s_r,
            s_k,
            1,
            G,
            DEPTH,
            NORM,
            TILES,
            BD,
            BK,
            KS,
            PDL,
        )
        if own is None:
            b_carry = tl.load(p_carry, mask=m_out, other=0.0)
        tl.store(p_carry, b_carry + b_out, mask=m_out)


def state_gradient(
    of_deter: Tensor,
    of_x: Tensor,
    layer: Layer,
    hidden: Later,
    carry: Tensor,
    own: Later | None,
    own_layer: Layer | None,
    stoch: Later,
    stoch_layer: Layer,
    x_dn: Tensor,
    blocks: int,
    tile: int,
    tiles: Tiles,
    skipped: int = 0,
) -> None:
    """Write x_dn with the dots of own and stoch, and carry, as above.

    of_deter, of_x: W and V. hidden has the reset of this step, and sums in tiles of `tile`. Of own and stoch all but
    d_n and reset is read; they have norm, activation and eps in common. skipped: how many gradients come before those
    that W is multiplied by, where these are not V's, of one block without norm.
    """
    depth, own_depth = of_x.shape[2], of_deter.shape[2]
    (rows, units), block = stoch.x.shape, carry.shape[1] // blocks
    x_tiles = (2 if own else 1) * triton.cdiv(units, tiles.n)
    launch(
        state_gradient_kernel,
        (x_tiles + blocks * triton.cdiv(block, tiles.n), triton.cdiv(rows, tiles.m)),
        of_deter,
        of_x,
        layer.scale,
        *hidden,
        carry,
        own.x if own else None,
        own_layer.scale if own_layer else None,
        own_layer.shift if own_layer else None,
        own.sums if own else None,
        own.dots if own else None,
        stoch.x,
        stoch_layer.scale,
        stoch_layer.shift,
        stoch.sums,
        stoch.dots,
        x_dn,
        *hidden.strides(),
        rows,
        layer.eps,
        stoch_layer.eps,
        own.x.stride(0) if own else 0,
        stoch.x.stride(0),
        x_dn.stride(0),
        *of_deter.stride(),
        *of_x.stride(),
        G=blocks,
        K=depth,
        DEPTH=own_depth,
        P=block,
        H=units,
        SKIPPED=skipped,
        NORM=layer.norm,
        TILE=tile,
        BT=power_of_two(row_tiles(blocks * depth, depth, tile)),
        TILES=hidden.tiles(),
        BD=power_of_two(hidden.tiles()),
        X_NORM=stoch_layer.norm,
        X_ACT=stoch_layer.act,
        BM=tiles.m,
        BN=tiles.n,
        BK=min(tiles.k, power_of_two(max(16 * tiles.warps, own_depth))),
        BX=min(tiles.k, power_of_two(max(16 * tiles.warps, blocks * depth))),
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
