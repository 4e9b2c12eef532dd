"""What Triton's kernels of returns and losses are compiled and compared at: whole dreams."""

import math

from fastdream.ops import twohot_bins

from .ops_tools import Maker
from .parity_losses import Arguments


def twohot_loss(targets: int, m: Maker, n: int) -> Arguments:
    return m.normal(n, 255), m.normal(targets, n, scale=30.0).detach(), twohot_bins(255), "symexp"


def twohot_mean(m: Maker, n: int) -> Arguments:
    return m.normal(n, 255), twohot_bins(255), "symexp"


def critic_loss(m: Maker, n: int) -> Arguments:
    """Of whole dreams."""
    target, others = m.normal(n, 15, scale=30.0).detach(), m.normal(2, n, 16).detach()[..., :-1]
    return m.normal(n, 16, 255), target, *others, 1.0, twohot_bins(255), "symexp"


def lambda_return(steps: int, m: Maker, n: int) -> Arguments:
    live, mix = (m.normal(n, steps).detach().sigmoid().requires_grad_() for _ in range(2))
    return m.normal(n, steps), live, mix, m.normal(n, steps)


def policy_loss(kind: str, m: Maker, n: int) -> Arguments:
    """Of whole dreams: Atari's actions, many classes, or the forces on a body."""
    shape = {"atari": (1, 18), "classes": (3, 41), "forces": (21,)}[kind]
    outs = [m.normal(n, 16, *shape)]
    if kind == "forces":
        outs.append(m.normal(n, 16, *shape).detach().sigmoid().requires_grad_())
    action, adv = m.normal(n, 16, math.prod(shape)).detach(), m.normal(n, 15).detach()
    return (tuple(outs),), action, adv, m.normal(n, 16).detach()[:, :-1], 3e-4, 0.0


def returns(m: Maker, n: int) -> Arguments:
    """Of a whole dream."""
    return m.normal(n, 15).detach(), 5.0, 95.0
