"""Free nats, as both KL losses have them: of every row, of the mean over all rows, or nowhere."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.config import WIDEST
from fastdream.ops.triton.library import check_floats, check_shape

Pair = tuple[Tensor, Tensor]
Losses = tuple[Tensor, Tensor, Tensor]  # dyn, rep, and the KL before its clamping, which their gradients need


@triton.jit
def store_losses(kl, dyn, rep, o_m, m_m, b_kl, free, CLAMP: tl.constexpr):
    """Losses of rows; of a clamped mean they need the mean first."""
    tl.store(kl + o_m, b_kl, mask=m_m)
    if CLAMP != "mean":
        if CLAMP == "step":
            free = tl.cast(free, tl.float32)
            b_kl = tl.where(b_kl < free, free, b_kl)  # which keeps NaN
        tl.store(dyn + o_m, b_kl, mask=m_m)
        tl.store(rep + o_m, b_kl, mask=m_m)


@triton.jit
def load_grads(kl, d_dyn, d_rep, o_m, m_m, free, CLAMP: tl.constexpr):
    """Gradients of the two losses as those of the KL of each row; below the free nats they are 0."""
    if CLAMP == "mean":
        b_dyn, b_rep = tl.load(d_dyn), tl.load(d_rep)
    else:
        b_dyn = tl.load(d_dyn + o_m, mask=m_m, other=0.0)
        b_rep = tl.load(d_rep + o_m, mask=m_m, other=0.0)
    if CLAMP == "step":
        m_free = tl.load(kl + o_m, mask=m_m, other=0.0) >= tl.cast(free, tl.float32)
        b_dyn, b_rep = tl.where(m_free, b_dyn, 0.0), tl.where(m_free, b_rep, 0.0)
    return b_dyn, b_rep


def check_pair(op: str, event: int, inputs: dict[str, Tensor]) -> None:
    """All inputs like the first, [..., *event]."""
    check_floats(op, **inputs)
    name, first = next(iter(inputs.items()))
    if first.dim() < event or not 0 < first.shape[-1] <= WIDEST:
        expected = f"{event} axes or more, of which the last from 1 to {WIDEST}"
        raise ValueError(f"{op}: {name} has shape {list(first.shape)}, expected {expected}")
    for other, x in inputs.items():
        check_shape(op, other, x, *first.shape)


def losses_of(x: Tensor, event: int, clamp: str) -> Losses:
    rows = x.shape[: x.dim() - event]
    shape = () if clamp == "mean" else rows
    dyn, rep, kl = (x.new_empty(s, dtype=torch.float32) for s in (shape, shape, rows))
    return dyn, rep, kl


def finish(losses: Losses, free: float, clamp: str) -> None:
    """What the kernel leaves to whoever knows all rows."""
    dyn, rep, kl = losses
    if clamp == "mean":
        rep.copy_(torch.clamp_min(torch.mean(kl, out=dyn), free, out=dyn))


def grads_of(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, free: float, clamp: str) -> Pair:
    """Gradients as the kernels read them: of every row, or one number for all rows."""
    if clamp == "mean":
        weight = (kl.mean() >= free) / max(1, kl.numel())
        return d_dyn * weight, d_rep * weight
    return d_dyn.contiguous(), d_rep.contiguous()


def check_grads(op: str, expected: Losses, *given: Tensor) -> None:
    names = "d_dyn", "d_rep", "kl"
    check_floats(op, like=expected[0], **dict(zip(names, given, strict=True)))
    for name, x, wanted in zip(names, given, expected, strict=True):
        check_shape(op, name, x, *wanted.shape)
