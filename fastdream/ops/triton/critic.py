"""The critic's loss in one pass over its logits, and its gradient in another: two two-hot targets, weighted.

Of N sequences of S steps, H are learned from: M = N * H rows of the R = N * S that logits have. Those of target, slow
and weight, which may be the first steps of longer ones, lie s_* apart for each sequence.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.twohot import in_symlog
from fastdream.ops.reference.twohot import Form
from fastdream.ops.triton.config import warp_tile
from fastdream.ops.triton.library import (
    capability,
    check_shape,
    launch,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import load_logits
from fastdream.ops.triton.padding import as_rows, empty_rows, padded, readable
from fastdream.ops.triton.twohot import check_bins, cross_entropy, locate

Pair = tuple[Tensor, Tensor]


@triton.jit
def two_hot(bins, b_bins, b_t, K: tl.constexpr, BK: tl.constexpr, SYMLOG: tl.constexpr):
    """Of targets [BM, 1], over the bins."""
    o_k = tl.arange(0, BK)[None, :]
    b_low, b_w = locate(bins, b_bins, b_t, o_k < K, K, SYMLOG)
    return tl.where(o_k == b_low, 1 - b_w, 0.0) + tl.where(o_k == b_low + 1, b_w, 0.0)


@triton.jit(do_not_specialize=["M", "S", "H", "s_target", "s_slow", "s_weight"])
def critic_loss_fwd_kernel(
    logit,  # [R, K]
    target,
    slow,
    weight,
    bins,  # [K], ascending
    loss,  # [M]
    norm,  # [M]
    slowreg,
    M,
    S,
    H,
    s_x,
    s_target,
    s_slow,
    s_weight,
    K: tl.constexpr,
    READ: tl.constexpr,
    SYMLOG: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    i_m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    o_k = tl.arange(0, BK)[None, :]
    m_m = i_m < M
    # Divided in 32 bits: a division in 64 is a call, for which registers are put on the stack.
    i_n, i_h = (i_m // H).to(tl.int64), i_m % H
    p_x = logit + (i_n * S + i_h) * s_x

    b_target = tl.load(target + i_n * s_target + i_h, mask=m_m, other=0.0).to(tl.float32)
    b_slow = tl.load(slow + i_n * s_slow + i_h, mask=m_m, other=0.0).to(tl.float32)
    b_x = load_logits(p_x + o_k, m_m & (o_k < READ), o_k < K)
    b_bins = tl.load(bins + o_k, mask=o_k < K, other=0.0).to(tl.float32)
    b_max = tl.max(b_x, 1, keep_dims=True)
    b_norm = b_max + tl.log(tl.sum(tl.exp(b_x - b_max), 1, keep_dims=True))
    b_loss = cross_entropy(p_x, bins, b_bins, b_target, b_norm, m_m, o_k < K, K, SYMLOG)
    b_loss += slowreg * cross_entropy(p_x, bins, b_bins, b_slow, b_norm, m_m, o_k < K, K, SYMLOG)
    b_loss *= tl.load(weight + i_n * s_weight + i_h, mask=m_m, other=0.0).to(tl.float32)
    tl.store(norm + i_m, b_norm, mask=m_m)
    tl.store(loss + i_m, b_loss, mask=m_m)


@triton.jit(do_not_specialize=["R", "S", "H", "s_target", "s_slow", "s_weight"])
def critic_loss_bwd_kernel(
    logit,  # [R, K]
    target,
    slow,
    weight,
    bins,  # [K], ascending
    norm,  # [M]
    grad,  # [M]
    d_logit,  # [R, W], rows without gaps: zeros beyond K, and in steps that are not learned from
    slowreg,
    R,
    S,
    H,
    s_x,
    s_target,
    s_slow,
    s_weight,
    K: tl.constexpr,
    W: tl.constexpr,
    READ: tl.constexpr,
    SYMLOG: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    i_r = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    o_k = tl.arange(0, BK)[None, :]
    m_r = i_r < R
    i_n, i_h, i_r = (i_r // S).to(tl.int64), i_r % S, i_r.to(tl.int64)
    m_m = m_r & (i_h < H)
    i_m = i_n * H + i_h

    b_target = tl.load(target + i_n * s_target + i_h, mask=m_m, other=0.0).to(tl.float32)
    b_slow = tl.load(slow + i_n * s_slow + i_h, mask=m_m, other=0.0).to(tl.float32)
    b_g = tl.load(grad + i_m, mask=m_m, other=0.0).to(tl.float32)
    b_g *= tl.load(weight + i_n * s_weight + i_h, mask=m_m, other=0.0).to(tl.float32)
    b_x = load_logits(logit + i_r * s_x + o_k, m_m & (o_k < READ), o_k < K)
    b_bins = tl.load(bins + o_k, mask=o_k < K, other=0.0).to(tl.float32)
    b_dx = (1 + slowreg) * tl.exp(b_x - tl.load(norm + i_m, mask=m_m, other=0.0))
    b_dx -= two_hot(bins, b_bins, b_target, K, BK, SYMLOG)
    b_dx -= slowreg * two_hot(bins, b_bins, b_slow, K, BK, SYMLOG)
    b_dx = tl.where(m_m, b_g * b_dx, 0.0)
    tl.store(d_logit + i_r * W + o_k, b_dx.to(d_logit.dtype.element_ty), mask=m_r & (o_k < W))


def critic_loss(
    logit: Tensor,
    target: Tensor,
    slow: Tensor,
    weight: Tensor,
    slowreg: float,
    bins: Tensor,
    form: Form = "symexp",
) -> Tensor:
    """As `fastdream.ops.reference.critic_loss`, float32 or half precision. Differentiable once, in logit."""
    given = (x.detach() for x in (target, slow, weight))
    return torch.ops.fastdream.triton_critic_loss(logit, *given, bins, slowreg, in_symlog(form))[0]


def _check(op: str, logit: Tensor, bins: Tensor, target: Tensor, **others: Tensor) -> None:
    check_bins(op, logit, bins, target=target, **others)
    if logit.dim() != 3 or target.dim() != 2 or target.shape[1] > logit.shape[1]:
        raise ValueError(
            f"{op}: target has shape {list(target.shape)}, expected [N, H] for logits {list(logit.shape)}"
        )
    check_shape(op, "target", target, len(logit), target.shape[1])
    for name, x in others.items():
        check_shape(op, name, x, *target.shape)


def _fake(
    logit: Tensor, target: Tensor, slow: Tensor, weight: Tensor, bins: Tensor, slowreg: float, symlog: bool
) -> Pair:
    _check("critic_loss", logit, bins, target, slow=slow, weight=weight)
    loss, norm = (target.new_empty(target.shape, dtype=torch.float32) for _ in range(2))
    return loss, norm


def _launch(
    kernel: Any, rows: int, inputs: tuple[Any, ...], given: tuple[Tensor, ...], **constants: Any
) -> None:
    """given: what the kernel takes beside the op's inputs."""
    logit, target, slow, weight, bins, slowreg, symlog = inputs
    x, *others = (as_rows(y) for y in (logit, target, slow, weight))
    tile = warp_tile(len(bins), capability(x.device))
    launch(
        kernel,
        (triton.cdiv(rows, tile.rows),),
        x,
        *others,
        bins.contiguous(),
        *given,
        slowreg,
        rows,
        logit.shape[1],
        target.shape[1],
        x.stride(0),
        *(y.stride(0) for y in others),
        K=len(bins),
        READ=readable(x),
        SYMLOG=symlog,
        BM=tile.rows,
        BK=tile.cols,
        num_warps=tile.warps,
        **constants,
    )


