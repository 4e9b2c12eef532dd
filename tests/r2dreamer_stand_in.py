"""What r2dreamer's integration meets of it, written anew from the mathematics, in any floating-point type.

`modules()` are modules by the names that it imports; names and arguments are r2dreamer's.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .r2dreamer_nets import (
    MLP,
    BlockLinear,
    Config,
    ConvDecoder,
    ConvEncoder,
    LambdaLayer,
    MLPHead,
    bounded_normal,
    dense,
    gumbel,
    onehot,
)


class Deter(nn.Module):
    def __init__(
        self,
        deter: int,
        stoch: int,
        act_dim: int,
        hidden: int,
        blocks: int,
        dynlayers: int,
        act: str = "SiLU",
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self._dyn_in0 = nn.Sequential(*dense(deter, hidden))
        self._dyn_in1 = nn.Sequential(*dense(stoch, hidden))
        self._dyn_in2 = nn.Sequential(*dense(act_dim, hidden))
        layers: list[nn.Module] = []
        inputs = deter + 3 * hidden * blocks
        for _ in range(dynlayers):
            layers += [BlockLinear(inputs, deter, blocks), nn.RMSNorm(deter, eps=1e-4), getattr(nn, act)()]
            inputs = deter
        self._dyn_hid = nn.Sequential(*layers)
        self._dyn_gru = BlockLinear(deter, 3 * deter, blocks)

    def forward(self, stoch: Tensor, deter: Tensor, action: Tensor) -> Tensor:
        action = action / action.detach().abs().clamp_min(1)
        inputs = self._dyn_in0(deter), self._dyn_in1(stoch.flatten(1)), self._dyn_in2(action)
        own = deter.chunk(self.blocks, -1)
        x = torch.cat([part for block in own for part in (block, *inputs)], -1)
        gates = [block.chunk(3, -1) for block in self._dyn_gru(self._dyn_hid(x)).chunk(self.blocks, -1)]
        reset, cand, update = (torch.cat(parts, -1) for parts in zip(*gates, strict=True))
        update = torch.sigmoid(update - 1)
        return update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * deter


class RSSM(nn.Module):
    def __init__(self, config: Config, embed_size: int, act_dim: int) -> None:
        super().__init__()
        self._stoch, self._discrete, self._unimix_ratio = config.stoch, config.discrete, config.unimix_ratio
        flat, hidden, deter = config.stoch * config.discrete, config.hidden, config.deter
        self._deter_net = Deter(deter, flat, act_dim, hidden, config.blocks, config.dyn_layers)
        shape = LambdaLayer(lambda x: x.unflatten(-1, (config.stoch, config.discrete)))
        outs = nn.Linear(hidden, flat), shape
        self._obs_net = nn.Sequential(*dense(deter + embed_size, *[hidden] * config.obs_layers), *outs)
        self._img_net = nn.Sequential(
            *dense(deter, *[hidden] * config.img_layers), nn.Linear(hidden, flat), shape
        )

    def observe(self, embed: Tensor, action: Tensor, initial: Any, reset: Tensor) -> Any:
        stoch, deter = initial
        steps = []
        for t in range(action.shape[1]):
            steps.append(self.obs_step(stoch, deter, action[:, t], embed[:, t], reset[:, t]))
            stoch, deter, _ = steps[-1]
        return tuple(torch.stack(x, 1) for x in zip(*steps, strict=True))

    def obs_step(
        self, stoch: Tensor, deter: Tensor, prev_action: Tensor, embed: Tensor, reset: Tensor
    ) -> Any:
        keep = ~reset.view(-1, 1)
        deter = self._deter_net(stoch * keep[..., None], deter * keep, prev_action * keep)
        logit = self._obs_net(torch.cat([deter, embed], -1))
        return gumbel(logit, self._unimix_ratio), deter, logit

    def img_step(self, stoch: Tensor, deter: Tensor, prev_action: Tensor) -> Any:
        deter = self._deter_net(stoch, deter, prev_action)
        return self.prior(deter)[0], deter

    def prior(self, deter: Tensor) -> Any:
        logit = self._img_net(deter)
        return gumbel(logit, self._unimix_ratio), logit

    def get_feat(self, stoch: Tensor, deter: Tensor) -> Tensor:
        return torch.cat([stoch.flatten(-2), deter], -1)

    def kl_loss(self, post_logit: Tensor, prior_logit: Tensor, free: float) -> Any:
        def kl(left: Tensor, right: Tensor) -> Tensor:
            log = left.log_softmax(-1)
            return (log.exp() * (log - right.log_softmax(-1))).sum((-2, -1)).clamp_min(free)

        return kl(post_logit.detach(), prior_logit), kl(post_logit, prior_logit.detach())


class TwoHot:
    def __init__(self, logits: Tensor, bins: Tensor, squash: Any = None, unsquash: Any = None) -> None:
        self.logits, self.bins, self.probs = logits, bins, logits.softmax(-1)
        self.squash, self.unsquash = squash or (lambda x: x), unsquash or (lambda x: x)

    def mode(self) -> Tensor:
        pairs = self.probs * self.bins
        half = len(self.bins) // 2
        middle = pairs[..., half : len(self.bins) - half].sum(-1)
        mean = middle + (pairs[..., :half].flip(-1) + pairs[..., -half:]).sum(-1)
        return self.unsquash(mean[..., None])

    def log_prob(self, target: Tensor) -> Tensor:
        rising = (self.squash(target) - self.bins[:-1]) / self.bins.diff().clamp_min(1e-30)
        nearness = torch.minimum(F.pad(rising, (1, 0), value=1.0), F.pad(1 - rising, (0, 1), value=1.0))
        return (nearness.clamp(0, 1) * self.logits.log_softmax(-1)).sum(-1)


class LaProp(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        plain = {"weight_decay": 0, "amsgrad": False, "centered": False}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps} | plain)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    s.update(step=0, exp_avg_lr_1=0.0, exp_avg_lr_2=0.0, **moments)
                s["step"] += 1
                s["exp_avg_lr_1"] = beta1 * s["exp_avg_lr_1"] + (1 - beta1) * lr
                s["exp_avg_lr_2"] = beta2 * s["exp_avg_lr_2"] + (1 - beta2)
                s["exp_avg_sq"].lerp_(p.grad**2, 1 - beta2)
                unit = p.grad / ((s["exp_avg_sq"] / s["exp_avg_lr_2"]).sqrt() + group["eps"])
                s["exp_avg"].mul_(beta1).add_(unit, alpha=(1 - beta1) * lr)
                p -= s["exp_avg"] * lr / s["exp_avg_lr_1"]


class Dreamer(nn.Module):
    def __init__(self, model: RSSM, actor: MLPHead) -> None:
        super().__init__()
        self.rssm, self.actor = model, actor
        self.clone_and_freeze()

    def clone_and_freeze(self) -> None:
        self.__dict__.update(_frozen_rssm=self.rssm, _frozen_actor=self.actor)

    @torch.no_grad()
    def _imagine(self, start: Any, imag_horizon: int) -> Any:
        feats, actions = [], []
        stoch, deter = start
        for _ in range(imag_horizon):
            feats.append(self.rssm.get_feat(stoch, deter))
            actions.append(self.actor(feats[-1]).rsample())
            stoch, deter = self.rssm.img_step(stoch, deter, actions[-1])
        return torch.stack(feats, 1), torch.stack(actions, 1)

    @torch.no_grad()
    def _lambda_return(
        self,
        last: Tensor,
        term: Tensor,
        reward: Tensor,
        value: Tensor,
        boot: Tensor,
        disc: float,
        lamb: float,
    ) -> Tensor:
        found = [boot[:, -1]]
        for t in reversed(range(1, reward.shape[1])):
            share = lamb * (1 - last[:, t])
            after = (1 - share) * boot[:, t] + share * found[0]
            found.insert(0, reward[:, t] + disc * (1 - term[:, t]) * after)
        return torch.stack(found[:-1], 1)


def autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> Any:
    return torch.autocast(device_type, dtype, enabled, cache_enabled)


def modules() -> dict[str, ModuleType]:
    """Modules by the names that r2dreamer gives them."""
    contents = {
        "distributions": [TwoHot, bounded_normal, onehot],
        "dreamer": [Dreamer, autocast],
        "networks": [LambdaLayer, BlockLinear, MLP, MLPHead, ConvEncoder, ConvDecoder],
        "optim": [],
        "optim.laprop": [LaProp],
        "rssm": [Deter, RSSM],
    }
    found = {}
    for name, things in contents.items():
        found[name] = ModuleType(name)
        vars(found[name]).update({thing.__name__: thing for thing in things})
    return found
