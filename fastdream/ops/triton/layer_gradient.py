"""Back through one layer of a step: out = gradient^(k) W^(k) for each of g blocks k, through activation and norm.

gradient  [M, g*K]   of the pre-activations of the layer after, or, where `later` describes that, its d_n
weight    [g, K, N]  any strides, one of the last two 1
x         [M, g*N]   this layer's pre-activations, with their sums in tiles of `tile`
d_n       [M, g*N]   written as `rowwise_gradient` says, with dots in tiles of `tiles.n`
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import load_planes, load_vector, moments, row_tiles
from fastdream.ops.triton.rowwise_gradient import (
    Later,
    gradient_inputs,
    hat_inputs,
    load_hat,
    means_of,
    store_gradient,
)
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    split_inputs,
    sum_parts,
    vector_inputs,
)


@triton.jit(do_not_specialize=["M"])
def layer_gradient_kernel(
    gradient,  # [M, G*K]
    weight,  # [G, K, N]
    x,  # [M, G*N]
    sums,  # [tiles, planes, M] or None
    scale,  # [G*N] or None
    shift,  # [G*N] or None
    d_n,  # [M, G*N]
    dots,  # [tiles, planes, M] or None
    up,  # [M, G*K] or None, pre-activations of the layer after
    up_sums,
    up_dots,
    up_scale,
    M,
    eps,
    up_eps,
    s_gradient,
    s_x,
    s_d,
    s_up,
    s_g,
    s_k,
    s_n,
    G: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    UP_NORM: tl.constexpr,
    UP_TILE: tl.constexpr,
    UP_BT: tl.constexpr,
    UP_TILES: tl.constexpr,
    UP_BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_n, i_g, i_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < N
    o_row = o_m.to(tl.int64)
    o_k = split_inputs(0, BK, KS)
    b_w = load_weights(weight + i_g * s_g, o_k, o_k < K, o_n, m_n, s_k, s_n)
    o_x = i_g * N + o_n
    b_hat = load_hat(x, sums, o_m, o_x, m_n, M, eps, s_x, G * N, N, TILE, BT, NORM)
    b_scale, b_shift = load_vector(scale, o_x, m_n, 1.0), load_vector(shift, o_x, m_n, 0.0)
    if up is not None:
        b_mean, b_rstd = moments(up_sums, o_m, M, up_eps, G * K, K, UP_TILE, UP_BT, UP_NORM)
        b_us = vector_inputs(up_scale, i_g * K + o_k, o_k < K, 1.0)
        b_up = hat_inputs(up, b_mean, b_rstd, o_row, m_m, i_g * K + o_k, o_k < K, s_up, UP_NORM)

    begin(PDL)
    if up is not None:
        b_dots, b_sums = load_planes(up_dots, o_m, M, UP_TILES, UP_BD, UP_NORM, True)
    b_g = load_inputs(gradient + i_g * K, o_row, m_m, o_k, o_k < K, s_gradient)
    if up is not None:
        b_dot, b_sum = means_of(b_dots, b_sums, G * K, UP_NORM)
        b_g = gradient_inputs(b_g, b_up, b_us, b_rstd, b_dot, b_sum, m_m, o_k < K, UP_NORM)
    b_grad = add_product(None, b_g, b_w)
    for i_k in range(BK, K, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < K
        b_g = load_inputs(gradient + i_g * K, o_row, m_m, o_k, m_k, s_gradient)
        if up is not None:
            b_up = hat_inputs(up, b_mean, b_rstd, o_row, m_m, i_g * K + o_k, m_k, s_up, UP_NORM)
            b_us = vector_inputs(up_scale, i_g * K + o_k, m_k, 1.0)
            b_g = gradient_inputs(b_g, b_up, b_us, b_rstd, b_dot, b_sum, m_m, m_k, UP_NORM)
        b_w = load_weights(weight + i_g * s_g, o_k, m_k, o_n, m_n, s_k, s_n)
        b_grad = add_product(b_grad, b_g, b_w)
    i_tile = i_g * tl.num_programs(0) + i_n
    b_grad = sum_parts(b_grad)
    store_gradient(b_grad, b_hat, b_scale, b_shift, d_n, dots, i_tile, o_m, o_x, m_n, M, s_d, NORM, ACT)


def layer_gradient(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    sums: Tensor | None,
    layer: Layer,
    d_n: Tensor,
    dots: Tensor | None,
    tile: int,
    tiles: Tiles,
    later: Later | None = None,
    up: Layer | None = None,
    up_tile: int = 1,
) -> None:
    """Write d_n and dots as above. layer: the one whose pre-activations x are.

    later, up, up_tile: of the layer after, if it has a norm: its description, itself, and the tile of its sums.
    """
    blocks, depth, width = weight.shape
    rows = gradient.shape[0]
    launch(
        layer_gradient_kernel,
        (triton.cdiv(width, tiles.n), blocks, triton.cdiv(rows, tiles.m)),
        gradient,
        weight,
        x,
        sums,
        layer.scale,
        layer.shift,
        d_n,
        dots,
        *(later[1:4] if later else (None,) * 3),
        up.scale if up else None,
        rows,
        layer.eps,
        up.eps if up else 0.0,
        gradient.stride(0),
        x.stride(0),
        d_n.stride(0),
        later.x.stride(0) if later else 0,
        *weight.stride(),
        G=blocks,
        K=depth,
        N=width,
        NORM=layer.norm,
        ACT=layer.act,
        TILE=tile,
        BT=power_of_two(row_tiles(blocks * width, width, tile)),
        UP_NORM=up.norm if up else "none",
        UP_TILE=up_tile,
        UP_BT=power_of_two(row_tiles(blocks * depth, depth, up_tile)) if up else 1,
        UP_TILES=later.tiles() if later else 0,
        UP_BD=power_of_two(later.tiles()) if later else 1,
        BM=tiles.m,
        BN=tiles.n,
        BK=min(tiles.k, power_of_two(max(16 * tiles.warps, depth))),
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
