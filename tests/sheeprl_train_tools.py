"""Stand-ins for sheeprl's training functions, heads and optimizer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, OneHotCategorical

from .sheeprl_tools import A, C, D, H, S, dense
from .standin_tools import drawn, mixed_probs


def symlog(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().expm1()


def twohot(x: Tensor, bins: Tensor) -> Tensor:
    """x [...] -> [..., K] by linear interpolation between the bins around it."""
    x = x.clamp(bins[0], bins[-1])
    above = (bins < x[..., None]).sum(-1).clamp(1, len(bins) - 1)
    share = (x - bins[above - 1]) / (bins[above] - bins[above - 1])
    one, two = (F.one_hot(i, len(bins)) for i in (above - 1, above))
    return one * (1 - share)[..., None] + two * share[..., None]


class TwoHotEncodingDistribution:
    def __init__(
        self,
        logits: Tensor,
        dims: int = 0,
        low: int = -20,
        high: int = 20,
        transfwd: Any = symlog,
        transbwd: Any = symexp,
    ) -> None:
        self.logits, self.dims, self.transfwd, self.transbwd = (
            logits,
            tuple(range(-dims, 0)),
            transfwd,
            transbwd,
        )
        self.bins = torch.linspace(low, high, logits.shape[-1]).to(logits.dtype)

    @property
    def mean(self) -> Tensor:
        return self.transbwd((self.logits.softmax(-1) * self.bins).sum(-1, keepdim=True))

    def log_prob(self, x: Tensor) -> Tensor:
        return (twohot(self.transfwd(x).squeeze(-1), self.bins) * self.logits.log_softmax(-1)).sum(self.dims)


class TwoHot:
    def __init__(self, logits: Tensor, bins: Tensor | None = None) -> None:
        half = symexp(torch.linspace(-20, 0, (logits.shape[-1] + 1) // 2, dtype=torch.float64))
        self.logits = logits
        self.bins = torch.cat([half, -half[:-1].flip(0)]).to(logits.dtype) if bins is None else bins

    @property
    def mean(self) -> Tensor:
        weighted = self.logits.softmax(-1) * self.bins
        return ((weighted + weighted.flip(-1)) / 2).sum(-1)

    def loss(self, target: Tensor) -> Tensor:
        return -(twohot(target.detach(), self.bins) * self.logits.log_softmax(-1)).sum(-1)


def compute_lambda_values(rewards: Tensor, values: Tensor, continues: Tensor, lmbda: float = 0.95) -> Tensor:
    ret, out = values[-1], []
    for r, v, c in zip(rewards.flip(0), values.flip(0), continues.flip(0), strict=True):
        ret = r + c * ((1 - lmbda) * v + lmbda * ret)
        out.append(ret)
    return torch.stack(out[::-1])


def lambda_return(
    last: Tensor, terminal: Tensor, rewards: Tensor, bootstrap: Tensor, discount: float, lmbda: float
) -> Tensor:
    ret, out = bootstrap[-1], []
    for t in range(len(rewards) - 1, 0, -1):
        mix = lmbda * (1 - last[t])
        ret = rewards[t] + discount * (1 - terminal[t]) * ((1 - mix) * bootstrap[t] + mix * ret)
        out.append(ret)
    return torch.stack(out[::-1])


def clip_actions(actions: Tensor, action_clip: float) -> Tensor:
    return actions / (actions.abs() / action_clip).clamp_min(1).detach() if action_clip else actions


def imagine(
    world_model: Any,
    actor: Any,
    critic: Any,
    posteriors: Tensor,
    recurrent_states: Tensor,
    terminated: Tensor,
    *,
    horizon: int,
    gamma: float,
    lmbda: float,
    action_clip: float = 0.0,
) -> tuple[Tensor, ...]:
    rssm = world_model.rssm
    z, h = posteriors.detach().reshape(1, -1, S * C), recurrent_states.detach().reshape(1, -1, D)
    states, actions = [], []
    for time in range(horizon + 1):
        states.append(torch.cat([z, h], -1))
        actions.append(torch.cat(actor(states[-1].detach(), clip=False)[0], -1))
        if time < horizon:
            h = rssm.recurrent_model(torch.cat([z, clip_actions(actions[-1], action_clip)], -1), h)
            z = drawn(rssm.prior_logits(h).unflatten(-1, (-1, C)).softmax(-1)).flatten(-2)
    x = torch.cat(states)
    values, rewards = (
        TwoHotEncodingDistribution(net(x), 1).mean for net in (critic, world_model.reward_model)
    )
    going = (torch.sigmoid(world_model.continue_model(x)) > 0.5).to(x.dtype)
    going = torch.cat([(1 - terminated).reshape(1, -1, 1), going[1:]])
    returns = compute_lambda_values(rewards[1:], values[1:], gamma * going[1:], lmbda)
    return x, torch.cat(actions), values, returns, (torch.cumprod(gamma * going, 0) / gamma).detach()


class Actor(nn.Module):
    """dreamer_v3_5's."""

    def __init__(self, continuous: bool) -> None:
        super().__init__()
        self.model, self.is_continuous = dense(S * C + D), continuous
        self.mlp_heads = nn.ModuleList(nn.Linear(H, n) for n in ([2 * A] if continuous else [2, A - 2]))
        self.min_std, self.max_std, self.unimix = 0.1, 1.0, 0.02

    def distributions(self, x: Tensor) -> list[Any]:
        outs = [head(self.model(x)) for head in self.mlp_heads]
        if not self.is_continuous:
            return [OneHotCategorical(mixed_probs(out, self.unimix)) for out in outs]
        mean, std = outs[0].chunk(2, -1)
        return [Independent(Normal(torch.tanh(mean), 0.1 + 0.9 * torch.sigmoid(std + 2)), 1)]

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        dists = self.distributions(x)
        return tuple(dist.sample() for dist in dists), dists


