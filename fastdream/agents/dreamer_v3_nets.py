"""The networks of DreamerV3, by the names that the official code gives them, and one step of acting with them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastdream import ops as fd
from fastdream.agents.dreamer_v3_config import Config
from fastdream.cores import BlockGRU
from fastdream.decoder import Decoder
from fastdream.encoder import Encoder
from fastdream.heads import BinaryHead, TwoHotHead, outputs_at
from fastdream.latents import Categorical
from fastdream.nets import Kept
from fastdream.normalize import Normalize
from fastdream.ops import Ops
from fastdream.policy import ActorHeads
from fastdream.rssm import RSSM
from fastdream.spaces import Spaces


class Draws(NamedTuple):
    """What is random in one update: noise to draw samples with, or the samples themselves, to be replayed."""

    post: Tensor | None = None  # [B, T, S] uniform
    prior: Tensor | None = None  # [N, H, S] uniform
    action: Tensor | None = None  # [N, H+1, M] uniform for discrete elements, normal for continuous ones
    post_index: Tensor | None = None  # [B, T, S]
    prior_index: Tensor | None = None  # [N, H, S]
    action_flat: Tensor | None = None  # [N, H+1, A]


class Acting(NamedTuple):
    """What acting looks at in every step: a module looks its parts up slowly."""

    encoder: fd.Layers
    rssm: fd.RSSM
    actor: fd.Actor
    raw: Callable[..., tuple[Tensor, tuple[int, ...]]]
    noise: Callable[..., Tensor]


class Networks(nn.Module):
    """World model (enc, dyn, dec, rew, con), actor (pol), critic (val), its slow copy, and running normalisers.

    dtype   of matrix products; parameters are float32 throughout.
    seed    of the initial parameters.
    """

    def __init__(
        self, obs_space: Spaces, act_space: Spaces, config: Config, ops: Ops, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__()
        self.ops, self.config = ops, config
        cfg, generator = config.dyn, torch.Generator().manual_seed(seed)
        self.latent = Categorical(ops, cfg.stoch, cfg.classes, cfg.unimix)
        self.action_width = sum(space.width for space in act_space.values())
        self.enc = Encoder(ops, obs_space, config.enc, generator, dtype)
        core = BlockGRU(
            ops,
            cfg.deter,
            self.latent.width,
            self.action_width,
            hidden=cfg.hidden,
            blocks=cfg.blocks,
            layers=cfg.dynlayers,
            norm=cfg.norm,
            act=cfg.act,
            generator=generator,
        )
        self.dyn = RSSM(
            ops,
            core,
            self.latent,
            self.enc.embed_width,
            hidden=cfg.hidden,
            prior_layers=cfg.imglayers,
            post_layers=cfg.obslayers,
            absolute=cfg.absolute,
            outscale=cfg.outscale,
            logit_bias=cfg.logit_bias,
            norm=cfg.norm,
            act=cfg.act,
            generator=generator,
        )
        feat = self.dyn.feat_width
        # Shape and dtype of the latents that replay keeps, which is asked at every step.
        self.latent_spec: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            "deter": ((cfg.deter,), np.dtype(np.float16)),
            "stoch": ((cfg.stoch,), np.dtype(np.uint8)),
        }
        self.dec = Decoder(ops, obs_space, cfg.deter, self.latent.width, config.dec, generator)
        self.rew = TwoHotHead(ops, feat, config.rewhead, generator=generator)
        self.con = BinaryHead(ops, feat, config.conhead, generator)
        self.pol = ActorHeads(ops, feat, act_space, config.policy, generator)
        self.val = TwoHotHead(ops, feat, config.value, generator=generator)
        self.slowval = TwoHotHead(ops, feat, config.value, generator=generator)
        self.retnorm = Normalize(config.retnorm, ops.percentiles)
        self.valnorm = Normalize(config.valnorm, ops.percentiles)
        self.advnorm = Normalize(config.advnorm, ops.percentiles)
        self._acting = Kept(self._policy_params, self, "enc", "dyn", "pol")

    def _policy_params(self) -> Acting:
        # Images go through convolutions, which are no layers of an op: the embedding is then its input.
        encoder = () if self.enc.images else self.enc.vector_layers
        return Acting(encoder, self.dyn.params, self.pol.params, self.enc.raw, self.pol.noise)

    def learned(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimiser trains: all but the slow critic's."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("slowval.")}

    def joined(self) -> list[list[Tensor]]:
        """Weights that multiply the same: of all heads in a dream, of the actor's outputs, of the decoder's vectors."""
        heads = self.pol, self.val, self.rew, self.con, self.slowval
        actor, outs = [layer for head in self.pol.params.heads for layer in head.out], self.dec.outs
        firsts = [head.layers[0] for head in heads if head.layers]
        return [[layer.weight for layer in layers] for layers in (firsts, actor, outs)]

    def replayed(self, post: fd.Step, critics: bool) -> dict[str, Tensor]:
        """Raw outputs [B, T, ...] of rew and con at posterior states, and [B, K, ...] of val and slowval at the last K.

        Heads that see the same states, and are alike in whether a gradient reaches these, are one call.
        """
        config, T = self.config, post.deter.shape[1]
        reach = {"val": config.repval_grad, "rew": config.reward_grad, "con": True}
        calls: dict[tuple[int, bool], list[str]] = {}
        for name in reach if critics else ("rew", "con"):
            steps = self.starts(T) if name == "val" else T
            calls.setdefault((steps, reach[name]), []).append(name)
        found: dict[str, Tensor] = {}
        for (steps, reaches), names in calls.items():
            # A cut of all of them would copy their gradient.
            states = (x if steps == T else x[:, -steps:] for x in (post.deter, post.stoch))
            feat, fixed = self.dyn.feat(*states), ["slowval"] if "val" in names else []
            heads = ([getattr(self, name) for name in some] for some in (names, fixed))
            outs, others = outputs_at(self.ops, feat if reaches else feat.detach(), *heads)
            found |= zip([*names, *fixed], [*outs, *others], strict=True)
        return found

    def pack(self, deter: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        """Latents, of which `index` are the classes, as replay keeps them: see `latent_spec`."""
        assert index is not None
        return {"deter": deter.half(), "stoch": index.to(torch.uint8)}

    def act(
        self, carry: Mapping[str, Tensor], obs: Mapping[str, Tensor], generator: torch.Generator, greedy: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Take in one observation of n environments: the next carry, with the flat action, and classes [n, S]."""
        reset = obs["is_first"].bool()
        n = reset.shape[0]
        noise = self.latent.noise(n, generator=generator)
        encoder, rssm, actor, raw, draw = self._acting.get()
        action_noise = None if greedy else draw(n, generator=generator)
        features, vectors = raw(obs) if encoder else (self._embed(obs), ())
        state = carry["deter"], carry["stoch"], carry["action"], features, reset
        draws = noise, action_noise, None
        step, action = self.ops.policy_step(encoder, rssm, actor, *state, *draws, vectors)
        deter, stoch, _, index = step
        assert index is not None
        action = action if action.dtype == deter.dtype else action.to(deter.dtype)
        return {"deter": deter, "stoch": stoch, "action": action}, index

    @torch.no_grad()
    def _embed(self, obs: Mapping[str, Tensor]) -> Tensor:
        return self.enc(obs)

    def starts(self, T: int) -> int:
        """From how many of a sequence's T states imagination starts: the last ones."""
        return min(self.config.imag_last or T, T)

    def draw(self, B: int, T: int, generator: torch.Generator) -> Draws:
        """All random numbers of one update on sequences [B, T]."""
        N, H = B * self.starts(T), self.config.imag_length
        return Draws(
            post=self.latent.noise(B, T, generator=generator),
            prior=self.latent.noise(N, H, generator=generator),
            action=self.pol.noise(N, H + 1, generator=generator),
        )
