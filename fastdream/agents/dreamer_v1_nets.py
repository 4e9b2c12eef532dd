"""The networks of DreamerV1, and one step of acting with them, exploration included."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdream import ops as fd
from fastdream.agents.dreamer_v1_config import Config, NetConfig
from fastdream.cores import GRU
from fastdream.distributions import TanhNormal
from fastdream.heads import BinaryHead, HeadConfig, RegressionHead
from fastdream.keras import keras_defaults
from fastdream.latents import Gaussian
from fastdream.nets import Kept
from fastdream.ops import Ops
from fastdream.policy import ActorHeads, PolicyConfig
from fastdream.rssm import RSSM
from fastdream.spaces import Spaces
from fastdream.strided import StridedDecoder, StridedEncoder


class Draws(NamedTuple):
    """What is random in one update."""

    post: Tensor  # [B, T, S] normal
    prior: Tensor  # [N, H, S] normal
    action: Tensor  # [N, H+1, M] normal for continuous elements, uniform for discrete ones


class Start(NamedTuple):
    """Where dreams begin: posterior states of N replayed steps, and whether they go on from there."""

    deter: Tensor  # [N, D]
    stoch: Tensor  # [N, S]
    alive: Tensor  # [N] 0 or 1


def head_config(net: NetConfig) -> HeadConfig:
    """As the heads take it."""
    return HeadConfig(net.layers, net.units, "none", net.act)


class WorldModel(nn.Module):
    """Encoder (enc), dynamics (dyn), decoder (dec), reward (rew) and, if it is learned, continuation (pcont)."""

    def __init__(
        self,
        ops: Ops,
        obs_space: Spaces,
        action_width: int,
        config: Config,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config, cfg = config, config.dyn
        self.latent = Gaussian(ops, cfg.stoch, cfg.min_std, "softplus")
        self.enc = StridedEncoder(ops, obs_space, config.enc, generator, dtype)
        core = GRU(
            ops,
            cfg.deter,
            cfg.stoch,
            action_width,
            hidden=cfg.hidden,
            act=cfg.act,
            reset_after=cfg.reset_after,
            generator=generator,
        )
        self.dyn = RSSM(
            ops,
            core,
            self.latent,
            self.enc.embed_width,
            hidden=cfg.hidden,
            prior_layers=1,
            post_layers=1,
            norm="none",
            act=cfg.act,
            generator=generator,
        )
        self.dec = StridedDecoder(ops, obs_space, cfg.deter, cfg.stoch, config.dec, generator)
        feat = self.dyn.feat_width
        self.rew = RegressionHead(ops, feat, head_config(config.rewhead), (), generator)
        pcont = head_config(config.pconthead)
        self.pcont = BinaryHead(ops, feat, pcont, generator) if config.pcont else None
        keras_defaults(self, generator)

    def discount(self, feat: fd.Feat) -> Tensor:
        """Discount of imagined states [N, H]; the head's parameters get no gradient."""
        if self.pcont is None:
            shape, device = feat.deter.shape[:-1], feat.deter.device
            return torch.full(shape, self.config.discount, device=device)
        return self.pcont.pred(self.pcont(feat, fixed=True))


class Networks(nn.Module):
    """World model (model), actor (pol) and critic (val).

    dtype   of matrix products; parameters are float32 throughout.
    seed    of the initial parameters.
    """

    def __init__(
        self, obs_space: Spaces, act_space: Spaces, config: Config, ops: Ops, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__()
        self.ops, self.config = ops, config
        generator = torch.Generator().manual_seed(seed)
        self.action_width = sum(space.width for space in act_space.values())
        self.model = WorldModel(ops, obs_space, self.action_width, config, dtype, generator)
        feat, net = self.model.dyn.feat_width, config.policy
        policy = PolicyConfig(net.layers, net.units, "none", net.act)
        family = TanhNormal(net.init_std, net.min_std)
        self.pol = ActorHeads(
            ops, feat, act_space, policy, generator, family, detach=True, discrete=config.discrete
        )
        self.val = RegressionHead(ops, feat, head_config(config.value), (), generator)
        keras_defaults(self.pol, generator)
        keras_defaults(self.val, generator)
        self._acting = Kept(self._policy_params, self, "model.enc", "model.dyn", "pol")

    def _policy_params(self) -> tuple[fd.Layers, fd.RSSM, fd.Actor]:
        # Images go through convolutions, which are no layers of an op: the embedding is then its input.
        encoder = () if self.model.enc.images else self.model.enc.vector_layers
        return encoder, self.model.dyn.params, self.pol.params

    @torch.no_grad()
    def act(
        self,
        carry: Mapping[str, Tensor],
        obs: Mapping[str, Tensor],
        generator: torch.Generator,
        greedy: bool,
        explore: Tensor | float,
    ) -> dict[str, Tensor]:
        """Take in one observation of n environments: the next carry, with the flat action chosen.

        explore   how much is explored, see `explored`.
        """
        model, reset, n = self.model, obs["is_first"].bool(), len(obs["is_first"])
        encoder, rssm, actor = self._acting.get()
        noise = model.latent.noise(n, generator=generator)
        state = carry["deter"], carry["stoch"], carry["action"]
        if greedy:
            step = self.ops.observe_step(rssm, *state, model.enc(obs), reset, noise)
            draws = self.pol.noise(n, self.config.mode_draws, generator=generator)
            action = self.pol.likeliest(self.pol(model.dyn.feat(step.deter, step.stoch)), draws)
        else:
            features = model.enc.features(obs) if encoder else model.enc(obs)
            action_noise = self.pol.noise(n, generator=generator)
            inputs = *state, features, reset, noise, action_noise
            step, action = self.ops.policy_step(encoder, rssm, actor, *inputs)
        action = self.explored(action, explore, generator)
        return {"deter": step.deter, "stoch": step.stoch, "action": action.to(step.deter.dtype)}

    def explored(self, action: Tensor, amount: Tensor | float, generator: torch.Generator) -> Tensor:
        """Flat actions [n, A], the continuous ones with noise of this std and clipped to [-1, 1], the discrete ones
        replaced by a uniform one with this probability, all elements of a key together.
        """
        spaces, n, device = self.pol.spaces.values(), len(action), action.device
        parts = []
        for space, part in zip(spaces, action.split([space.width for space in spaces], -1), strict=True):
            if space.kind == "vector":
                noise = torch.randn(part.shape, generator=generator, device=device)
                parts.append((part + amount * noise).clamp(-1, 1))
                continue
            shape = n, space.size
            index = torch.randint(space.classes, shape, generator=generator, device=device)
            other = torch.zeros(*shape, space.classes, device=device).scatter(-1, index[..., None], 1.0)
            chosen = torch.rand(n, 1, generator=generator, device=device) < amount
            parts.append(torch.where(chosen, other.flatten(1).to(part.dtype), part))
        return torch.cat(parts, -1)

    def starts(self, T: int) -> int:
        """From how many of a sequence's T states imagination starts; the last may be terminal where that is learned."""
        return T - 1 if self.config.pcont else T

    def draw(self, B: int, T: int, generator: torch.Generator) -> Draws:
        """All random numbers of one update on sequences [B, T]."""
        N, H, latent = B * self.starts(T), self.config.imag_length, self.model.latent
        return Draws(
            post=latent.noise(B, T, generator=generator),
            prior=latent.noise(N, H, generator=generator),
            action=self.pol.noise(N, H + 1, generator=generator),
        )
