"""What the parity matrix calls the ops of images with, and the norm that follows them."""

from typing import Any

import torch

from .ops_tools import Maker

Arguments = tuple[Any, ...]


def norm_act(norm: str, act: str, m: Maker, n: int) -> Arguments:
    x, scale, shift = m.normal(n, m.sizes.deter), m.normal(m.sizes.deter), m.normal(m.sizes.deter)
    return x, None if norm == "none" else scale, shift if norm == "layer" else None, norm, act, 1e-3


def doubled(kernel: int, norm: str, act: str, m: Maker, n: int) -> Arguments:
    """Of odd height; the weight as its caller has it, a view of another order."""
    width = m.sizes.deter
    weight = m.normal(width, 2, 4, kernel, kernel, scale=0.5).permute(2, 0, 1, 3, 4)
    filters = weight.detach().requires_grad_(), m.normal(width)
    return m.normal(n, 5, 4, 2), *filters, *norm_act(norm, act, m, n)[1:]


def convolved(kernel: int, norm: str, act: str, m: Maker, n: int) -> Arguments:
    """Of odd height, whose last row is not pooled."""
    width = m.sizes.deter
    filters = m.normal(width, 2, kernel, kernel), m.normal(width)
    return m.normal(n, 5, 4, 2), *filters, *norm_act(norm, act, m, n)[1:]


def image_loss(m: Maker, n: int) -> Arguments:
    """Images in rows of two."""
    shape = n, 2, 3, 5, m.sizes.deter
    return m.normal(*shape, scale=3.0), m.index(*shape, high=256).to(torch.uint8)
