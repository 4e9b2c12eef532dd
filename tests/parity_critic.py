"""Arguments of the parity matrix: returns, and losses over bins."""

from typing import Any

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
    """One step more than is learned from; each of the others is a part of rows of another length."""
    logit, target, bins, _ = twohot_loss(form, m, n)
    slow, weight = m.normal(n, T + 1, scale=30.0).detach(), m.normal(n, T + 2).detach().sigmoid()
    return logit, target[:, :-1], slow[:, 2:], weight[:, : T - 1], 0.7, bins, form


def lambda_return(m: Maker, n: int) -> Arguments:
    live, mix = (m.normal(n, T).detach().sigmoid().requires_grad_() for _ in range(2))
    return m.normal(n, T), live, mix, m.normal(n, T)
