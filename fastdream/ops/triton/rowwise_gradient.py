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
from fastdream.ops.triton.rowwise import PLANES


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
def scaled(b_d, scale, o_n, m_n):
    """d_n * scale in float32, b_d [BM, BN]."""
    b_d = b_d.to(tl.float32)
    if scale is not None:
        b_d *= tl.load(scale + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    return b_d


@triton.jit
def store_gradient(
    b_grad,  # [BM, BN], of y
    x,
    scale,  # [N] or None
    shift,  # [N] or None
    d_n,
    dots,  # [tiles, planes, M] or None
    b_mean,  # [BM]
    b_rstd,  # [BM]
    i_tile,
    o_m,  # [BM]
    o_n,  # [BN]
    m_n,  # [BN]
    M,
    s_x,
    s_d,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
):
    """Write d_n of one tile, and its dots."""
    o_row = o_m.to(tl.int64)[:, None]
    m_x = (o_m < M)[:, None] & m_n[None, :]
    b_hat = tl.load(x + o_row * s_x + o_n[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_hat = (b_hat - b_mean[:, None]) * b_rstd[:, None]
    b_n = scaled(b_hat, scale, o_n, m_n)
    if shift is not None:
        b_n += tl.load(shift + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    b_d = activate_grad(b_n, b_grad, ACT).to(d_n.dtype.element_ty)
    tl.store(d_n + o_row * s_d + o_n[None, :], b_d, mask=m_x)
    if NORM != "none":
        b_g = tl.where(m_x, scaled(b_d, scale, o_n, m_n), 0.0)
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
    """Means over whole rows of d_n * scale * xhat and of d_n * scale (0 for rms), both [BM]."""
    if NORM == "none":
        return tl.zeros_like(o_m).to(tl.float32), tl.zeros_like(o_m).to(tl.float32)
    else:
        STEP: tl.constexpr = 1 if NORM == "rms" else 2
        o_t = tl.arange(0, BT)
        m_t = (o_t < TILES)[:, None] & (o_m < M)[None, :]
        p_dots = dots + STEP * o_t[:, None] * M + o_m[None, :]
        b_dot = tl.sum(tl.load(p_dots, mask=m_t, other=0.0), 0) / WIDTH
        if NORM == "rms":
            return b_dot, tl.zeros_like(b_dot)
        else:
            return b_dot, tl.sum(tl.load(p_dots + M, mask=m_t, other=0.0), 0) / WIDTH


@triton.jit
def load_gradient(
    d_n,
    x,
    scale,  # [N] or None
    b_mean,  # [BM]
    b_rstd,  # [BM]
    b_dot,  # [BM]
    b_sum,  # [BM]
    o_row,  # [BM] int64
    m_m,  # [BM]
    o_n,  # [BN]
    m_n,  # [BN]
    s_d,
    s_x,
    NORM: tl.constexpr,
):
    """The gradient of x, [BM, BN] float32, zero for rows outside m_m."""
    m_x = m_m[:, None] & m_n[None, :]
    b_d = tl.load(d_n + o_row[:, None] * s_d + o_n[None, :], mask=m_x, other=0.0)
    if NORM == "none":
        return b_d.to(tl.float32)
    else:
        b_hat = tl.load(x + o_row[:, None] * s_x + o_n[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_hat = (b_hat - b_mean[:, None]) * b_rstd[:, None]
        b_x = b_rstd[:, None] * (scaled(b_d, scale, o_n, m_n) - b_sum[:, None] - b_hat * b_dot[:, None])
        return tl.where(m_x, b_x, 0.0)
