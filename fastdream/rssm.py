"""The recurrent state-space model: a core, a latent, a prior and a posterior. It knows no agent and no loss."""

import torch
from torch import Tensor, nn

from fastdream import ops as fd
from fastdream.cores import GRU, BlockGRU, LayerNormGRU
from fastdream.latents import Categorical, Latent
from fastdream.nets import Dense, layers_of
from fastdream.ops import Ops

Core = BlockGRU | LayerNormGRU | GRU


class RSSM(nn.Module):
    """Parameters of a recurrent state-space model, and the scans over them.

    State: deter [B, D] and stoch [B, S, C] (one-hots) or [B, S] (Gaussian). feat = [deter, flat stoch].

    core, latent   what is recurrent and what is random; any combination works.
    embed_width    width of the encoder's output.
    hidden         width of the prior's and posterior's layers.
    prior_layers, post_layers   hidden layers before the logits.
    absolute       the posterior sees the embedding alone, not the deterministic state.
    outscale, bias of the layers that give logits.
    """

    def __init__(
        self,
        ops: Ops,
        core: Core,
        latent: Latent,
        embed_width: int,
        *,
        hidden: int,
        prior_layers: int = 2,
        post_layers: int = 1,
        absolute: bool = False,
        outscale: float = 1.0,
        logit_bias: bool = True,
        norm: fd.Norm = "rms",
        act: fd.Act = "silu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.core, self.latent, self.absolute = core, latent, absolute
        self.deter = core.deter
        self.feat_width = core.deter + latent.width

        def layers(inp: int, count: int) -> nn.ModuleList:
            widths = [inp] + [hidden] * (count - 1) if count else []
            return nn.ModuleList(
                Dense(ops, width, hidden, norm=norm, act=act, generator=generator) for width in widths
            )

        def logits(inp: int) -> Dense:
            width = latent.logit_width
            return Dense(ops, inp, width, bias=logit_bias, outscale=outscale, generator=generator)

        post_width = embed_width if absolute else core.deter + embed_width
        self.prior = layers(core.deter, prior_layers)
        self.priorlogit = logits(hidden if prior_layers else core.deter)
        self.obs = layers(post_width, post_layers)
        self.obslogit = logits(hidden if post_layers else post_width)

    @property
    def params(self) -> fd.RSSM:
        """The parameters as ops take them. Cheap; fetch once an update and pass on."""
        prior, post = layers_of((*self.prior, self.priorlogit)), layers_of((*self.obs, self.obslogit))
        return fd.RSSM(self.core.params, self.latent.params, prior, post, self.absolute)

    def initial(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Zero state: deter [batch, D] and stoch [batch, *latent.shape]."""
        deter = torch.zeros(batch, self.deter, device=device, dtype=dtype)
        return deter, torch.zeros(batch, *self.latent.shape, device=device, dtype=dtype)

    def feat(self, deter: Tensor, stoch: Tensor) -> fd.Feat:
        """[..., D] and [..., S, C] (or [..., S]): what heads take, [..., D + width] without joining the two."""
        return fd.Feat(deter, self.flat(stoch))

    def flat(self, stoch: Tensor) -> Tensor:
        """[..., S, C] -> [..., S*C]; Gaussian samples are flat already."""
        return stoch.flatten(-2) if isinstance(self.latent, Categorical) else stoch
