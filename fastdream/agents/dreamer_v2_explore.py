"""Plan2Explore (Sekar et al., ICML 2020) as DreamerV2's code has it: rewards where an ensemble disagrees.

The action beside the features is the one that led to the state, in training and in dreams, as in that code: what the
nets predict from has not yet been decided.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import Adam
from fastdream.agents.dreamer_v2_behavior import Behavior, Start
from fastdream.agents.dreamer_v2_config import Config
from fastdream.agents.dreamer_v2_nets import Draws, Networks
from fastdream.distributions import unit_normal_loss
from fastdream.dreamer import Metrics
from fastdream.ops import Ops
from fastdream.ops.reference.layers import upcast
from fastdream.spaces import Spaces


class Plan2Explore:
    """An ensemble, and a behaviour of its own that learns from its disagreement and perhaps from the task's reward."""

    def __init__(
        self,
        ops: Ops,
        nets: Networks,
        act_space: Spaces,
        config: Config,
        task_reward: Callable[[fd.Feat, Tensor], Tensor],
    ) -> None:
        self.ensemble, self.config, self.task_reward = nets.ensemble, config.explore, task_reward
        self.behavior = Behavior(ops, nets.model, nets.explore, self.reward, act_space, config)
        self.opt = Adam(dict(nets.ensemble.named_parameters()), config.explore.opt)

    @property
    def param_count(self) -> int:
        """Trained parameters, without the target critic."""
        opts = self.opt, self.behavior.policy_opt, self.behavior.value_opt
        return sum(opt.param_count for opt in opts)

    def update(self, feat: fd.Feat, action: Tensor, start: Start, draws: Draws) -> Metrics:
        """One step of the ensemble on replayed features and actions [B, T, ...], then one of the behaviour."""
        loss = self.loss(feat.detach(), action)
        self.opt.clear()
        loss.backward()
        metrics = {"loss/ensemble": loss.detach()}
        metrics |= {f"opt/ensemble_{k}": v for k, v in self.opt.step().items()}
        learned = self.behavior.update(start, draws)
        return metrics | {_named(k): v for k, v in learned.items()}

    def loss(self, feat: fd.Feat, action: Tensor) -> Tensor:
        """Sum over the nets of the mean loss of the next stochastic state: [B, T, ...] -> scalar."""
        now = fd.Feat(feat.deter[:, :-1], feat.stoch[:, :-1])
        preds = upcast(self.ensemble(now, action[:, :-1]))
        target = upcast(feat.stoch[:, 1:]).expand_as(preds)
        return unit_normal_loss(preds, target, 1).mean((1, 2)).sum()

    def reward(self, feat: fd.Feat, action: Tensor) -> Tensor:
        """Reward of a dream's states [N, H+1]: the nets' standard deviation, its mean over what they predict."""
        led = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
        preds = upcast(self.ensemble(feat, led, fixed=True))
        reward = self.config.intrinsic * preds.std(0, correction=0).mean(-1)
        if self.config.extrinsic:
            reward = reward + self.config.extrinsic * self.task_reward(feat, action)
        return reward

    def state_dict(self) -> dict[str, Any]:
        """Optimisers; the networks are saved with the others."""
        return {"opt": self.opt.state_dict(), "behavior": self.behavior.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a `state_dict` into place."""
        self.opt.load_state_dict(state["opt"])
        self.behavior.load_state_dict(state["behavior"])


def _named(metric: str) -> str:
    """loss/policy -> loss/explore_policy, ret -> explore_ret."""
    group, _, name = metric.rpartition("/")
    return f"{group}/explore_{name}" if group else f"explore_{name}"
