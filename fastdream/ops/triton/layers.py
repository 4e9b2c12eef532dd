"""Norm over the last axis, then activation: one pass over x forward, one over x and its gradient backward."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.layers import code, spread
from fastdream.ops.native.params import ACTS, NORMS
from fastdream.ops.params import Act, Norm
from fastdream.ops.triton.config import WIDEST, row_tile
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    contiguous,
    empty_like,
    launch,
    register,
    register_once_differentiable,
    rows_of,
)
from fastdream.ops.triton.math import expm1, tanh

PROGRAMS = 256  # of the backward pass: each adds up its own rows' gradients of scale and shift


@triton.jit
def activate(x, ACT: tl.constexpr):
    """ACT in the order of `native.params.ACTS`."""
    if ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "gelu":
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
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
        s = tl.sigmoid(x)
        grad *= s * (1 + x * (1 - s))
    elif ACT == "gelu":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
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
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    m_x = (o_m < M - i_m) & m_n
    o_x = o_m * N + o_n  # inside of the tile: 32 bits are enough

    b_x = tl.load(x + i_m * N + o_x, mask=m_x, other=0.0).to(tl.float32)
    if NORM != "none":
        b_x, _ = normalize(b_x, m_n, tl.cast(eps, tl.float32), N, NORM)
    if scale is not None:
        b_x *= tl.load(scale + o_n, mask=m_n, other=0.0).to(tl.float32)
    if shift is not None:
        b_x += tl.load(shift + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(y + i_m * N + o_x, activate(b_x, ACT).to(y.dtype.element_ty), mask=m_x)


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
    b_scale = tl.full([1, BN], 1.0, tl.float32)
    b_shift = tl.zeros([1, BN], tl.float32)
    if scale is not None:
        b_scale = tl.load(scale + o_n, mask=m_n, other=0.0).to(tl.float32)
    if shift is not None:
        b_shift = tl.load(shift + o_n, mask=m_n, other=0.0).to(tl.float32)
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
            b_g *= b_scale
            b_dx = b_g - b_x * (tl.sum(b_g * b_x, 1, keep_dims=True) / N)
            if NORM == "layer":
                b_dx -= tl.sum(b_g, 1, keep_dims=True) / N
            b_dx *= b_rstd
        tl.store(d_x + i_m * N + o_x, b_dx.to(d_x.dtype.element_ty), mask=m_x)

    if d_scale is not None:
        tl.store(d_scale + i_p * N + o_n, b_dscale, mask=m_n)
    if d_shift is not None:
        tl.store(d_shift + i_p * N + o_n, b_dshift, mask=m_n)


def norm_act(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """As `fastdream.ops.reference.norm_act`, x float32 or half precision, N at most 16384. Differentiable once."""
    code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    if norm == "none":
        scale = shift = None  # they belong to the norm
    return torch.ops.fastdream.triton_norm_act(x, scale, shift, norm, act, eps)


def _check(op: str, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    check_floats(op, x=x, scale=scale, shift=shift)
    if x.dim() < 1 or not 0 < x.shape[-1] <= WIDEST:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [..., N] with N from 1 to {WIDEST}")
    for name, p in (("scale", scale), ("shift", shift)):
        if p is not None:
            check_shape(op, name, p, x.shape[-1])


def _fake(x: Tensor, scale: Tensor | None, shift: Tensor | None, norm: str, act: str, eps: float) -> Tensor:
    _check("norm_act", x, scale, shift)
    return empty_like(x)


def _forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, norm: str, act: str, eps: float
) -> Tensor:
    y = _fake(x, scale, shift, norm, act, eps)
    rows, width = rows_of(x)
    tile = row_tile(width, capability(x.device))
    launch(
        norm_act_fwd_kernel,
        (triton.cdiv(rows, tile.rows),),
        *contiguous(x, scale, shift),
        y,
        eps,
        rows,
        N=width,
        NORM=norm,
        ACT=act,
        BM=tile.rows,
        BN=tile.cols,
        num_warps=tile.warps,
    )
    return y


def _backward_fake(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: str,
    act: str,
    eps: float,
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _check("norm_act_backward", x, scale, shift)
    check_floats("norm_act_backward", x=x, grad=grad)
    check_shape("norm_act_backward", "grad", grad, *x.shape)
    inputs = zip((x, scale, shift), (True, *wanted), strict=True)
    return [empty_like(p) for p, want in inputs if p is not None and want]


def _backward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: str,
    act: str,
    eps: float,
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    d_x, *d_params = _backward_fake(x, scale, shift, norm, act, eps, grad, wanted)
    rows, width = rows_of(x)
    tile = row_tile(width, capability(x.device), tensors=2)
    programs = min(PROGRAMS, triton.cdiv(rows, tile.rows))
    partial = [p.new_empty(programs, width, dtype=torch.float32) for p in d_params]
    launch(
        norm_act_bwd_kernel,
        (programs,),
        *contiguous(x, scale, shift, grad),
        d_x,
        *spread(partial, wanted),
        eps,
        rows,
        N=width,
        NORM=norm,
        ACT=act,
        BM=tile.rows,
        BN=tile.cols,
        num_warps=tile.warps,
    )
    return [d_x, *(p.sum(0).to(d.dtype) for p, d in zip(partial, d_params, strict=True))]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, *ctx.statics = inputs
    ctx.present = scale is not None, shift is not None
    ctx.save_for_backward(x, *(p for p in (scale, shift) if p is not None))


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *present = ctx.saved_tensors
    scale, shift = spread(present, ctx.present)
    wanted = [*ctx.needs_input_grad[1:3]]
    gradients = torch.ops.fastdream.triton_norm_act_backward(x, scale, shift, *ctx.statics, grad, wanted)
    return (*spread(gradients, (True, *wanted)), None, None, None)


_INPUTS = "Tensor x, Tensor? scale, Tensor? shift, str norm, str act, float eps"
register_once_differentiable(
    register(f"norm_act({_INPUTS}) -> Tensor", _forward, _fake),
    register(
        f"norm_act_backward({_INPUTS}, Tensor grad, bool[] wanted) -> Tensor[]", _backward, _backward_fake
    ),
    _gradient,
    _save,
    "norm_act",
)
