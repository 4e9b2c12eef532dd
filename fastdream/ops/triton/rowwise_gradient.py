"""Gradients of norms over rows of which a program has but a tile, as `rowwise`: one kernel stores dots, the next reads.

Of y = act(n), n = xhat * scale + shift, xhat = (x - mean) * rstd, a kernel stores d_n, the gradient of n, and

    dots [tiles, planes, M] float32    rms: one plane, the sum of d_n * scale * xhat over a tile
                                       layer: a second one, the sum of d_n * scale

and whoever reads the gradient of x makes it of d_n, x, the row's moments and its dots, which every step writes to the
same memory: they are read past the cache of the multiprocessor. d_n in memory has the dtype of
x, as the gradient of the activation has in PyTorch; what is multiplied by it later is not rounded once more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.norm_kernels import activate_grad
from fastdream.ops.triton.rowwise import PLANES, moments
from fastdream.ops.triton.split import load_inputs


class Later(NamedTuple):
    """A layer through which a gradient comes back: what makes that of its pre-activations."""

    d_n: Tensor  # [M, N]
    x: Tensor  # [M, N], pre-activations
    sums: Tensor | None  # [tiles, planes, M], of x
    dots: Tensor | None  # [tiles, planes, M]
    reset: Tensor  # [M]

    def strides(self) -> tuple[int, int, int]:
        """Of rows: of d_n, x, reset."""
        return self.d_n.stride(0), self.x.stride(0), self.reset.stride(0)

    def tiles(self) -> int:
        """Number of tiles that dots has."""
        return 0 if self.dots is None else self.dots.shape[0]


def empty_dots(like: Tensor, rows: int, tiles: int, norm: str) -> Tensor | None:
    """Memory for the dots of `rows` rows, None where no norm needs any."""
    return like.new_empty(tiles, PLANES[norm], rows, dtype=torch.float32) if PLANES[norm] else None


@triton.jit
def load_hat(
    x,
    sums,
    o_m,
    o_n,
    m_n,
    M,
    eps,
    s_x,
    N: tl.constexpr,
    SEGMENT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    NORM: tl.constexpr,
):
    """xhat of a tile [BM, BN], and rstd [BM]."""
    m_x = (o_m < M)[:, None] & m_n[None, :]
    b_x = tl.load(x + o_m.to(tl.int64)[:, None] * s_x + o_n[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_mean, b_rstd = moments(sums, o_m, M, eps, N, SEGMENT, TILE, BT, NORM)
    return (b_x - b_mean[:, None]) * b_rstd[:, None]


@triton.jit
def store_gradient(
    b_grad,  # [BM, BN], of y
    b_hat,  # [BM, BN]
    b_scale,  # [BN]
    b_shift,  # [BN]
    d_n,
    dots,  # [tiles, planes, M] or None
    i_tile,
    o_m,  # [BM]
    o_n,  # [BN]
    m_n,  # [BN]
    M,
    s_d,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
):
    """Write d_n of one tile, and its dots."""
    m_x = (o_m < M)[:, None] & m_n[None, :]
    b_d = activate_grad(b_hat * b_scale[None, :] + b_shift[None, :], b_grad, ACT).to(d_n.dtype.element_ty)
    tl.store(d_n + o_m.to(tl.int64)[:, None] * s_d + o_n[None, :], b_d, mask=m_x)
    if NORM != "none":
        b_g = tl.where(m_x, b_d.to(tl.float32) * b_scale[None, :], 0.0)
        STEP: tl.constexpr = 1 if NORM == "rms" else 2
        p_dots = dots + STEP * i_tile * M + o_m
        tl.store(p_dots, tl.sum(b_g * b_hat, 1), mask=o_m < M)
        if NORM == "layer":
            tl.store(p_dots + M, tl.sum(b_g, 1), mask=o_m < M)


@triton.jit
def hat_inputs(x, b_mean, b_rstd, o_row, m_m, o_k, m_k, s_x, NORM: tl.constexpr):
    """xhat [KS, BM, K] in float32, of rows [BM] and inputs [KS, K]; nothing without a norm."""
    if NORM == "none":
        return 0.0
    else:
        b_x = load_inputs(x, o_row, m_m, o_k, m_k, s_x).to(tl.float32)
        return (b_x - b_mean[None, :, None]) * b_rstd[None, :, None]


@triton.jit
def means_of(b_dots, b_sums, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """Means over whole rows of d_n * scale * xhat and of d_n * scale (0 for rms), [BM], of what `load_planes` read."""
    b_dot = tl.sum(b_dots, 0) / WIDTH
    return b_dot, tl.sum(b_sums, 0) / WIDTH if NORM == "layer" else tl.zeros_like(b_dot)


@triton.jit
def gradient_inputs(
    b_d,  # [KS, BM, K], d_n
    b_hat,  # [KS, BM, K]
    b_scale,  # [KS, 1, K]
    b_rstd,  # [BM]
    b_dot,  # [BM]
    b_sum,  # [BM]
    m_m,  # [BM]
    m_k,  # [KS, K]
    NORM: tl.constexpr,
):
    """The gradient of x, [KS, BM, K] float32, zero for rows outside m_m."""
    b_x = b_d.to(tl.float32)
    if NORM != "none":
        b_x = b_x * b_scale - b_sum[None, :, None] - b_hat * b_dot[None, :, None]
        b_x = tl.where(m_m[None, :, None] & m_k[:, None, :], b_x * b_rstd[None, :, None], 0.0)
    return b_x
