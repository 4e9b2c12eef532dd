"""Families of continuous actions, and losses of outputs.

A family says how a policy's mean and std become an action, and how likely that is: how an op draws from it (`kind` and
`limits` of `ops.ActionHead`), from which numbers (`noise`), and the log density of what was drawn, element by element.
All but TanhNormal have a most likely action and an entropy.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops import normal_entropy, normal_log_prob


@dataclass(frozen=True)
class BoundedNormal:
    """Unbounded samples of a normal with mean tanh(.) and std between two limits (DreamerV3)."""

    min_std: float = 0.1
    max_std: float = 1.0
    kind: Literal["bounded_normal"] = "bounded_normal"

    @property
    def limits(self) -> dict[str, float]:
        """What `ops.ActionHead` takes beside the layers."""
        return {"min_std": self.min_std, "max_std": self.max_std}

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers."""
        # The numbers of torch.randn, which takes a microsecond longer to say the same.
        return torch.empty(*shape, device=generator.device).normal_(generator=generator)

    def log_prob(self, event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log density of an event."""
        return normal_log_prob(event, mean, std)

    def entropy(self, mean: Tensor, std: Tensor) -> Tensor:
        """Differential entropy in nats."""
        return normal_entropy(std)

    def entropy_range(self) -> tuple[float, float]:
        """Its smallest and its largest value."""
        low, high = (0.5 * math.log(2 * math.pi * math.e * std**2) for std in (self.min_std, self.max_std))
        return low, high


@dataclass(frozen=True)
class TruncNormal:
    """A normal with mean tanh(.), cut off outside [-1, 1], that is sampled by its inverse CDF (DreamerV2)."""

    min_std: float = 0.1
    kind: Literal["trunc_normal"] = "trunc_normal"

    @property
    def limits(self) -> dict[str, float]:
        """What `ops.ActionHead` takes beside the layers."""
        return {"min_std": self.min_std}

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers."""
        return torch.rand(*shape, generator=generator, device=generator.device)

    def log_prob(self, event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log density of an event in [-1, 1]; mean in [-1, 1], shapes broadcast."""
        return normal_log_prob(event, mean, std) - _inside(mean, std)[2].log()

    def entropy(self, mean: Tensor, std: Tensor) -> Tensor:
        """Differential entropy in nats, mean in [-1, 1]."""
        low, high, inside = _inside(mean, std)
        cut = (low * _density(low) - high * _density(high)) / (2 * inside)
        return normal_entropy(std) + inside.log() + cut

    def entropy_range(self) -> tuple[float, float]:
        """The entropy of the narrowest normal with its mean at an end, and that of a uniform on [-1, 1]."""
        far = 2 / self.min_std  # standard deviations from one end to the other
        inside = 0.5 * math.erf(far / math.sqrt(2))
        cut = far * math.exp(-0.5 * far**2) / math.sqrt(2 * math.pi) / (2 * inside)
        return 0.5 * math.log(2 * math.pi * math.e) + math.log(self.min_std * inside) - cut, math.log(2)


@dataclass(frozen=True)
class TanhNormal:
    """The tanh of a normal (DreamerV1). Has neither a most likely action nor an entropy in closed form."""

    init_std: float = 5.0
    min_std: float = 1e-4
    kind: Literal["tanh_normal"] = "tanh_normal"

    @property
    def limits(self) -> dict[str, float]:
        """What `ops.ActionHead` takes beside the layers."""
        return {"min_std": self.min_std, "init_std": self.init_std}

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=generator, device=generator.device)

    def log_prob(self, event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log density of an event in [-1, 1], whose ends count as 3e-8 inside; shapes broadcast."""
        raw = torch.atanh(event.clamp(-0.99999997, 0.99999997))
        slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # log of 1 - tanh(raw)^2
        return normal_log_prob(raw, mean, std) - slope

    def likeliest(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """The most likely of K draws of all elements together: [..., M] and noise [..., K, M] -> [..., M]."""
        mean, std = mean.unsqueeze(-2), std.unsqueeze(-2)
        draws = torch.tanh(mean + std * noise)
        best = self.log_prob(draws, mean, std).sum(-1).argmax(-1)
        return draws.gather(-2, best[..., None, None].expand(*draws.shape[:-2], 1, draws.shape[-1])).squeeze(
            -2
        )


Continuous = BoundedNormal | TruncNormal | TanhNormal


def _density(z: Tensor) -> Tensor:
    """Of the standard normal."""
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _inside(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-1 and 1 in standard deviations from the mean, and the probability of what lies between."""
    low, high = (-1 - mean) / std, (1 - mean) / std
    return low, high, torch.special.ndtr(high) - torch.special.ndtr(low)


def sum_event(x: Tensor, dims: int) -> Tensor:
    """Sum over the last `dims` axes; no axis leaves x as it is."""
    return x.sum(tuple(range(-dims, 0))) if dims else x


def unit_normal_loss(mean: Tensor, event: Tensor, dims: int) -> Tensor:
    """-log N(event; mean, 1), summed over the last `dims` axes."""
    count = math.prod(mean.shape[mean.dim() - dims :])
    return sum_event(0.5 * (event - mean).square(), dims) + count * 0.5 * math.log(2 * math.pi)
