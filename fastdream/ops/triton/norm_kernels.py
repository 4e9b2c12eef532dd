"""Kernels of norm and activation."""

import triton
import triton.language as tl

from fastdream.ops.triton.math import expm1, own_rows, sigmoid, tanh
from fastdream.ops.triton.rowwise import load_vector


@triton.jit
def activate(x, ACT: tl.constexpr):
    """ACT in the order of `native.params.ACTS`."""
    if ACT == "silu":
        x = x * sigmoid(x)
    elif ACT == "gelu":
        x = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "elu":
        x = tl.where(x > 0, x, expm1(x))
    elif ACT == "relu":
        x = tl.where(x < 0, 0.0, x)  # which keeps NaN
    elif ACT == "tanh":
        x = tanh(x)
    return x


@triton.jit
def activate_grad(x, grad, ACT: tl.constexpr):
    """Gradient of `activate` at x."""
    if ACT == "silu":
        s = sigmoid(x)
        grad *= s * (1 + x * (1 - s))
    elif ACT == "gelu":
        s = sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        grad *= s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    elif ACT == "elu":
        grad *= tl.where(x > 0, 1.0, tl.exp(x))
    elif ACT == "relu":
        grad = tl.where(x > 0, grad, 0.0)
    elif ACT == "tanh":
        t = tanh(x)
        grad *= 1 - t * t
    return grad


@triton.jit
def normalize(b_x, m_n, eps, N: tl.constexpr, NORM: tl.constexpr):
    """Rows of zero mean (layer) and unit square, and the factors that made them so. b_x [BM, BN] is 0 beyond N."""
    if NORM == "layer":
        b_x = tl.where(m_n, b_x - tl.sum(b_x, 1, keep_dims=True) / N, 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / N + eps)
    return b_x * b_rstd, b_rstd


@triton.jit
def normalize_grad(b_x, b_rstd, b_g, N: tl.constexpr, NORM: tl.constexpr):
    """Gradient of what `normalize` took, from what it gave and the gradient of its rows."""
    b_dx = b_g - b_x * (tl.sum(b_g * b_x, 1, keep_dims=True) / N)
    if NORM == "layer":
        b_dx -= tl.sum(b_g, 1, keep_dims=True) / N
    return b_dx * b_rstd


@triton.jit
def norm_act(b_x, scale, shift, o_n, m_n, eps, N: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr):
    """Norm and activation of rows b_x [BM, BN], 0 beyond N; scale and shift [N] or None."""
    if NORM != "none":
        b_x, _ = normalize(b_x, m_n, tl.cast(eps, tl.float32), N, NORM)
    if scale is not None:
        b_x *= tl.load(scale + o_n, mask=m_n, other=0.0).to(tl.float32)
    if shift is not None:
        b_x += tl.load(shift + o_n, mask=m_n, other=0.0).to(tl.float32)
    return activate(b_x, ACT)


@triton.jit
def affine(bias, scale, shift, o_n, m_n):
    """All three in float32: for those that are not there zeros, ones and zeros."""
    b_bias = load_vector(bias, o_n, m_n, 0.0)
    return b_bias, load_vector(scale, o_n, m_n, 1.0), load_vector(shift, o_n, m_n, 0.0)


@triton.jit
def norm_act_grad(
    b_x, b_g, b_scale, b_shift, m_n, eps, N: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr
):
    """Gradients of rows b_x [BM, BN], 0 beyond N, from the result's b_g; then of scale and shift, row by row."""
    if NORM == "none":
        b_dx = activate_grad(b_x, b_g, ACT)
        b_dscale = b_dx
        b_dshift = b_dx
    else:
        b_x, b_rstd = normalize(b_x, m_n, tl.cast(eps, tl.float32), N, NORM)
        b_dshift = activate_grad(b_x * b_scale + b_shift, b_g, ACT)
        b_dscale = b_dshift * b_x
        b_dx = normalize_grad(b_x, b_rstd, b_dshift * b_scale, N, NORM)
    return b_dx, b_dscale, b_dshift


@triton.jit(do_not_specialize=["M"])
def norm_act_fwd_kernel(
    x,  # [M, N]
    scale,  # [N] or None
    shift,  # [N] or None
    y,  # [M, N]
    eps,
    M,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m, o_m, o_n, m_m, m_n = own_rows(M, N, BM, BN)
    m_x, o_x = m_m & m_n, o_m * N + o_n  # inside of the tile: 32 bits are enough

    b_x = tl.load(x + i_m * N + o_x, mask=m_x, other=0.0).to(tl.float32)
    p_y = y + i_m * N + o_x
    b_y = norm_act(b_x, scale, shift, o_n, m_n, eps, N, NORM, ACT)
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def norm_act_bwd_kernel(
    x,  # [M, N]
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N]
    d_x,  # [M, N]
    d_scale,  # [programs, N] or None
    d_shift,  # [programs, N] or None
    eps,
    M,
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
    o_x = o_m * N + o_n
    b_scale, b_shift = load_vector(scale, o_n, m_n, 1.0), load_vector(shift, o_n, m_n, 0.0)
    b_dscale = tl.zeros([1, BN], tl.float32)
    b_dshift = tl.zeros([1, BN], tl.float32)

    for i_t in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
        i_m = tl.cast(i_t, tl.int64) * BM
        m_x = (o_m < M - i_m) & m_n
        b_x = tl.load(x + i_m * N + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_g = tl.load(grad + i_m * N + o_x, mask=m_x, other=0.0).to(tl.float32)
        if NORM == "none":
            b_dx = activate_grad(b_x, b_g, ACT)
        else:
            b_x, b_rstd = normalize(b_x, m_n, tl.cast(eps, tl.float32), N, NORM)
            b_g = activate_grad(b_x * b_scale + b_shift, b_g, ACT)
            b_dscale += tl.sum(b_g * b_x, 0, keep_dims=True)
            b_dshift += tl.sum(b_g, 0, keep_dims=True)
            b_dx = normalize_grad(b_x, b_rstd, b_g * b_scale, N, NORM)
        tl.store(d_x + i_m * N + o_x, b_dx.to(d_x.dtype.element_ty), mask=m_x)

    if d_scale is not None:
        tl.store(d_scale + i_p * N + o_n, b_dscale, mask=m_n)
    if d_shift is not None:
        tl.store(d_shift + i_p * N + o_n, b_dshift, mask=m_n)
