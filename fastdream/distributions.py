"""Log-probabilities, entropies and losses of outputs, element by element."""

import math

import torch
from torch import Tensor


def normal_log_prob(event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(event; mean, std²), shapes broadcast."""
    z = (event - mean) / std
    return -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy of a normal in nats."""
    return 0.5 * (2 * math.pi * std.square()).log() + 0.5


def huber(distance: Tensor, eps: float = 1.0) -> Tensor:
    """Charbonnier's smooth absolute value: sqrt(distance² + eps²) - eps."""
    return (distance.square() + eps * eps).sqrt() - eps


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is wider."""
    return x if x.dtype == torch.float64 else x.float()


def sum_event(x: Tensor, dims: int) -> Tensor:
    """Sum over the last `dims` axes; no axis leaves x as it is."""
    return x.sum(tuple(range(-dims, 0))) if dims else x
