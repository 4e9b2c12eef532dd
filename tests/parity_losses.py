"""Arguments of the parity matrix: numbers of latents, of losses and of whole tensors."""

from typing import Any

import torch

from fastdream.ops.reference.summary import KINDS

from .ops_tools import Maker

Arguments = tuple[Any, ...]
T = 3  # a first step, one in the middle, and a last one


def entropy(unimix: float, m: Maker, n: int) -> Arguments:
    return m.normal(n, T, m.sizes.stoch, m.sizes.classes, scale=2.0), unimix


def summary(m: Maker, n: int) -> Arguments:
    """Every kind of number of tensors of several shapes."""
    shapes = (n + 1, m.sizes.deter), (), (n + 1,), (n + 1, 2, 3), (5000,), (4096,)
    return tuple(m.normal(*shape) for shape in (*shapes, shapes[0])), (*KINDS, "mean")


def inputs(squish: bool, m: Maker, n: int) -> Arguments:
    """Vectors, of which some are missing, bytes, of which none is, and classes, beside each other."""
    wide, narrow = m.normal(n, T, 23, scale=3.0).detach(), m.normal(n, T, 1).detach()
    wide[::2, 1, 5] = -torch.inf
    few, many = m.index(n, T, 2, high=4).to(torch.int32), m.index(n, T, 1, high=17).to(torch.uint8)
    few[1:, 0, 1] = -1
    full = m.index(n, T, 3, high=256).to(torch.uint8)
    full[..., 0, 1] = 255
    return (few, wide, narrow, many, full), (4, 0, 0, 17, 0), squish, m.dtype


def vectors(squish: bool, m: Maker, n: int) -> Arguments:
    shapes = (n, T, 23), (n, T, 1), (n, T, 17)
    outs = tuple(m.normal(*shape) for shape in shapes)
    return outs, tuple(m.normal(*shape, scale=3.0).detach() for shape in shapes), squish


def raw_normals(m: Maker, n: int) -> Arguments:
    return m.normal(n, T, m.sizes.deter), m.normal(n, T, m.sizes.deter, scale=2.0), 0.1, 0.8


def policy_loss(unimix: float, m: Maker, n: int) -> Arguments:
    """Classes of several elements, normals, and classes of one; one step more than is learned from."""
    many, mean, raw, one = (m.normal(n, T + 1, *shape) for shape in ((2, 5), (3,), (3,), (1, 17)))
    std = raw.detach().sigmoid().add(0.1).requires_grad_()
    action = torch.cat([m.normal(n, T + 1, 2 * 5 + 3).detach(), m.normal(n, T + 1, 17).detach()], -1)
    adv, weight = m.normal(n, T).detach(), m.normal(n, T + 2).detach().sigmoid()[:, 1:-1]
    return ((many,), (mean, std), (one,)), action, adv, weight, 3e-2, unimix


def numbers(low: float, high: float, m: Maker, n: int) -> Arguments:
    """Of both signs, some of them equal."""
    x = m.normal(n, T, m.sizes.deter, scale=3.0).detach()
    return torch.where(x.abs() < 1, x.round(), x), low, high
