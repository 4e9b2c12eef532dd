"""Gradients of norms over rows of which a program has but a tile, as `rowwise`: one kernel stores dots, the next reads.

Of y = act(n), n = xhat * scale + shift, xhat = (x - mean) * rstd, a kernel stores d_n, the gradient of n, and

    dots [tiles, planes, M] float32    rms: one plane, the sum of d_n * scale * xhat over a tile
                                       layer: a second one, the sum of d_n * scale

and whoever reads the gradient of x makes it of d_n, x, the row's moments and its dots. d_n in memory has the dtype of
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
    """A layer through which a gradient comes back: what `load_gradient` makes that of its pre-activations of."""

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
def load_vector(vector, o_n, m_n, other: tl.constexpr):
    """float32 [BN], or `other` where there is no vector."""
    if vector is None:
        return tl.zeros(o_n.shape, tl.float32) + other
    else:
        return tl.load(vector + o_n, mask=m_n, other=0.0).to(tl.float32)


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
def mean_dots(
    dots,  # [TILES, planes, M] or None
    o_m,  # [BM]
    M,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    BT: tl.constexpr,  # a power of two, not below TILES
    NORM: tl.constexpr,
):
    """Means over whole rows of d_n * scale * xhat and of d_n * scale (0 for rms), both [BM].

    Every step writes them to the same memory: they are read past the cache of the multiprocessor.
    """
    if NORM == "none":
        return tl.zeros_like(o_m).to(tl.float32), tl.zeros_like(o_m).to(tl.float32)
    else:
        STEP: tl.constexpr = 1 if NORM == "rms" else 2
        o_t = tl.arange(0, BT)
        m_t = (o_t < TILES)[:, None] & (o_m < M)[None, :]
        p_dots = dots + STEP * o_t[:, None] * M + o_m[None, :]
        b_dot = tl.sum(tl.load(p_dots, mask=m_t, other=0.0, cache_modifier=".cg"), 0) / WIDTH
        if NORM == "rms":
            return b_dot, tl.zeros_like(b_dot)
        else:
            b_sum = tl.load(p_dots + M, mask=m_t, other=0.0, cache_modifier=".cg")
            return b_dot, tl.sum(b_sum, 0) / WIDTH


@triton.jit
def hat_inputs(x, b_mean, b_rstd, o_row, m_m, o_k, m_k, s_x, NORM: tl.constexpr):
    """xhat [KS, BM, K] in float32, of rows [BM] and inputs [KS, K]; nothing without a norm."""
    if NORM == "none":
        return 0.0
    else:
        b_x = load_inputs(x, o_row, m_m, o_k, m_k, s_x).to(tl.float32)
        return (b_x - b_mean[None, :, None]) * b_rstd[None, :, None]


@triton.jit
def gradient_inputs(
    d_n,
    b_hat,  # [KS, BM, K]
    scale,  # [N] or None
    b_rstd,  # [BM]
    b_dot,  # [BM]
    b_sum,  # [BM]
    o_row,  # [BM] int64
    m_m,  # [BM]
    o_k,  # [KS, K]
    m_k,  # [KS, K]
    s_d,
    NORM: tl.constexpr,
):
    """The gradient of x, [KS, BM, K] float32, zero for rows outside m_m."""
    b_d = load_inputs(d_n, o_row, m_m, o_k, m_k, s_d).to(tl.float32)
    if NORM == "none":
        return b_d
    else:
        if scale is not None:
            b_d *= tl.load(scale + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
        b_x = b_rstd[None, :, None] * (b_d - b_sum[None, :, None] - b_hat * b_dot[None, :, None])
        return tl.where(m_m[None, :, None] & m_k[:, None, :], b_x, 0.0)
