"""The networks of DreamerV2, and one step of acting with them."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdream import ops as fd
from fastdream.agents.dreamer_v2_config import Config, NetConfig
from fastdream.cores import LayerNormGRU
from fastdream.distributions import TruncNormal
from fastdream.heads import BinaryHead, HeadConfig, RegressionHead
from fastdream.keras import keras_defaults
from fastdream.latents import Categorical, Gaussian, Latent
from fastdream.nets import Kept
from fastdream.ops import Ops
from fastdream.policy import ActorHeads, PolicyConfig
from fastdream.rssm import RSSM
from fastdream.spaces import Spaces
from fastdream.strided import StridedDecoder, StridedEncoder


class Draws(NamedTuple):
    """What is random in one update."""

    post: Tensor  # [B, T, S] uniform, of Gaussian latents normal
    prior: Tensor  # [N, H, S] the same
    action: Tensor  # [N, H+1, M] uniform


def head_config(net: NetConfig) -> HeadConfig:
    """As the heads take it."""
    return HeadConfig(net.layers, net.units, net.norm, net.act)


class ActorCritic(nn.Module):
    """Actor (pol), critic (val) and the target critic (slowval), which is a copy of it."""

    def __init__(
        self, ops: Ops, feat: int, act_space: Spaces, config: Config, generator: torch.Generator
    ) -> None:
        super().__init__()
        net = config.policy
        policy = PolicyConfig(net.layers, net.units, net.norm, net.act)
        self.pol = ActorHeads(ops, feat, act_space, policy, generator, TruncNormal(), detach=True)
        value = head_config(config.value)
        self.val = RegressionHead(ops, feat, value, (), generator)
        self.slowval = RegressionHead(ops, feat, value, (), generator)
        keras_defaults(self, generator)
        self.slowval.load_state_dict(self.val.state_dict())


class WorldModel(nn.Module):
    """Encoder (enc), dynamics (dyn), decoder (dec), reward (rew) and, if it is learned, discount (dis)."""

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
        self.latent: Latent = (
            Categorical(ops, cfg.stoch, cfg.classes, unimix=0.0)
            if cfg.classes
            else Gaussian(ops, cfg.stoch, cfg.min_std, "sigmoid2")
        )
        self.enc = StridedEncoder(ops, obs_space, config.enc, generator, dtype)
        style: dict[str, Any] = {"norm": cfg.norm, "act": cfg.act, "generator": generator}
        core = LayerNormGRU(ops, cfg.deter, self.latent.width, action_width, hidden=cfg.hidden, **style)
        width = self.enc.embed_width
        self.dyn = RSSM(
            ops, core, self.latent, width, hidden=cfg.hidden, prior_layers=1, post_layers=1, **style
        )
        self.dec = StridedDecoder(ops, obs_space, cfg.deter, self.latent.width, config.dec, generator)
        feat = self.dyn.feat_width
        self.rew = RegressionHead(ops, feat, head_config(config.rewhead), (), generator)
        self.dis = (
            BinaryHead(ops, feat, head_config(config.dishead), generator) if config.pred_discount else None
        )
        keras_defaults(self, generator)

    def discount(self, feat: fd.Feat, first: Tensor) -> Tensor:
        """Discount of imagined states [N, H+1], of the first as given [N]; the head's parameters get no gradient."""
        if self.dis is None:
            return torch.full(feat.deter.shape[:-1], self.config.discount, device=first.device)
        disc = self.dis.pred(self.dis(feat, fixed=True))
        return torch.cat([first[:, None], disc[:, 1:]], 1)


class Ensemble(nn.Module):
    """Nets that each predict the next stochastic state from features and action (Sekar et al. 2020)."""

    def __init__(self, ops: Ops, inp: int, out: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        net = head_config(config.explore.net)
        self.heads = nn.ModuleList(
            RegressionHead(ops, inp, net, (out,), generator) for _ in range(config.explore.models)
        )
        keras_defaults(self, generator)

    def forward(self, feat: fd.Feat, action: Tensor, fixed: bool = False) -> Tensor:
        """feat [..., F], action [..., A] -> predictions [models, ..., S*C]; `fixed`: parameters get no gradient."""
        inputs = torch.cat([*feat, action.to(feat.deter.dtype)], -1)
        return torch.stack([head(inputs, fixed) for head in self.heads])


class Networks(nn.Module):
    """World model (model) and the behaviours that learn in it: `task`, and `explore` with an `ensemble` if asked for.

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
        feat = self.model.dyn.feat_width
        self.task = ActorCritic(ops, feat, act_space, config, generator)
        names = ["task"]
        if config.explore.behavior != "greedy":
            self.explore = ActorCritic(ops, feat, act_space, config, generator)
            width = self.model.latent.width
            self.ensemble = Ensemble(ops, feat + self.action_width, width, config, generator)
            names.append("explore")
        self._acting = {
            name: Kept(partial(self._policy_params, name), self, "model.enc", "model.dyn", f"{name}.pol")
            for name in names
        }

    def _policy_params(self, behavior: str) -> tuple[fd.Layers, fd.RSSM, fd.Actor]:
        # Images go through convolutions, which are no layers of an op: the embedding is then its input.
        encoder = () if self.model.enc.images else self.model.enc.vector_layers
        return encoder, self.model.dyn.params, getattr(self, behavior).pol.params

    def act(
        self,
        carry: Mapping[str, Tensor],
        obs: Mapping[str, Tensor],
        generator: torch.Generator,
        greedy: bool,
        behavior: str = "task",
        over: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Take in one observation of n environments: the next carry, with the flat action chosen.

        behavior   whose actor chooses.
        over       a truth value on the device: where it holds, that of the task chooses after all.
        """
        model, reset = self.model, obs["is_first"].bool()
        pol = getattr(self, behavior).pol
        noise = model.latent.noise(len(reset), generator=generator)
        action_noise = None if greedy else pol.noise(len(reset), generator=generator)
        encoder, rssm, actor = self._acting[behavior].get()
        with torch.no_grad():
            features = model.enc.features(obs) if encoder else model.enc(obs)
        state = carry["deter"], carry["stoch"], carry["action"], features, reset
        step, action = self.ops.policy_step(encoder, rssm, actor, *state, noise, action_noise)
        if over is not None:
            with torch.no_grad():
                feat = torch.cat(model.dyn.feat(step.deter, step.stoch), -1)
                other = fd.actor(self.task.pol.params, feat, action_noise)
            action = torch.where(over, other, action)
        return {"deter": step.deter, "stoch": step.stoch, "action": action.to(step.deter.dtype)}

    def draw(self, B: int, T: int, generator: torch.Generator) -> Draws:
        """All random numbers of one update of the world model and one behaviour on sequences [B, T]."""
        N, H, latent = B * T, self.config.imag_length, self.model.latent
        return Draws(
            post=latent.noise(B, T, generator=generator),
            prior=latent.noise(N, H, generator=generator),
            action=self.task.pol.noise(N, H + 1, generator=generator),
        )
