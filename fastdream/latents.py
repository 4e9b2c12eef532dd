"""Latent variables of a world model: what a logit means, how it is drawn, stored and compared.

Both families have the same methods, so that `rssm.py` and the agents never ask which one they hold.
"""

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.ops import Ops
from fastdream.ops.params import Clamp, StdForm


class Categorical:
    """S categorical variables of C classes, drawn as straight-through one-hots (Hafner et al. 2021).

    `unimix` of the uniform distribution is mixed into the probabilities everywhere: in samples, entropies and KL.
    """

    def __init__(self, ops: Ops, stoch: int, classes: int, unimix: float = 0.01) -> None:
        if stoch < 1 or not 2 <= classes <= 256:
            raise ValueError(f"need stoch >= 1 and 2 <= classes <= 256, got stoch={stoch}, classes={classes}")
        if not 0 <= unimix < 1:
            raise ValueError(f"unimix={unimix} is not in [0, 1)")
        self.ops = ops
        self.params = fd.Categorical(stoch, classes, unimix)
        self.shape = (stoch, classes)
        self.width = self.logit_width = stoch * classes

    def noise(self, *batch: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers [*batch, S], one a variable."""
        return torch.rand(*batch, self.params.stoch, generator=generator, device=generator.device)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """Class indices [..., S] -> one-hots [..., S, C]."""
        return self.ops.join_inputs([packed], [self.params.classes], False, dtype).unflatten(-1, self.shape)

    def kl(self, post: Tensor, prior: Tensor, free: float, clamp: Clamp = "step") -> tuple[Tensor, Tensor]:
        """Dynamics and representation KL of logits [..., S, C], in nats; see `ops.categorical_kl`."""
        return self.ops.categorical_kl(post, prior, unimix=self.params.unimix, free=free, clamp=clamp)

    def entropy(self, logit: Tensor) -> Tensor:
        """Entropy in nats [...], summed over the S variables, without gradient."""
        return self.ops.latent_entropy(logit, self.params.unimix)


class Gaussian:
    """S independent normals (Hafner et al. 2020); the raw statistics are [..., 2S], mean | std before its map."""

    def __init__(self, ops: Ops, stoch: int, min_std: float = 0.1, std: StdForm = "softplus") -> None:
        if stoch < 1 or min_std <= 0:
            raise ValueError(f"need stoch >= 1 and min_std > 0, got stoch={stoch}, min_std={min_std}")
        self.ops = ops
        self.params = fd.Gaussian(stoch, min_std, std)
        self.shape = (stoch,)
        self.width, self.logit_width = stoch, 2 * stoch

    def noise(self, *batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers [*batch, S], one a dimension."""
        return torch.randn(*batch, self.params.stoch, generator=generator, device=generator.device)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """Half floats [..., S] -> samples."""
        return packed.to(dtype)

    def stats(self, logit: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, each [..., S], of raw statistics [..., 2S]."""
        mean, raw = logit.float().chunk(2, -1)
        return mean, fd.gaussian_std(raw, self.params.min_std, self.params.std)

    def kl(self, post: Tensor, prior: Tensor, free: float, clamp: Clamp = "mean") -> tuple[Tensor, Tensor]:
        """Dynamics and representation KL of raw statistics [..., 2S], in nats; see `ops.gaussian_kl`."""
        return self.ops.gaussian_kl(self.stats(post), self.stats(prior), free=free, clamp=clamp)

    def entropy(self, logit: Tensor) -> Tensor:
        """Differential entropy in nats [...], summed over the S dimensions."""
        _, std = self.stats(logit)
        return fd.normal_entropy(std).sum(-1)


Latent = Categorical | Gaussian
