"""What the parity matrix calls World Models' memory with."""

from typing import Any

import torch

from fastdream.ops import MDNRNN, Control
from fastdream.ops.params import Layer

from .ops_tools import A, Maker, safe_noise
from .parity_losses import T

Arguments = tuple[Any, ...]


def lstm_mdn(restart: bool, tau: float, m: Maker, n: int) -> Arguments:
    """With mixtures of constant logits, so that it is known which numbers draw a component for certain."""
    latents, width, count = m.sizes.stoch, m.sizes.deter, 5
    weight, bias = (
        m.normal(1 + 3 * latents * count, width, scale=width**-0.5),
        m.normal(1 + 3 * latents * count),
    )
    of_mixtures = torch.arange(len(bias) - 1).view(latents, 3, count) + 1
    weight = weight.detach().index_fill(0, of_mixtures[:, 0].flatten().to(weight.device), 0.0)
    logit = (bias[of_mixtures[:, 0]] / tau).expand(n, latents, count)
    weights = m.normal(4 * width, latents + A + restart, scale=0.5), m.normal(4 * width, width, scale=0.3)
    model = MDNRNN(*weights, m.normal(4 * width, scale=0.3), Layer(weight, bias), count, restart)
    state = m.normal(n, width), m.normal(n, width), m.normal(n, latents), m.normal(n, A), m.uniform(n) < 0.3
    return model, *state, safe_noise(logit, 0.0, m.index(n, latents, high=count)), m.normal(n, latents), tau


def lstm_mdn_dream(restart: bool, cell: bool, bias: bool, m: Maker, n: int) -> Arguments:
    """Its first step as above; in the later ones, too, it is certain what is drawn."""
    model, hidden, state, latent, action, first, uniform, normal, tau = lstm_mdn(restart, 1.15, m, n)
    width = m.sizes.stoch + m.sizes.deter * (1 + cell)
    weight = m.normal(n, width, A, scale=width**-0.5)
    control = Control(weight, m.normal(n, A) if bias else None)
    noise = uniform[:, None].expand(-1, T, -1), normal[:, None] + m.normal(n, T, m.sizes.stoch)
    return model, control, hidden, state, latent, first, *noise, tau


def lstm_scan(m: Maker, n: int) -> Arguments:
    width = m.sizes.deter
    entered, weight = m.normal(n, T, 4 * width), m.normal(4 * width, width, scale=width**-0.5)
    return entered, weight, m.uniform(n, T) < 0.3, m.normal(n, width), m.normal(n, width)
