"""Symlog, and regression as classification over two-hot targets."""

from typing import Literal

import torch
from torch import Tensor

from fastdream.ops.reference.layers import match, upcast

Form = Literal["symexp", "symlog"]


def symlog(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|), elementwise, like x. Its gradient at 0 is 1."""
    # copysign would do as well, but |x| has gradient 0 at 0, and so has a clamped x from PyTorch 2.14 on.
    below, none = x < 0, x.new_zeros(())
    return torch.where(
        below, -torch.log1p(-torch.where(below, x, none)), torch.log1p(torch.where(below, none, x))
    )


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp(|x|) - 1), elementwise, like x: the inverse of `symlog`."""
    below, none = x < 0, x.new_zeros(())
    return torch.where(
        below, -torch.expm1(-torch.where(below, x, none)), torch.expm1(torch.where(below, none, x))
    )


def twohot_bins(
    n: int,
    form: Form = "symexp",
    lo: float = -20.0,
    hi: float = 20.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """n bin values [n], ascending and exactly antisymmetric: bins[i] == -bins[n - 1 - i].

    The exponents are evenly spaced in [lo, 0] and mirrored (an odd n has one bin at 0; an even n has two
    zeros, as in the official code). form "symexp": values in raw space, symexp of the exponents (current
    DreamerV3). "symlog": n values evenly spaced in [lo, hi] of symlog space (DreamerV3 of 2023).
    Raises ValueError unless n >= 2 and lo == -hi.
    """
    if n < 2 or lo != -hi:
        raise ValueError(f"two-hot bins need n >= 2 and lo == -hi not {n=} {lo=} {hi=}")
    if form == "symexp":
        half = symexp(torch.linspace(lo, 0, (n + 1) // 2, dtype=torch.float64, device=device))
    elif form == "symlog":
        half = torch.linspace(lo, hi, n, dtype=torch.float64, device=device)[: (n + 1) // 2]
        half = torch.where(torch.arange(len(half), device=device) * 2 == n - 1, 0.0, half)
    else:
        raise ValueError(f"unknown form {form!r} of two-hot bins; choose symexp or symlog")
    return torch.cat([half, -half[: n // 2].flip(0)]).to(dtype)


def twohot_mean(logit: Tensor, bins: Tensor, form: Form = "symexp") -> Tensor:
    """Mean of the distribution over bins, logit [..., K], bins [K] -> [...] in float32 at least.

    Mirrored bins are summed in pairs first, so that equal logits give exactly 0. Form "symlog" returns
    symexp of the mean. Source: DreamerV3 `outs.TwoHot.pred`.
    """
    weighted = torch.softmax(upcast(logit), -1) * bins
    count = bins.shape[-1]
    half = count // 2
    mean = (weighted[..., :half].flip(-1) + weighted[..., count - half :]).sum(-1)
    if count % 2:
        mean = weighted[..., half] + mean
    return symexp(mean) if form == "symlog" else mean


def twohot_loss(logit: Tensor, target: Tensor, bins: Tensor, form: Form = "symexp") -> Tensor:
    """Cross-entropy in nats with the two-hot target, logit [..., K], target [...] -> [...].

    Further axes in front of the target's are several targets of the same logits: [n, ...] -> [n, ...].
    The target's weight is shared between the two bins around it in proportion to their nearness, in raw
    space ("symexp") or after symlog ("symlog"); outside the bins all of it is on the end bin. The target
    gets no gradient; only two log probabilities of each row are read. float32 at least.
    Source: DreamerV3 `outs.TwoHot.loss`.
    """
    logit, target = upcast(logit), match(target.detach(), bins.dtype).contiguous()
    target = symlog(target) if form == "symlog" else target
    below = (torch.searchsorted(bins.contiguous(), target, right=True) - 1).clamp(0, bins.shape[-1] - 2)
    low, high = bins[below], bins[below + 1]
    above_weight = ((target - low) / (high - low)).clamp(0, 1)
    log_norm = torch.logsumexp(logit, -1)
    logit = logit.expand(*target.shape, -1)
    log_low = logit.gather(-1, below[..., None]).squeeze(-1) - log_norm
    log_high = logit.gather(-1, below[..., None] + 1).squeeze(-1) - log_norm
    return -((1 - above_weight) * log_low + above_weight * log_high)
