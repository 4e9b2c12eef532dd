"""`block_product` for few rows: inputs are split among warps, and what is old is read before the wait."""

import triton
import triton.language as tl

from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import moments
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    normalize_inputs,
    split_inputs,
    sum_parts,
    vector_inputs,
)


@triton.jit
def kept(b_x, reset, b_reset):
    """x [KS, BM, K], zero in rows where reset [BM]."""
    return b_x if reset is None else tl.where(b_reset[None, :, None], 0.0, b_x)


@triton.jit
def ready(b_x, reset, b_reset, b_mean, b_rstd, scale, shift, o_k, m_k, NORM: tl.constexpr, ACT: tl.constexpr):
    """What is multiplied, of what was read."""
    b_x = kept(b_x, reset, b_reset)
    if NORM != "none" or ACT != "none":
        b_scale, b_shift = vector_inputs(scale, o_k, m_k, 1.0), vector_inputs(shift, o_k, m_k, 0.0)
        b_x = activate(normalize_inputs(b_x, b_mean, b_rstd, b_scale, b_shift), ACT)
    return b_x


@triton.jit
def split_products(
    deter, reset, own, x, shared, base, in_sums, in_scale, in_shift, M, in_eps, s_deter, s_reset, s_x, s_base,
    s_g, s_k, s_n, i_g, o_m, o_n, G: tl.constexpr, K: tl.constexpr, X: tl.constexpr, N: tl.constexpr,
    BASE: tl.constexpr, IN_NORM: tl.constexpr, IN_ACT: tl.constexpr, IN_TILE: tl.constexpr, IN_BT: tl.constexpr,
    BK: tl.constexpr, BX: tl.constexpr, KS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """A tile [BM, BN] of base^(k) + deter^(k) W^(k) + x V^(k) of block i_g."""
    BM: tl.constexpr = o_m.shape[0]
    BN: tl.constexpr = o_n.shape[0]
    o_row = o_m.to(tl.int64)
    m_m, m_n = o_m < M, o_n < N
    p_deter, p_own = deter + i_g * K, own + i_g * s_g
    b_reset = tl.zeros([BM], tl.int1)
    if reset is not None:
        b_reset = tl.load(reset + o_row * s_reset, mask=m_m, other=1) != 0
    o_k = split_inputs(0, BK, KS)
    if x is None:
        b_w = load_weights(p_own, o_k, o_k < K, o_n, m_n, s_k, s_n)
        begin(PDL)
        b_base = load_base(base, o_row, m_m, i_g * N + o_n, m_n, s_base, BASE)
        b_a = load_inputs(p_deter, o_row, m_m, o_k, o_k < K, s_deter)
        b_mean, b_rstd = moments(in_sums, o_m, M, in_eps, G * K, K, IN_TILE, IN_BT, IN_NORM)
        b_a = ready(
            b_a, reset, b_reset, b_mean, b_rstd, in_scale, in_shift, i_g * K + o_k, o_k < K, IN_NORM, IN_ACT
        )
        b_out = add_product(None, b_a, b_w)
        for i_k in range(BK, K, BK):
            o_k = split_inputs(i_k, BK, KS)
            m_k = o_k < K
            b_a = load_inputs(p_deter, o_row, m_m, o_k, m_k, s_deter)
            b_a = ready(
                b_a, reset, b_reset, b_mean, b_rstd, in_scale, in_shift, i_g * K + o_k, m_k, IN_NORM, IN_ACT
            )
            b_w = load_weights(p_own, o_k, m_k, o_n, m_n, s_k, s_n)
            b_out = add_product(b_out, b_a, b_w)
    else:
        # Of these only x is new: deter was written before the kernel before began.
        b_out = tl.zeros([KS, BM, BN], tl.float32)
        for i_k in range(0, K, BK):
            o_k = split_inputs(i_k, BK, KS)
            m_k = o_k < K
            b_a = load_inputs(p_deter, o_row, m_m, o_k, m_k, s_deter, True)
            b_a = kept(b_a, reset, b_reset)
            b_w = load_weights(p_own, o_k, m_k, o_n, m_n, s_k, s_n)
            b_out = add_product(b_out, b_a, b_w)
        p_shared = shared + i_g * s_g
        o_k = split_inputs(0, BX, KS)
        b_w = load_weights(p_shared, o_k, o_k < X, o_n, m_n, s_k, s_n)
        begin(PDL)
        b_base = load_base(base, o_row, m_m, i_g * N + o_n, m_n, s_base, BASE)
        b_a = load_inputs(x, o_row, m_m, o_k, o_k < X, s_x)
        b_out = add_product(b_out, b_a, b_w)
        for i_k in range(BX, X, BX):
            o_k = split_inputs(i_k, BX, KS)
            m_k = o_k < X
            b_a = load_inputs(x, o_row, m_m, o_k, m_k, s_x)
            b_w = load_weights(p_shared, o_k, m_k, o_n, m_n, s_k, s_n)
            b_out = add_product(b_out, b_a, b_w)
    return sum_parts(b_out) + b_base


@triton.jit
def load_base(base, o_row, m_m, o_out, m_n, s_base, BASE: tl.constexpr):
    """A tile of base [M, BASE] in float32, zero in columns that it has not; all zeros where there is none."""
    if base is None:
        return tl.zeros([o_row.shape[0], o_out.shape[0]], tl.float32)
    else:
        m_base = m_m[:, None] & (m_n & (o_out < BASE))[None, :]
        return tl.load(base + o_row[:, None] * s_base + o_out[None, :], mask=m_base, other=0.0).to(tl.float32)
