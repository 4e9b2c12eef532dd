"""The gradient of a block layer's pre-activations times rows of its weight, as device functions."""

import triton
import triton.language as tl

from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import load_planes
from fastdream.ops.triton.rowwise_gradient import gradient_inputs, hat_inputs, means_of
from fastdream.ops.triton.split import add_product, load_inputs, split_inputs, sum_parts, vector_inputs


@triton.jit
def through_blocks(
    weight,
    scale,
    d_n,
    hidden,
    dots,
    b_mean,
    b_rstd,
    o_m,
    m_m,
    o_r,
    m_n,
    i_g,
    s_dn,
    s_hidden,
    M,
    s_g,
    s_r,
    s_k,
    BLOCKS: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    TILES: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The gradient of so many blocks from i_g on times rows o_r of their weight, [BM, BN]."""
    o_row = o_m.to(tl.int64)
    INPUTS: tl.constexpr = BLOCKS * K
    o_k = split_inputs(0, BK, KS)
    b_w = block_weights(weight, o_k, o_r, m_n, i_g, s_g, s_r, s_k, INPUTS, K)
    b_hat = hat_inputs(hidden, b_mean, b_rstd, o_row, m_m, i_g * K + o_k, o_k < INPUTS, s_hidden, NORM)
    b_scale = vector_inputs(scale, i_g * K + o_k, o_k < INPUTS, 1.0)
    begin(PDL)
    b_dots, b_sums = load_planes(dots, o_m, M, TILES, BD, NORM, True)
    b_d = load_inputs(d_n + i_g * K, o_row, m_m, o_k, o_k < INPUTS, s_dn)
    b_dot, b_sum = means_of(b_dots, b_sums, G * K, NORM)
    b_g = gradient_inputs(b_d, b_hat, b_scale, b_rstd, b_dot, b_sum, m_m, o_k < INPUTS, NORM)
    b_out = add_product(None, b_g, b_w)
    for i_k in range(BK, INPUTS, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < INPUTS
        b_hat = hat_inputs(hidden, b_mean, b_rstd, o_row, m_m, i_g * K + o_k, m_k, s_hidden, NORM)
        b_d = load_inputs(d_n + i_g * K, o_row, m_m, o_k, m_k, s_dn)
        b_scale = vector_inputs(scale, i_g * K + o_k, m_k, 1.0)
        b_g = gradient_inputs(b_d, b_hat, b_scale, b_rstd, b_dot, b_sum, m_m, m_k, NORM)
        b_w = block_weights(weight, o_k, o_r, m_n, i_g, s_g, s_r, s_k, INPUTS, K)
        b_out = add_product(b_out, b_g, b_w)
    return sum_parts(b_out)


@triton.jit
def block_weights(weight, o_k, o_r, m_n, i_g, s_g, s_r, s_k, INPUTS: tl.constexpr, K: tl.constexpr):
    """[KS, K, BN] of inputs [KS, K], counted on from block to block from i_g on."""
    p_w = weight + ((i_g + o_k // K) * s_g + o_k % K * s_k)[:, :, None] + (o_r * s_r)[None, None, :]
    return tl.load(p_w, mask=(o_k < INPUTS)[:, :, None] & m_n[None, None, :], other=0.0)
