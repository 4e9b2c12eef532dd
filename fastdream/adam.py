"""Adam as the first two Dreamers use it: gradients clipped by their global norm, weights decayed before each step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdream.optim import Optimiser


@dataclass(frozen=True)
class AdamConfig:
    """Adam in the form of Keras, for one group of networks."""

    lr: float = 1e-4
    """Learning rate."""
    clip: float = 100.0
    """Largest norm of all gradients together; 0 does not clip."""
    eps: float = 1e-5
    """Added to the root of the running mean square before the correction of its start."""
    wd: float = 0.0
    """Share of every parameter, biases included, that is taken away before a step; the learning rate is no factor."""
    beta1: float = 0.9
    """Decay of the running mean."""
    beta2: float = 0.999
    """Decay of the running mean square."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip < 0 or self.eps <= 0 or not 0 <= self.wd < 1:
            raise ValueError(f"need lr and eps > 0, clip >= 0 and 0 <= wd < 1, got {self}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"need beta1 and beta2 in [0, 1), got {self}")


class Adam(Optimiser):
    """Clips, decays, then steps; all state stays on the device and nothing waits for it.

    1. g *= min(1, clip / norm), norm over all gradients.  2. p *= 1 - wd.
    3. m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g².
    4. p -= lr sqrt(1 - β2^t) / (1 - β1^t) m / (sqrt(v) + eps).

    torch.optim.Adam adds eps after the correction of v, and AdamW multiplies the decay by lr.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], config: AdamConfig) -> None:
        super().__init__(params, "mean", "square")
        self.config = config
        self.mean, self.square = self.means.values()

    @torch.no_grad()
    def step(self, lr: Tensor | None = None) -> dict[str, Tensor]:
        """Apply and clear the gradients; all that is not frozen must have one. Returns metrics, 0-d tensors.

        lr   0-d float64, instead of the configured one.
        """
        config, places = self.config, self.learning()
        params, grads = list[Tensor](self.params[i] for i in places), self.gradients(places)
        mean, square = ([x[i] for i in places] for x in (self.mean, self.square))
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        if config.clip:
            torch._foreach_mul_(grads, config.clip / norm.clamp_min(config.clip))
        self.count += 1
        t = self.count.double()  # 1 - 0.999^1 in float32 would be off by 1e-5 of itself
        rate = (config.lr if lr is None else lr) * (1 - config.beta2**t).sqrt() / (1 - config.beta1**t)
        if config.wd:
            torch._foreach_mul_(params, 1 - config.wd)
        torch._foreach_lerp_(mean, grads, 1 - config.beta1)
        torch._foreach_mul_(square, config.beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - config.beta2)
        denom = torch._foreach_sqrt(square)
        torch._foreach_add_(denom, config.eps)
        update = list(torch._foreach_div(mean, denom))
        torch._foreach_mul_(update, -rate.to(norm.dtype))
        torch._foreach_add_(params, update)
        self.clear()
        return {"grad_norm": norm, "grad_rms": norm / math.sqrt(self.param_count)}
