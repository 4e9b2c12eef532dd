"""Kernels after a convolution that gives each pixel the 2x2 that it becomes: bias, norm and activation, and spreading.

The convolution gives [B, H, W, 4 * N], which become [B, 2 * H, 2 * W, N].
"""

import triton
import triton.language as tl

from fastdream.ops.triton.math import own_rows
from fastdream.ops.triton.norm_kernels import activate, activate_grad, affine, norm_act, norm_act_grad


@triton.jit
def spread_rows(i_m, o_m, W: tl.constexpr):
    """Pixels i_m + o_m of [B, H, W, 2 * 2] as pixels of [B, 2 * H, 2 * W]; i_m is a multiple of 4."""
    i_w = (i_m // 4 % W).to(tl.int32) + o_m // 4  # in 32 bits, as a division in 64 takes as long as the row
    i_l = i_m // 4 // W + i_w // W
    return (i_l * 2 + o_m % 4 // 2) * (2 * W) + i_w % W * 2 + o_m % 2


@triton.jit(do_not_specialize=["M"])
def spread_norm_act_fwd_kernel(
    x,  # [M, N]
    bias,  # [N]
    scale,  # [N] or None
    shift,  # [N] or None
    y,  # [M, N], spread
    eps,
    M,
    W: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m, o_m, o_n, m_m, m_n = own_rows(M, N, BM, BN)
    m_x = m_m & m_n

    b_x = tl.load(x + i_m * N + (o_m * N + o_n), mask=m_x, other=0.0).to(tl.float32)
    b_x += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_y = norm_act(b_x, scale, shift, o_n, m_n, eps, N, NORM, ACT)
    tl.store(y + spread_rows(i_m, o_m, W) * N + o_n, b_y.to(y.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def spread_norm_act_bwd_kernel(
    x,  # [M, N]
    bias,  # [N]
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N], spread
    d_x,  # [M, N]
    sums,  # [programs, 3, N]: gradients of bias, scale and shift
    eps,
    M,
    W: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_p = tl.program_id(0)
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    o_x = o_m * N + o_n  # inside of the tile: 32 bits are enough
    b_bias, b_scale, b_shift = affine(bias, scale, shift, o_n, m_n)
    # Rows are added up at the end alone: a thread has one or two of them, and warps need not wait for each other.
    b_dbias = tl.zeros([BM, BN], tl.float32)
    b_dscale = tl.zeros([BM, BN], tl.float32)
    b_dshift = tl.zeros([BM, BN], tl.float32)

    for i_t in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
        i_m = tl.cast(i_t, tl.int64) * BM
        m_x = (o_m < M - i_m) & m_n
        b_x = tl.load(x + i_m * N + o_x, mask=m_x, other=0.0).to(tl.float32) + b_bias
        b_g = tl.load(grad + spread_rows(i_m, o_m, W) * N + o_n, mask=m_x, other=0.0).to(tl.float32)
        b_dx, b_ds, b_dt = norm_act_grad(b_x, b_g, b_scale, b_shift, m_n, eps, N, NORM, ACT)
        if scale is not None:
            b_dscale += b_ds
        if shift is not None:
            b_dshift += b_dt
        b_dbias += b_dx
        tl.store(d_x + i_m * N + o_x, b_dx.to(d_x.dtype.element_ty), mask=m_x)

    p_sums = sums + i_p * 3 * N + o_n
    tl.store(p_sums, tl.sum(b_dbias, 0, keep_dims=True), mask=m_n)
    tl.store(p_sums + N, tl.sum(b_dscale, 0, keep_dims=True), mask=m_n)
    tl.store(p_sums + 2 * N, tl.sum(b_dshift, 0, keep_dims=True), mask=m_n)


@triton.jit(do_not_specialize=["M"])
def spread_act_fwd_kernel(
    x,  # [M / 2 * W, 4 * N]
    bias,  # [N]
    y,  # [M, 2 * W * N]: lines of the large images, each of the colours of its pixels
    M,
    W: tl.constexpr,
    N: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    m_n = o_n < 2 * W * N
    m_y = (o_m < M - i_m) & m_n
    i_l = i_m + o_m

    p_x = x + (i_l // 2 * W + o_n // (2 * N)) * (4 * N) + i_l % 2 * (2 * N) + o_n % (2 * N)
    b_x = tl.load(p_x, mask=m_y, other=0.0).to(tl.float32)
    b_x += tl.load(bias + o_n % N, mask=m_n, other=0.0).to(tl.float32)
    tl.store(y + i_l * (2 * W * N) + o_n, activate(b_x, ACT).to(y.dtype.element_ty), mask=m_y)


@triton.jit(do_not_specialize=["M"])
def spread_act_bwd_kernel(
    x,  # [M, 4 * N], or None without an activation
    bias,  # [N]
    grad,  # [2 * M / W, 2 * W * N], as y
    d_x,  # [M, 4 * N]
    sums,  # [programs, 4 * N]: gradients of bias, of each of 2x2 pixels
    M,
    W: tl.constexpr,
    N: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_p = tl.program_id(0)
    o_m = tl.arange(0, BM)[:, None]
    o_c = tl.arange(0, BN)[None, :]
    o_x = o_m * (4 * N) + o_c
    m_c = o_c < 4 * N
    b_bias = tl.load(bias + o_c % N, mask=m_c, other=0.0).to(tl.float32)
    b_dbias = tl.zeros([BM, BN], tl.float32)

    for i_t in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
        i_m = tl.cast(i_t, tl.int64) * BM
        m_x = (o_m < M - i_m) & m_c
        i_w = (i_m % W).to(tl.int32) + o_m
        i_l = (i_m // W + i_w // W) * 2 + o_c // (2 * N)
        p_g = grad + (i_l * W + i_w % W) * (2 * N) + o_c % (2 * N)
        b_dx = tl.load(p_g, mask=m_x, other=0.0).to(tl.float32)
        if ACT != "none":
            b_x = tl.load(x + i_m * (4 * N) + o_x, mask=m_x, other=0.0).to(tl.float32)
            b_dx = activate_grad(b_x + b_bias, b_dx, ACT)
        b_dbias += b_dx
        tl.store(d_x + i_m * (4 * N) + o_x, b_dx.to(d_x.dtype.element_ty), mask=m_x)

    tl.store(sums + i_p * 4 * N + o_c, tl.sum(b_dbias, 0, keep_dims=True), mask=m_c)