def _forward(*inputs: Any) -> Pair:
    loss, norm = _fake(*inputs)
    _launch(critic_loss_fwd_kernel, loss.numel(), inputs, (loss, norm))
    return loss, norm


def _backward_fake(grad: Tensor, *given: Any) -> Tensor:
    logit, target, slow, weight, bins, norm, *_ = given
    _check("critic_loss_backward", logit, bins, target, slow=slow, weight=weight, norm=norm, grad=grad)
    return empty_rows(logit, *logit.shape)


def _backward(grad: Tensor, *given: Any) -> Tensor:
    d_logit = _backward_fake(grad, *given)
    *tensors, norm, slowreg, symlog = given
    logit, wide = tensors[0], padded(d_logit.shape[2])
    others = norm.contiguous(), grad.contiguous(), d_logit
    rows = logit.shape[:2].numel()
    _launch(critic_loss_bwd_kernel, rows, (*tensors, slowreg, symlog), others, W=wide)
    return d_logit


_GIVEN = "Tensor logit, Tensor target, Tensor slow, Tensor weight, Tensor bins"
_NUMBERS = "float slowreg, bool symlog"
register_gradient(
    register(f"critic_loss({_GIVEN}, {_NUMBERS}) -> (Tensor, Tensor)", _forward, _fake),
    register(
        f"critic_loss_backward(Tensor grad, {_GIVEN}, Tensor norm, {_NUMBERS}) -> Tensor",
        _backward,
        _backward_fake,
    ),
    lambda inputs, output: (*inputs[:5], output[1]),
)
