"""Vectors and classes of observations and actions: side by side as an input, and compared with what was predicted."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdream.ops.reference.layers import upcast
from fastdream.ops.reference.twohot import symlog


def join_inputs(parts: Sequence[Tensor], classes: Sequence[int], squish: bool, dtype: torch.dtype) -> Tensor:
    """Parts [..., w] side by side, [..., F] in dtype.

    classes, of each part: 0 of numbers, which symlog compresses if `squish` says so; otherwise how many there are, of
    which each element becomes a one-hot. A row of a part that holds -1 (integers) or -inf (floats) anywhere is missing:
    all its features are 0.
    """
    found = []
    for x, count in zip(parts, classes, strict=True):
        if count:
            y = (x.unsqueeze(-1) == torch.arange(count, device=x.device)).flatten(-2)
            found.append(_present(x, y.to(dtype)))
        else:
            y = _present(x, x if x.is_floating_point() else x.float())
            found.append((symlog(y) if squish else y).to(dtype))
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def _present(x: Tensor, y: Tensor) -> Tensor:
    """y, zero in rows of x that are missing."""
    if not x.dtype.is_signed:  # has no -1, for which torch would take its largest number
        return y
    missing = (x == (-math.inf if x.is_floating_point() else -1)).any(-1, keepdim=True)
    return y.masked_fill(missing, 0)


def vector_losses(outs: Sequence[Tensor], targets: Sequence[Tensor], squish: bool) -> tuple[Tensor, ...]:
    """Squared error of each pair [..., w], summed over w: [...] each, in float32 at least.

    squish: to the symlog of the target. Gradients flow into outs alone.
    """

    def loss(out: Tensor, target: Tensor) -> Tensor:
        out = upcast(out)
        target = target.detach().to(out.dtype)
        return (out - (symlog(target) if squish else target)).square().sum(-1)

    return tuple(map(loss, outs, targets))
