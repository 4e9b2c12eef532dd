"""Calls of losses, of what is logged, and of the vectors that a batch begins with."""

import torch

from fastdream import ops as fd

from .inputs import Call, Source
from .shapes import Shape

SENSORS = 24


def critic_loss(s: Shape) -> Call:
    """On imagined states, of which the last is not learned from."""
    r, dims = Source(), (s.starts, s.horizon)
    logit = r.normal(s.starts, s.horizon + 1, s.bins)
    target, slow = (100 * r.normal(*dims, grad=False) for _ in range(2))
    return Call((logit, target, slow, r.uniform(*dims), 1.0, fd.twohot_bins(s.bins)))


def reinforce(s: Shape) -> Call:
    """A normal in every dimension of the action."""
    r, dims = Source(), (s.starts, s.horizon + 1, s.action)
    std = (0.1 + r.uniform(*dims)).requires_grad_()
    action, adv = r.normal(*dims, grad=False), r.normal(s.starts, s.horizon, grad=False)
    return Call((((r.normal(*dims), std),), action, adv, r.uniform(s.starts, s.horizon), 3e-4))


def bounded_normal(s: Shape) -> Call:
    """Of the actor on imagined states."""
    r, dims = Source(), (s.starts, s.horizon + 1, s.action)
    return Call((r.normal(*dims), r.normal(*dims)))


def percentiles(s: Shape) -> Call:
    """Of imagined returns."""
    return Call((Source().normal(s.starts, s.horizon, grad=False), 5.0, 95.0))


def latent_entropy(s: Shape) -> Call:
    """Of a batch."""
    return Call((Source().normal(s.batch, s.length, s.stoch, s.classes, grad=False), 0.01))


def summarize(s: Shape) -> Call:
    """Means of losses of a batch and of imagined states."""
    r = Source()
    losses = [r.normal(s.batch, s.length) for _ in range(5)] + [
        r.normal(s.starts, s.horizon) for _ in range(2)
    ]
    return Call((losses, ["mean"] * len(losses)))


def join_inputs(s: Shape) -> Call:
    """Sensors."""
    return Call(((Source().normal(s.batch, s.length, SENSORS, grad=False),), (0,), True, torch.float32))


def vector_losses(s: Shape) -> Call:
    """Sensors."""
    r, dims = Source(), (s.batch, s.length, SENSORS)
    return Call(((r.normal(*dims),), (r.normal(*dims, grad=False),), True))
