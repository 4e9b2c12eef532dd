"""The latent state's steps, with the weights bound once: posterior (given an embedding) and prior."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from fastdream.ops.params import RSSM, Categorical, Latent, Layer, Layers, Step
from fastdream.ops.reference.categorical import categorical_sample
from fastdream.ops.reference.cells import Cell, bind
from fastdream.ops.reference.gaussian import gaussian_sample, gaussian_std
from fastdream.ops.reference.layers import added, cast, linear, match, mlp, norm_act, upcast


def shaped(latent: Latent, logit: Tensor) -> Tensor:
    """[..., S*C] -> [..., S, C]; a Gaussian's [..., 2S] stays."""
    if isinstance(latent, Categorical):
        return logit.unflatten(-1, (latent.stoch, latent.classes))
    return logit


def flat(latent: Latent, stoch: Tensor) -> Tensor:
    """[..., S, C] -> [..., S*C]; a Gaussian's [..., S] stays."""
    return stoch.flatten(-2) if isinstance(latent, Categorical) else stoch


def _drawn(latent: Latent, deter: Tensor, logit: Tensor, noise: Tensor | None, index: Tensor | None) -> Step:
    """The step with its stochastic latent drawn from flat logits: straight-through or reparameterised."""
    logit = shaped(latent, logit)
    if isinstance(latent, Categorical):
        stoch, index = categorical_sample(logit, noise, latent.unimix, index)
        return Step(deter, stoch, logit, index)
    if noise is None:
        raise ValueError("a Gaussian latent needs noise: it has no index that could be replayed")
    mean, raw = upcast(logit).chunk(2, -1)
    stoch = gaussian_sample(mean, gaussian_std(raw, latent.min_std, latent.std), noise)
    return Step(deter, match(stoch, logit.dtype), logit, None)


class Posterior(NamedTuple):
    """Core and posterior net; the product with the embedding is left to `enter`."""

    latent: Latent
    cell: Cell
    of_deter: Tensor | None  # [H, D], None when the posterior sees the embedding alone
    of_embed: Tensor  # [H, E]
    first: Layer  # its weight is in the two above
    later: Layers

    @classmethod
    def bind(cls, rssm: RSSM, dtype: torch.dtype, deter_width: int, action_width: int) -> Self:
        """The posterior side of `rssm` with its weights in `dtype`."""
        first, *later = (cast(layer, dtype) for layer in rssm.post)
        of_deter, of_embed = None, first.weight
        if not rssm.absolute:
            of_deter, of_embed = of_embed.split([deter_width, of_embed.shape[1] - deter_width], 1)
        cell = bind(rssm.core, dtype, action_width)
        return cls(rssm.latent, cell, of_deter, of_embed, first, tuple(later))

    def enter(self, embed: Tensor) -> Tensor:
        """embed [..., E] -> [..., H]: its part of the first layer."""
        return linear(embed, self.of_embed, self.first.bias)

    def step(
        self,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        embed: Tensor,
        reset: Tensor,
        noise: Tensor | None,
        index: Tensor | None,
    ) -> Step:
        """One step; action and embed as their `enter` returned them, the action already masked by reset."""
        reset = reset.unsqueeze(-1)
        stoch = flat(self.latent, stoch).masked_fill(reset, 0.0)
        deter = self.cell.step(deter.masked_fill(reset, 0.0), stoch, action)
        x = embed if self.of_deter is None else added(embed, deter, self.of_deter)
        logit = mlp(norm_act(x, *self.first[2:]), self.later)
        return _drawn(self.latent, deter, logit, noise, index)


class Prior(NamedTuple):
    """Core and prior net."""

    latent: Latent
    cell: Cell
    layers: Layers

    @classmethod
    def bind(cls, rssm: RSSM, dtype: torch.dtype, action_width: int) -> Self:
        """The prior side of `rssm` with its weights in `dtype`."""
        layers = tuple(cast(layer, dtype) for layer in rssm.prior)
        return cls(rssm.latent, bind(rssm.core, dtype, action_width), layers)

    def step(
        self, deter: Tensor, stoch: Tensor, action: Tensor, noise: Tensor | None, index: Tensor | None
    ) -> Step:
        """One step; action as `cell.enter` returned it."""
        deter = self.cell.step(deter, flat(self.latent, stoch), action)
        return _drawn(self.latent, deter, mlp(deter, self.layers), noise, index)
