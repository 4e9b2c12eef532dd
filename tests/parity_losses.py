"""What the parity matrix calls returns and losses with."""

from typing import Any

import torch

from fastdream.ops import twohot_bins

from .ops_tools import Maker

Arguments = tuple[Any, ...]
T = 4


def twohot_loss(form: str, m: Maker, n: int) -> Arguments:
    bins = twohot_bins(41).to(m.dtype)
    return (
        m.normal(n, T, 41),
        m.normal(n, T, scale=30.0).detach(),
        bins if form == "symexp" else bins.sign() * bins.abs().log1p(),
        form,
    )


def twohot_mean(form: str, m: Maker, n: int) -> Arguments:
    logit, _, bins, _ = twohot_loss(form, m, n)
    return logit, bins, form


def critic_loss(form: str, m: Maker, n: int) -> Arguments:
    """One step more than is learned from."""
    logit, target, bins, _ = twohot_loss(form, m, n)
    slow, weight = m.normal(n, T, scale=30.0).detach()[:, 1:], m.normal(n, T).detach().sigmoid()[:, :-1]
    return logit, target[:, :-1], slow, weight, 0.7, bins, form


def lambda_return(m: Maker, n: int) -> Arguments:
    live, mix = (m.normal(n, T).detach().sigmoid().requires_grad_() for _ in range(2))
    return m.normal(n, T), live, mix, m.normal(n, T)


def policy_loss(unimix: float, m: Maker, n: int) -> Arguments:
    """Classes of several elements, normals, and classes of one; one step more than is learned from."""
    many, mean, raw, one = (m.normal(n, T + 1, *shape) for shape in ((2, 5), (3,), (3,), (1, 17)))
    std = raw.detach().sigmoid().add(0.1).requires_grad_()
    action = torch.cat([m.normal(n, T + 1, 2 * 5 + 3).detach(), m.normal(n, T + 1, 17).detach()], -1)
    adv, weight = m.normal(n, T).detach(), m.normal(n, T).detach().sigmoid()
    return ((many,), (mean, std), (one,)), action, adv, weight, 3e-2, unimix


def numbers(low: float, high: float, m: Maker, n: int) -> Arguments:
    """Of both signs, some of them equal."""
    x = m.normal(n, T, m.sizes.deter, scale=3.0).detach()
    return torch.where(x.abs() < 1, x.round(), x), low, high
