"""Back through a step's hidden layer to the state before it: to the old deter, and to the layers that read the state.

d^(k) = gradient of the hidden layer's pre-activations of block k, made of d_n and dots, see `rowwise_gradient`
carry^(k) += W^(k) d^(k), zero where reset        through activation and norm: x_dn of the sum over k of V^(k) d^(k)

weight  [g, R, K]         any strides; W^(k) are rows `of_deter` ... + P, V^(k) rows `of_x` ... of a block
x_dn    [M, 2H] or [M, H] of the layers of deter and stoch, or of stoch's, with dots of each in tiles of `tiles.n`
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import moments, row_tiles
from fastdream.ops.triton.rowwise_gradient import Later, load_gradient, mean_dots, store_gradient


@triton.jit(do_not_specialize=["M"])
def state_gradient_kernel(
    weight,  # [G, R, K]
    scale,  # [G*K] or None
    d_n,  # [M, G*K]
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
    G: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    OF_DETER: tl.constexpr,
    OF_X: tl.constexpr,
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
    PDL: tl.constexpr,
):
    begin(PDL)
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    m_m = o_m < M
    # First the tiles of the input layers, one after the other, which sum over all blocks, then those of every block.
    LAYERS: tl.constexpr = 1 if own is None else 2
    X_TILES: tl.constexpr = (H + BN - 1) // BN
    P_TILES: tl.constexpr = (P + BN - 1) // BN
    CHUNKS: tl.constexpr = (K + BK - 1) // BK
    BLOCKS: tl.constexpr = BK // K if BK > K and BK % K == 0 else 1  # of a piece
    dense = i_n < LAYERS * X_TILES
    i_g = tl.where(dense, 0, (i_n - LAYERS * X_TILES) // P_TILES)
    i_t = tl.where(dense, i_n % X_TILES, (i_n - LAYERS * X_TILES) % P_TILES)
    o_n = i_t * BN + tl.arange(0, BN)
    m_n = o_n < tl.where(dense, H, P)
    o_r = o_n + tl.where(dense, OF_X + i_n // X_TILES * H, OF_DETER)

    b_mean, b_rstd = moments(sums, o_m, M, eps, G * K, K, TILE, BT, NORM)
    b_dot, b_sum = mean_dots(dots, o_m, M, G * K, TILES, BD, NORM)
    b_out = tl.zeros([BM, BN], tl.float32)
    for i_k in range(tl.where(dense, (G * CHUNKS + BLOCKS - 1) // BLOCKS, CHUNKS)):
        # A piece is of one block, or of as many small ones as it is long: those of other blocks only where dense.
        o_c = i_k % CHUNKS * BK + tl.arange(0, BK)
        if BLOCKS == 1:
            i_b, m_k = i_g + i_k // CHUNKS, o_c < K
        else:
            m_k = o_c < tl.where(dense, BK, K)
            i_b, o_c = i_g + i_k * BLOCKS + o_c // K, o_c % K
            m_k = m_k & (i_b < G)
        b_d = load_gradient(
            d_n,
            hidden,
            scale,
            b_mean,
            b_rstd,
            b_dot,
            b_sum,
            o_row,
            m_m,
            i_b * K + o_c,
            m_k,
            s_dn,
            s_hidden,
            NORM,
        )
        p_w = weight + (i_b * s_g + o_c * s_k)[:, None] + o_r[None, :] * s_r
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_out = tl.dot(b_d.to(b_w.dtype), b_w, b_out, input_precision="ieee")

    # Decided while compiling: joined with what is known while running, both sides would be compiled.
    if own is not None:  # noqa: SIM102
        if i_n < X_TILES:
            b_mean, b_rstd = moments(own_sums, o_m, M, x_eps, H, H, H, 1, X_NORM)
            store_gradient(
                b_out,
                own,
                own_scale,
                own_shift,
                x_dn,
                own_dots,
                b_mean,
                b_rstd,
                i_t,
                o_m,
                o_n,
                m_n,
                M,
                s_own,
                s_x,
                X_NORM,
                X_ACT,
            )
    if dense and i_n >= (LAYERS - 1) * X_TILES:
        b_mean, b_rstd = moments(stoch_sums, o_m, M, x_eps, H, H, H, 1, X_NORM)
        store_gradient(
            b_out,
            stoch,
            stoch_scale,
            stoch_shift,
            x_dn + (LAYERS - 1) * H,
            stoch_dots,
            b_mean,
            b_rstd,
            i_t,
            o_m,
            o_n,
            m_n,
            M,
            s_stoch,
            s_x,
            X_NORM,
            X_ACT,
        )
    if i_n >= LAYERS * X_TILES:
        m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
        m_out = m_old[:, None] & m_n[None, :]
        p_carry = carry + o_row[:, None] * (G * P) + (i_g * P + o_n)[None, :]
        tl.store(p_carry, tl.load(p_carry, mask=m_out, other=0.0) + b_out, mask=m_out)


def state_gradient(
    weight: Tensor,
    of_deter: int,
    of_x: int,
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
) -> None:
    """Write x_dn with the dots of own and stoch, and carry, as above.

    hidden has the reset of this step, and sums in tiles of `tile`. Of own and stoch all but d_n and reset is read;
    they have norm, activation and eps in common.
    """
    depth = weight.shape[2]
    (rows, units), block = stoch.x.shape, carry.shape[1] // blocks
    x_tiles = (2 if own else 1) * triton.cdiv(units, tiles.n)
    launch(
        state_gradient_kernel,
        (x_tiles + blocks * triton.cdiv(block, tiles.n), triton.cdiv(rows, tiles.m)),
        weight,
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
        *weight.stride(),
        G=blocks,
        K=depth,
        P=block,
        H=units,
        OF_DETER=of_deter,
        OF_X=of_x,
        NORM=layer.norm,
        TILE=tile,
        BT=power_of_two(row_tiles(blocks * depth, depth, tile)),
        TILES=hidden.tiles(),
        BD=power_of_two(hidden.tiles()),
        X_NORM=stoch_layer.norm,
        X_ACT=stoch_layer.act,
        BM=tiles.m,
        BN=tiles.n,
        BK=tiles.k,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
