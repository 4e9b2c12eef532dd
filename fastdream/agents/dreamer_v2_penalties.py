"""How unsure an ensemble of priors is of a state: what Offline DV2 takes off the rewards of dreams (Lu et al. 2023).

All of them take the logits of K priors [K, ..., S, C] (Gaussian: raw statistics [K, ..., 2S]) at states [..., D], and
give a number for each state, [...]. Where the priors agree their gradients are 0, though they are of roots.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdream.latents import Gaussian, Latent
from fastdream.ops import normal_log_prob
from fastdream.ops.reference.layers import upcast

# Of a variance, so that a root of it has a gradient.
TINY = 1e-12


def disagreement(latent: Latent, logits: Tensor, stoch: Tensor) -> Tensor:
    """Mean distance of the priors' probabilities (Gaussian: means) from their mean."""
    mean = latent.stats(logits)[0] if isinstance(latent, Gaussian) else probabilities(logits).flatten(-2)
    return torch.linalg.vector_norm(mean - mean.mean(0), dim=-1).mean(0)


def log_prob(latent: Latent, logits: Tensor, stoch: Tensor) -> Tensor:
    """Standard deviation among the priors of the log-probability of what was drawn, `stoch` [..., S*C] or [..., S]."""
    if isinstance(latent, Gaussian):
        logs = normal_log_prob(upcast(stoch), *latent.stats(logits)).sum(-1)
    else:
        # No gradient through drawn classes, as in TensorFlow Probability; through normals there is one.
        drawn = upcast(stoch.detach()).unflatten(-1, latent.shape)
        logs = (drawn * upcast(logits).log_softmax(-1)).sum((-1, -2))
    # The norm, and not the standard deviation, has a gradient where all are equal.
    return torch.linalg.vector_norm(logs - logs.mean(0), dim=0) / len(logs) ** 0.5


def mixture(latent: Latent, logits: Tensor, stoch: Tensor) -> Tensor:
    """Standard deviation of the mixture of all priors, the mean over the elements of a one-hot (Gaussian: of z).

    Does not vanish where the priors agree that what comes is uncertain.
    """
    if isinstance(latent, Gaussian):
        mean, std = latent.stats(logits)
        variance = std.square().mean(0) + mean.var(0, correction=0)
    else:
        share = probabilities(logits).mean(0).flatten(-2)
        variance = share * (1 - share)
    return variance.clamp_min(TINY).sqrt().mean(-1)


def probabilities(logits: Tensor) -> Tensor:
    """[..., S, C] -> [..., C, S]."""
    # Classes before variables: over a short last axis, PyTorch's softmax takes eight times as long on a CPU.
    return upcast(logits).transpose(-1, -2).contiguous().softmax(-2)


PENALTIES: dict[str, Callable[[Latent, Tensor, Tensor], Tensor]] = {
    "disagreement": disagreement,
    "log_prob": log_prob,
    "mixture": mixture,
}
