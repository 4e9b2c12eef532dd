"""Log-probabilities, entropies and losses of outputs, element by element."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops import normal_entropy, normal_log_prob


def _density(z: Tensor) -> Tensor:
    """Of the standard normal."""
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _inside(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-1 and 1 in standard deviations from the mean, and the probability of what lies between."""
    low, high = (-1 - mean) / std, (1 - mean) / std
    return low, high, torch.special.ndtr(high) - torch.special.ndtr(low)


def trunc_normal_log_prob(event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of a normal cut off outside [-1, 1] at an event inside; mean in [-1, 1], shapes broadcast."""
    return normal_log_prob(event, mean, std) - _inside(mean, std)[2].log()


def trunc_normal_entropy(mean: Tensor, std: Tensor) -> Tensor:
    """Differential entropy in nats of a normal cut off outside [-1, 1], mean in [-1, 1]."""
    low, high, inside = _inside(mean, std)
    cut = (low * _density(low) - high * _density(high)) / (2 * inside)
    return normal_entropy(std) + inside.log() + cut


def tanh_normal_log_prob(event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of the tanh of a normal at an event in [-1, 1], whose ends count as 3e-8 inside."""
    raw = torch.atanh(event.clamp(-0.99999997, 0.99999997))
    slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # log of 1 - tanh(raw)^2
    return normal_log_prob(raw, mean, std) - slope


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is wider."""
    return x if x.dtype == torch.float64 else x.float()


def sum_event(x: Tensor, dims: int) -> Tensor:
    """Sum over the last `dims` axes; no axis leaves x as it is."""
    return x.sum(tuple(range(-dims, 0))) if dims else x


def unit_normal_loss(mean: Tensor, event: Tensor, dims: int) -> Tensor:
    """-log N(event; mean, 1), summed over the last `dims` axes."""
    count = math.prod(mean.shape[mean.dim() - dims :])
    return sum_event(0.5 * (event - mean).square(), dims) + count * 0.5 * math.log(2 * math.pi)
