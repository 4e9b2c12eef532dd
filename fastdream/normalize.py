"""Running statistics of returns and advantages, and slow copies of networks. All state is in buffers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NormConfig:
    """Scale of a running normaliser."""

    impl: Literal["perc", "meanstd", "none"] = "perc"
    """Range between two percentiles, mean and standard deviation, or no normalisation."""
    rate: float = 0.01
    """Rate of the exponential moving average."""
    limit: float = 1.0
    """Smallest scale that is divided by."""
    perclo: float = 5.0
    """Lower percentile."""
    perchi: float = 95.0
    """Upper percentile."""
    debias: bool = False
    """Correct the average for its start at zero, as Adam does."""

    def __post_init__(self) -> None:
        if not 0 <= self.perclo < self.perchi <= 100:
            raise ValueError(f"need 0 <= perclo < perchi <= 100, got {self.perclo} and {self.perchi}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate} is not in (0, 1]")


class Normalize(nn.Module):
    """Running offset and scale of a stream of tensors (DreamerV3, return normalisation).

    `perc` gives (lo, max(limit, hi - lo)) of two percentiles, `meanstd` (mean, max(limit, std)), `none` (0, 1).
    """

    first: Tensor
    second: Tensor
    corr: Tensor
    one: Tensor

    def __init__(self, config: NormConfig) -> None:
        super().__init__()
        self.config = config
        # lo and hi, or mean and mean square; `corr` is the total weight of the average so far.
        for name in ("first", "second", "corr"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Update by `x` if training, then give `stats`."""
        if training:
            self.update(x)
        return self.stats()

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one batch of values, of any shape, into the running statistics."""
        config, x = self.config, x.detach().float().flatten()
        if config.impl == "none":
            return
        if config.impl == "perc":
            x = x.sort().values
            first, second = _percentile(x, config.perclo), _percentile(x, config.perchi)
        else:
            first, second = x.mean(), x.square().mean()
        torch._foreach_lerp_([self.first, self.second, self.corr], [first, second, self.one], config.rate)

    def stats(self) -> tuple[Tensor, Tensor]:
        """Offset and scale, 0-d float32."""
        config = self.config
        if config.impl == "none":
            return self.first, self.one  # the first stays 0
        corr = 1 / self.corr.clamp(min=config.rate) if config.debias else self.one
        first, second = self.first * corr, self.second * corr
        if config.impl == "perc":
            return first, (second - first).clamp(min=config.limit)
        std = (second - first.square()).clamp(min=0).sqrt()
        return first, std.clamp(min=config.limit)


def _percentile(ordered: Tensor, percent: float) -> Tensor:
    # Linear interpolation between order statistics; the positions are known on the host, so nothing waits.
    position = percent / 100 * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    weight = position - below
    return ordered[below] * (1 - weight) + ordered[above] * weight


@dataclass(frozen=True)
class SlowConfig:
    """Slowly moving copy of the critic."""

    rate: float = 0.02
    """Share of the fast network mixed in at each move; 1 copies it."""
    every: int = 1
    """Updates between moves."""

    def __post_init__(self) -> None:
        if not (self.rate == 1 or 0 < self.rate < 0.5) or self.every < 1:
            raise ValueError(
                f"need rate 1 or below 0.5 and every >= 1, got rate={self.rate}, every={self.every}"
            )


class Slow:
    """Moves the parameters of `slow` towards those of `fast`: a target network or a regulariser."""

    def __init__(self, fast: nn.Module, slow: nn.Module, config: SlowConfig) -> None:
        self.config = config
        self.fast = [p.detach() for p in fast.parameters()]
        self.slow = [p.detach() for p in slow.parameters()]
        slow.requires_grad_(False)
        self.count = torch.zeros((), dtype=torch.int64, device=self.slow[0].device)

    @torch.no_grad()
    def copy(self) -> None:
        """Make the slow parameters equal to the fast ones."""
        torch._foreach_copy_(self.slow, self.fast)

    @torch.no_grad()
    def update(self) -> None:
        """Count one update and move if it is due; the decision stays on the device."""
        if self.config.every == 1:
            torch._foreach_lerp_(self.slow, self.fast, self.config.rate)
        else:
            mix = self.config.rate * (self.count % self.config.every == 0).float()
            step = torch._foreach_sub(self.fast, self.slow)
            torch._foreach_mul_(step, mix)
            torch._foreach_add_(self.slow, step)
        self.count += 1