def imagine_v3_5(
    world_model: Any,
    actor: Any,
    critic: Any,
    target_critic: Any,
    posteriors: Tensor,
    recurrent_states: Tensor,
    *,
    horizon: int,
    discount: float,
    lmbda: float,
) -> tuple[Tensor, ...]:
    z, h = posteriors.reshape(1, -1, S * C), recurrent_states.reshape(1, -1, D)
    states, actions = [], []
    for time in range(horizon + 1):
        states.append(torch.cat([z, h], -1))
        actions.append(torch.cat(actor(states[-1])[0], -1))
        if time < horizon:
            z, h = world_model.rssm.imagination(z, h, actions[-1])
    x = torch.cat(states)
    rewards, values, slow = (TwoHot(net(x)).mean for net in (world_model.reward_model, critic, target_critic))
    going = torch.sigmoid(world_model.continue_model(x).squeeze(-1))
    returns = lambda_return(torch.zeros_like(going), 1 - going, rewards, values, discount, lmbda)
    return x, torch.cat(actions), values, slow, returns, torch.cumprod(discount * going, 0) / discount


class LaProp(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 4e-5, warmup: int = 1000, weight_decay: float = 0.0) -> None:
        settings = {"betas": (0.9, 0.999), "eps": 1e-20, "agc": 0.3, "agc_pmin": 1e-3}
        super().__init__(
            params, {"lr": lr, "warmup": warmup, "weight_decay": weight_decay, "step": 0, **settings}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr = group["lr"] * min(1.0, group["step"] / group["warmup"]) if group["warmup"] else group["lr"]
            group["step"] += 1
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                for name in () if state else ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(p)
                upper = group["agc"] * p.norm().clamp_min(group["agc_pmin"])
                grad = p.grad / (p.grad.norm() / upper).clamp_min(1)
                (one, two), count = group["betas"], group["step"]
                state["exp_avg_sq"].lerp_(grad**2, 1 - two)
                state["exp_avg"].lerp_(
                    grad / ((state["exp_avg_sq"] / (1 - two**count)).sqrt() + group["eps"]), 1 - one
                )
                p -= lr * (state["exp_avg"] / (1 - one**count) + group["weight_decay"] * p)
