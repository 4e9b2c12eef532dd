"""Gradients of norm and activation over rows too wide for the registers of a program: they are walked in pieces.

One kernel reads a row for what the gradient of each of its columns takes of all others,

    sums [M, 4] float32    mean (rms: 0), 1 / deviation, and of xhat = (x - mean) * rstd and its gradient the means over
                           the row of gradient * xhat and of the gradient (rms: 0)

and a second one computes the gradients, each program those of a piece of many rows.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate_grad
from fastdream.ops.triton.rowwise import load_vector

# Columns at a time, and warps: eight numbers a thread, of x, its gradient, scale and shift, and of two sums.
READ = {"BN": 4096, "num_warps": 16}
PIECE = {"BN": 1024, "num_warps": 4}
WIDEST = 65536  # columns of a row; no preset has more than 36,864
PROGRAMS = 128  # that have the same piece: each adds up its own rows' gradients of scale and shift

Optional = Tensor | None


@triton.jit
def hat_piece(p_x, m_n, mean, rstd):
    """xhat of a piece of a row, 0 beyond it."""
    return tl.where(m_n, (tl.load(p_x, mask=m_n, other=0.0).to(tl.float32) - mean) * rstd, 0.0)


@triton.jit
def wide_sums_kernel(
    x,  # [M, N]
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N]
    sums,  # [M, 4]
    eps,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    o_b = tl.arange(0, BN)
    p_x, p_g = x + i_m * N, grad + i_m * N

    # Whole pieces are added up, and their columns once at the end: until then no thread waits for another.
    mean = 0.0
    if NORM == "layer":
        b_sum = tl.zeros([BN], tl.float32)
        for i_n in range(0, N, BN):
            b_sum += tl.load(p_x + i_n + o_b, mask=i_n + o_b < N, other=0.0).to(tl.float32)
        mean = tl.sum(b_sum, 0) / N
    b_square = tl.zeros([BN], tl.float32)
    for i_n in range(0, N, BN):
        b_off = hat_piece(p_x + i_n + o_b, i_n + o_b < N, mean, 1.0)
        b_square += b_off * b_off
    rstd = tl.rsqrt(tl.sum(b_square, 0) / N + tl.cast(eps, tl.float32))

    b_dot = tl.zeros([BN], tl.float32)
    b_sum = tl.zeros([BN], tl.float32)
    for i_n in range(0, N, BN):
        o_n = i_n + o_b
        m_n = o_n < N
        b_scale, b_shift = load_vector(scale, o_n, m_n, 1.0), load_vector(shift, o_n, m_n, 0.0)
        b_hat = hat_piece(p_x + o_n, m_n, mean, rstd)
        b_g = tl.load(p_g + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_g = activate_grad(b_hat * b_scale + b_shift, b_g, ACT) * b_scale
        b_dot += b_g * b_hat
        if NORM == "layer":
            b_sum += b_g

    p_sums = sums + 4 * i_m
    tl.store(p_sums, mean)
    tl.store(p_sums + 1, rstd)
    tl.store(p_sums + 2, tl.sum(b_dot, 0) / N)
    tl.store(p_sums + 3, tl.sum(b_sum, 0) / N)


@triton.jit(do_not_specialize=["M"])
def wide_bwd_kernel(
    x,  # [M, N]
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N]
    d_x,  # [M, N]
    d_scale,  # [programs, N] or None
    d_shift,  # [programs, N] or None
    sums,  # [M, 4]
    M,
    N: tl.constexpr,
    ACT: tl.constexpr,
    BN: tl.constexpr,
):
    i_p = tl.program_id(1)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < N
    b_scale, b_shift = load_vector(scale, o_n, m_n, 1.0), load_vector(shift, o_n, m_n, 0.0)
    b_dscale = tl.zeros([BN], tl.float32)
    b_dshift = tl.zeros([BN], tl.float32)

    for i_row in range(i_p, M, tl.num_programs(1)):
        i_m = tl.cast(i_row, tl.int64)
        p_sums = sums + 4 * i_m
        mean, rstd = tl.load(p_sums), tl.load(p_sums + 1)
        dot, total = tl.load(p_sums + 2), tl.load(p_sums + 3)
        b_hat = hat_piece(x + i_m * N + o_n, m_n, mean, rstd)
        b_g = tl.load(grad + i_m * N + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_g = activate_grad(b_hat * b_scale + b_shift, b_g, ACT)
        b_dscale += b_g * b_hat
        b_dshift += b_g
        b_dx = (b_g * b_scale - b_hat * dot - total) * rstd
        tl.store(d_x + i_m * N + o_n, b_dx.to(d_x.dtype.element_ty), mask=m_n)

    if d_scale is not None:
        tl.store(d_scale + i_p * N + o_n, b_dscale, mask=m_n)
    if d_shift is not None:
        tl.store(d_shift + i_p * N + o_n, b_dshift, mask=m_n)


def wide_gradients(
    inputs: Sequence[Optional], d_x: Tensor, vectors: Sequence[Optional], norm: str, act: str, eps: float
) -> None:
    """Write d_x [..., N], and of d_scale and d_shift [programs, N] float32 those that are among the vectors.

    inputs: x, scale, shift, grad. All of them contiguous, programs at most PROGRAMS and the number of rows.
    """
    width = d_x.shape[-1]
    rows = d_x.numel() // width
    sums = d_x.new_empty(rows, 4, dtype=torch.float32)
    launch(wide_sums_kernel, (rows,), *inputs, sums, eps, N=width, NORM=norm, ACT=act, **READ)
    grid = triton.cdiv(width, PIECE["BN"]), min(PROGRAMS, rows)
    launch(wide_bwd_kernel, grid, *inputs, d_x, *vectors, sums, rows, N=width, ACT=act, **PIECE)
