"""Two-hot cross-entropy: all targets of a row share its normaliser, and none is ever laid out over the bins.

Rows of logits lie s_x apart; of their K columns and the padding behind them, `READ` may be read.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.twohot import check_target, in_symlog
from fastdream.ops.reference.twohot import Form
from fastdream.ops.triton.config import WIDEST, Tile, warp_tile
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    contiguous,
    launch,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import load_logits, own_rows
from fastdream.ops.triton.padding import as_rows, empty_rows, padded, readable
from fastdream.ops.triton.pointwise import symlog_of

Pair = tuple[Tensor, Tensor]


@triton.jit
def locate(bins, b_bins, b_t, m_n, K: tl.constexpr, SYMLOG: tl.constexpr):
    """The lower of the two bins around targets [BM, 1], and the weight of the upper one. b_bins [1, BK]."""
    if SYMLOG:
        b_t = symlog_of(b_t)
    # Counted in floats, exactly: sums of flags become counts of bits, which are put together in local memory.
    b_low = tl.sum(tl.where(m_n & (b_bins <= b_t), 1.0, 0.0), 1, keep_dims=True).to(tl.int32) - 1
    b_low = tl.minimum(tl.maximum(b_low, 0), K - 2)
    b_from = tl.load(bins + b_low).to(tl.float32)
    b_to = tl.load(bins + b_low + 1).to(tl.float32)
    b_w = (b_t - b_from) / (b_to - b_from)
    b_w = tl.where(b_w < 0, 0.0, tl.where(b_w > 1, 1.0, b_w))  # which keeps NaN
    return b_low, b_w


@triton.jit
def cross_entropy(p_x, bins, b_bins, b_t, b_norm, m_m, m_k, K: tl.constexpr, SYMLOG: tl.constexpr):
    """Of the two-hot of targets [BM, 1] with the logits of their rows, which begin at p_x."""
    b_low, b_w = locate(bins, b_bins, b_t, m_k, K, SYMLOG)
    b_from = tl.load(p_x + b_low, mask=m_m, other=0.0).to(tl.float32) - b_norm
    b_to = tl.load(p_x + b_low + 1, mask=m_m, other=0.0).to(tl.float32) - b_norm
    return -((1 - b_w) * b_from + b_w * b_to)


@triton.jit(do_not_specialize=["T", "M"])
def twohot_loss_fwd_kernel(
    logit,  # [M, K]
    target,  # [T, M]
    bins,  # [K], ascending
    loss,  # [T, M]
    norm,  # [M]
    T,
    M,
    s_x,
    K: tl.constexpr,
    READ: tl.constexpr,
    SYMLOG: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    i_m, o_m, o_k, m_m, m_k = own_rows(M, K, BM, BK)
    p_x = logit + (i_m + o_m) * s_x

    b_x = load_logits(p_x + o_k, m_m & (o_k < READ), m_k)
    b_bins = tl.load(bins + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_max = tl.max(b_x, 1, keep_dims=True)
    b_norm = b_max + tl.log(tl.sum(tl.exp(b_x - b_max), 1, keep_dims=True))
    tl.store(norm + i_m + o_m, b_norm, mask=m_m)
    for i_t in range(T):
        o_t = tl.cast(i_t, tl.int64) * M + i_m + o_m
        b_t = tl.load(target + o_t, mask=m_m, other=0.0).to(tl.float32)
        b_loss = cross_entropy(p_x, bins, b_bins, b_t, b_norm, m_m, m_k, K, SYMLOG)
        tl.store(loss + o_t, b_loss, mask=m_m)


@triton.jit(do_not_specialize=["T", "M"])
def twohot_loss_bwd_kernel(
    logit,  # [M, K]
    target,  # [T, M]
    bins,  # [K], ascending
    norm,  # [M]
    grad,  # [T, M]
    d_logit,  # [M, W], rows without gaps: zeros beyond K
    T,
    M,
    s_x,
    K: tl.constexpr,
    W: tl.constexpr,
    READ: tl.constexpr,
    SYMLOG: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    i_m, o_m, o_k, m_m, m_k = own_rows(M, K, BM, BK)

    b_bins = tl.load(bins + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BM, 1], tl.float32)
    b_dx = tl.zeros([BM, BK], tl.float32)
    for i_t in range(T):
        o_t = tl.cast(i_t, tl.int64) * M + i_m + o_m
        b_t = tl.load(target + o_t, mask=m_m, other=0.0).to(tl.float32)
        b_g = tl.load(grad + o_t, mask=m_m, other=0.0).to(tl.float32)
        b_low, b_w = locate(bins, b_bins, b_t, m_k, K, SYMLOG)
        b_sum += b_g
        b_dx -= tl.where(o_k == b_low, b_g * (1 - b_w), 0.0) + tl.where(o_k == b_low + 1, b_g * b_w, 0.0)
    b_x = load_logits(logit + (i_m + o_m) * s_x + o_k, m_m & (o_k < READ), m_k)
    b_dx += b_sum * tl.exp(b_x - tl.load(norm + i_m + o_m, mask=m_m, other=0.0))
    p_dx = d_logit + (i_m + o_m) * W + o_k
    tl.store(p_dx, b_dx.to(d_logit.dtype.element_ty), mask=m_m & (o_k < W))


def twohot_loss(logit: Tensor, target: Tensor, bins: Tensor, form: Form = "symexp") -> Tensor:
    """As `fastdream.ops.reference.twohot_loss`, float32 or half precision. Differentiable once, in logit."""
    target = target.detach().to(bins.dtype)
    return torch.ops.fastdream.triton_twohot_loss(logit, target, bins, in_symlog(form))[0]


def check_bins(op: str, logit: Tensor, bins: Tensor, **others: Tensor) -> None:
    """logit [..., K] and bins [K]."""
    check_floats(op, logit=logit, bins=bins, **others)
    if bins.dim() != 1 or not 2 <= bins.shape[0] <= WIDEST:
        raise ValueError(f"{op}: bins has shape {list(bins.shape)}, expected [K] with K from 2 to {WIDEST}")
    if logit.dim() < 1 or logit.shape[-1] != bins.shape[0]:
        raise ValueError(f"{op}: logit has shape {list(logit.shape)}, expected [..., {bins.shape[0]}]")


def launch_bins(kernel: Any, logit: Tensor, tile: Tile, symlog: bool, *args: Any, **constants: Any) -> None:
    """Programs of a tile of the rows of logit, of which the kernel is told behind args."""
    rows, bins = logit.shape
    launch(
        kernel,
        (triton.cdiv(rows, tile.rows),),
        *args,
        rows,
        logit.stride(0),
        K=bins,
        SYMLOG=symlog,
        BM=tile.rows,
        BK=tile.cols,
        num_warps=tile.warps,
        **constants,
    )


def _fake(logit: Tensor, target: Tensor, bins: Tensor, in_symlog: bool) -> Pair:
    check_bins("twohot_loss", logit, bins, target=target)
    check_target("twohot_loss", logit, target)
    return (
        target.new_empty(target.shape, dtype=torch.float32),
        logit.new_empty(logit.shape[:-1], dtype=torch.float32),
    )


def _forward(logit: Tensor, target: Tensor, bins: Tensor, in_symlog: bool) -> Pair:
    loss, norm = _fake(logit, target, bins, in_symlog)
    args = *contiguous(target, bins), loss, norm
    _launch(twohot_loss_fwd_kernel, as_rows(logit), in_symlog, *args)
    return loss, norm


def _launch(kernel: Any, x: Tensor, symlog: bool, target: Any, *others: Any, **constants: int) -> None:
    tile, targets = warp_tile(x.shape[1], capability(x.device)), target.numel() // max(1, len(x))
    launch_bins(kernel, x, tile, symlog, x, target, *others, targets, READ=readable(x), **constants)


def _backward_fake(
    grad: Tensor, logit: Tensor, target: Tensor, bins: Tensor, norm: Tensor, in_symlog: bool
) -> Tensor:
    op = "twohot_loss_backward"
    check_bins(op, logit, bins, grad=grad, target=target, norm=norm)
    check_target(op, logit, target)
    check_shape(op, "grad", grad, *target.shape)
    check_shape(op, "norm", norm, *logit.shape[:-1])
    return empty_rows(logit, *logit.shape)


def _backward(
    grad: Tensor, logit: Tensor, target: Tensor, bins: Tensor, norm: Tensor, in_symlog: bool
) -> Tensor:
    d_logit = _backward_fake(grad, logit, target, bins, norm, in_symlog)
    x, args = as_rows(logit), (*contiguous(target, bins, norm, grad), d_logit)
    _launch(twohot_loss_bwd_kernel, x, in_symlog, *args, W=padded(x.shape[1]))
    return d_logit


register_gradient(
    register(
        "twohot_loss(Tensor logit, Tensor target, Tensor bins, bool in_symlog) -> (Tensor, Tensor)",
        _forward,
        _fake,
    ),
    register(
        "twohot_loss_backward(Tensor grad, Tensor logit, Tensor target, Tensor bins, Tensor norm,"
        " bool in_symlog) -> Tensor",
        _backward,
        _backward_fake,
    ),
    lambda inputs, output: (*inputs[:3], output[1]),
)
