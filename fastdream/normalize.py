"""Running statistics of returns and advantages, and slow copies of networks. All state is in buffers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastdream.ops import reference


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
        if self.limit <= 0:
            raise ValueError(f"limit={self.limit} is divided by, and has to be more than 0")


class Normalize(nn.Module):
    """Running offset and scale of a stream of tensors (DreamerV3, return normalisation).

    `perc` gives (lo, max(limit, hi - lo)) of two percentiles, `meanstd` (mean, max(limit, std)), `none` (0, 1).
    `percentiles` finds them: that of the ops that serve the device.
    """

    first: Tensor
    second: Tensor
    corr: Tensor
    one: Tensor

    def __init__(
        self,
        config: NormConfig,
        percentiles: Callable[..., tuple[Tensor, Tensor]] = reference.percentiles,
    ) -> None:
        super().__init__()
        self.config, self._percentiles = config, percentiles
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
        config, x = self.config, x.detach().float()
        if config.impl == "none":
            return
        if config.impl == "perc":
            first, second = self._percentiles(x, config.perclo, config.perchi)
        else:
            first, second = x.mean(), x.square().mean()
        torch._foreach_lerp_([self.first, self.second, self.corr], [first, second, self.one], config.rate)

    def normalized(self, x: Tensor, training: bool) -> Tensor:
        """x without offset and in units of scale, after an update by it if training."""
        if self.config.impl == "none":
            return x
        offset, scale = self(x, training)
        return (x - offset) / scale

    def restored(self, x: Tensor) -> Tensor:
        """What x was before it was normalized by the present statistics."""
        if self.config.impl == "none":
            return x
        offset, scale = self.stats()
        return x * scale + offset

    def stats(self) -> tuple[Tensor, Tensor]:
        """Offset and scale, 0-d float32."""
        config = self.config
        if config.impl == "none":
            return self.first, self.one  # the first stays 0
        first, second = self.first.clone(), self.second
        if config.debias:
            corr = 1 / self.corr.clamp(min=config.rate)
            first, second = first * corr, second * corr
        if config.impl == "perc":
            return first, (second - first).clamp(min=config.limit)
        std = (second - first.square()).clamp(min=0).sqrt()
        return first, std.clamp(min=config.limit)


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
        # Themselves, not views of them, which a copy or a module that moves elsewhere would leave behind.
        self.fast, self.slow = list[Tensor](fast.parameters()), list[Tensor](slow.parameters())
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
