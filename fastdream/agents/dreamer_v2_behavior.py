"""DreamerV2's actor and critic: a dream, its returns, and the two losses.

Actions:       a0    a1    a2    a3         a_t is drawn at z_t and leads to z_{t+1}; a3 only fills the shape
              /  \\  /  \\  /  \\  /           with H = 3
States:     z0    z1    z2    z3
Rewards:    r0    r1    r2    r3            of the state itself
Returns:    R0    R1    R2                  v3 is bootstrapped from
Weights:     1    w1    w2    w3            w_t = d0 ... d_{t-1}
Actor:       l0    l1                       a0 is judged by R1, a1 by R2; what a2 leads to has no return
Critic:     l0    l1    l2
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import Adam
from fastdream.agents.dreamer_v2_config import Config
from fastdream.agents.dreamer_v2_nets import ActorCritic, Draws, WorldModel
from fastdream.annealing import Annealed
from fastdream.behavior import alive_weight, own_return
from fastdream.dreamer import Metrics
from fastdream.normalize import Slow
from fastdream.ops import Ops
from fastdream.ops.params import frozen
from fastdream.spaces import Spaces

Reward = Callable[[fd.Feat, Tensor], Tensor]


class Start(NamedTuple):
    """Where dreams begin: posterior states of N replayed steps, and their discounts."""

    deter: Tensor  # [N, D]
    stoch: Tensor  # [N, S, C] or [N, S]
    disc: Tensor  # [N]


class Behavior:
    """Learns one ActorCritic from the dreams of a world model and a reward, which may be any function of them.

    reward   takes features and actions [N, H+1, ...] of a dream and gives rewards [N, H+1]; its gradient is taken
             where the actor learns through the dynamics.
    """

    def __init__(
        self,
        ops: Ops,
        model: WorldModel,
        nets: ActorCritic,
        reward: Reward,
        act_space: Spaces,
        config: Config,
    ) -> None:
        self.ops, self.model, self.nets, self.reward, self.config = ops, model, nets, reward, config
        discrete = any(space.kind == "discrete" for space in act_space.values())
        auto = "reinforce" if discrete else "dynamics"
        self.actor_grad = auto if config.actor_grad == "auto" else config.actor_grad
        self.mix, self.actent = Annealed(config.actor_mix), Annealed(config.actent)
        self.slow = Slow(nets.val, nets.slowval, config.slowvalue)
        self.policy_opt = Adam(dict(nets.pol.named_parameters()), config.policy_opt)
        self.value_opt = Adam(dict(nets.val.named_parameters()), config.value_opt)

    def update(self, start: Start, draws: Draws) -> Metrics:
        """One step of actor and critic, and of the target critic where it is due."""
        losses, metrics = self.loss(start, draws)
        self.policy_opt.clear()
        self.value_opt.clear()
        (losses["policy"] + losses["value"]).backward()
        metrics |= {f"opt/policy_{k}": v for k, v in self.policy_opt.step().items()}
        metrics |= {f"opt/value_{k}": v for k, v in self.value_opt.step().items()}
        self.slow.update()
        return metrics

    def loss(self, start: Start, draws: Draws) -> tuple[dict[str, Tensor], Metrics]:
        """Losses of actor (eq. 6) and critic (eq. 5), scalars that reach their parameters alone; metrics."""
        nets = self.nets
        dream, feat, rew, disc, slow = self.imagine(start, draws)
        ret = own_return(self.ops, rew, disc, slow, self.config.lam)
        weight = alive_weight(disc)
        actor, metrics = self.actor_loss(nets.pol(feat), dream.action, ret, slow, weight)
        value = nets.val(feat.detach())[:, :-1]
        critic = (weight[:, :-1] * nets.val.loss(value, ret)).mean()
        stats = {"rew": rew, "disc": disc, "ret": ret, "val": value, "slowval": slow, "weight": weight}
        metrics |= {k: v.mean() for k, v in stats.items()} | {"rew_std": rew.std(correction=0)}
        losses = {"policy": actor, "value": critic}
        metrics |= {f"loss/{k}": v for k, v in losses.items()}
        return losses, {k: v.detach() for k, v in metrics.items()}

    def imagine(self, start: Start, draws: Draws) -> tuple[fd.Dream, fd.Feat, Tensor, Tensor, Tensor]:
        """A dream and its features; reward, discount and the target critic's value of each state, [N, H+1]."""
        model, length = self.model, self.config.imag_length
        gradient = torch.is_grad_enabled() and self.actor_grad != "reinforce"
        with torch.set_grad_enabled(gradient):
            rssm = frozen(model.dyn.params)
            noise = draws.prior, draws.action
            dream = self.ops.imagine(rssm, self.nets.pol.params, start.deter, start.stoch, length, *noise)
            feat = model.dyn.feat(dream.deter, dream.stoch)
            disc = model.discount(feat, start.disc)
            slow = self.nets.slowval.pred(self.nets.slowval(feat))
            return dream, feat, self.reward(feat, dream.action), disc, slow

    def actor_loss(
        self, policy: Sequence[tuple[Tensor, ...]], action: Tensor, ret: Tensor, slow: Tensor, weight: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Of the states 0 to H-2: action, slow and weight [N, H+1], ret [N, H]; policy as `nets.pol` gives it."""
        pol, count = self.nets.pol, self.policy_opt.count
        entropies = {key: value[:, :-2] for key, value in pol.entropy(policy).items()}
        actent = self.actent(count)
        objective = actent * torch.stack(list(entropies.values())).sum(0)
        dynamics = torch.ones_like(actent) if self.actor_grad == "dynamics" else torch.zeros_like(actent)
        metrics = {"actent": actent}
        if self.actor_grad == "both":
            dynamics = metrics["actor_mix"] = self.mix(count)
        if self.actor_grad != "reinforce":
            objective = objective + dynamics * ret[:, 1:]
        if self.actor_grad != "dynamics":
            adv = (ret[:, 1:] - slow[:, :-2]).detach()
            objective = objective + (1 - dynamics) * pol.log_prob(policy, action)[:, :-2] * adv
            metrics["adv"] = adv.mean()
        for key, (low, high) in pol.entropy_range().items():
            mean = entropies[key].mean()
            metrics |= {f"ent/{key}": mean, f"rand/{key}": (mean - low) / ((high - low) or 1.0)}
        return -(weight[:, :-2] * objective).mean(), metrics

    def state_dict(self) -> dict[str, Any]:
        """Optimisers, and when the target critic moves next; the networks are saved with the others."""
        opts = {"policy_opt": self.policy_opt.state_dict(), "value_opt": self.value_opt.state_dict()}
        return opts | {"slow_count": self.slow.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a `state_dict` into place."""
        self.policy_opt.load_state_dict(state["policy_opt"])
        self.value_opt.load_state_dict(state["value_opt"])
        self.slow.count.copy_(state["slow_count"])
