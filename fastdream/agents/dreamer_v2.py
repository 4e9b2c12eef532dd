"""DreamerV2: mastering Atari with discrete world models (Hafner et al., ICLR 2021).

Read from `update` downwards, it is the paper: the world model learns first, then actor and critic in the dreams of
the model that has just learned. What differs from the official code: schedules count updates, not steps of the
environment; and the target critic begins as a copy of the critic, where theirs has other parameters for one update.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import Adam
from fastdream.agents.dreamer_v2_behavior import Behavior, Start
from fastdream.agents.dreamer_v2_config import SIZES, Config, loss_weights, size
from fastdream.agents.dreamer_v2_explore import Plan2Explore
from fastdream.agents.dreamer_v2_nets import Draws, Networks
from fastdream.dreamer import Carry, Dreamer, Metrics, Stateful
from fastdream.ops import Ops
from fastdream.spaces import Spaces, refuse_misfit, refuse_short

__all__ = ["SIZES", "Config", "Draws", "DreamerV2", "size"]


class DreamerV2(Dreamer):
    """A world model, and an actor and a critic that learn in its dreams.

    obs_space, act_space   what the environment shows and takes, without reward and flags.
    config    `Config()`, through `size` where wanted.
    ops       table of kernels; None loads the best for the device.
    seed      of the initial parameters and of all later draws.
    """

    def __init__(
        self,
        obs_space: Spaces,
        act_space: Spaces,
        config: Config,
        ops: Ops | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(obs_space, act_space, config.dtype, ops, device, seed)
        self.config = config
        self.scales = loss_weights(config, obs_space)
        self.nets: Networks = Networks(obs_space, act_space, config, self.ops, self.dtype, seed).to(
            self.device
        )
        self.model = self.nets.model
        self.model_opt = Adam(dict(self.model.named_parameters()), config.model_opt)
        self.behavior = Behavior(self.ops, self.model, self.nets.task, self.task_reward, act_space, config)
        self.explore: Plan2Explore | None = None
        if config.explore.behavior == "plan2explore":
            self.explore = Plan2Explore(self.ops, self.nets, act_space, config, self.task_reward)

    @property
    def param_count(self) -> int:
        """Trained parameters, without target critics."""
        opts = self.model_opt, self.behavior.policy_opt, self.behavior.value_opt
        return sum(opt.param_count for opt in opts) + (self.explore.param_count if self.explore else 0)

    def stateful(self) -> dict[str, Stateful]:
        """Networks, optimisers, and the clocks of target critics."""
        parts: dict[str, Stateful] = {
            "nets": self.nets,
            "model_opt": self.model_opt,
            "behavior": self.behavior,
        }
        return parts if self.explore is None else parts | {"explore": self.explore}

    def act(
        self, carry: Carry, obs: Mapping[str, Tensor], greedy: bool = False
    ) -> tuple[Carry, dict[str, Tensor]]:
        """`policy` on the device; in training by the actor that explores, if there is one, until its time is over."""
        until, generator = self.config.explore.until, self.generators["policy"]
        explores = self.explore is not None and not greedy
        over = self.model_opt.count >= until if explores and until else None
        carry = self.nets.act(carry, obs, generator, greedy, "explore" if explores else "task", over)
        return carry, {"action": carry["action"].float()}

    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step of the model, then one of actor and critic in the dreams of what it has become."""
        refuse_misfit(batch, self.obs_space, self.act_space)
        refuse_short(batch, 2 if self.explore else 1)  # an ensemble learns what follows a state
        B, T = batch["is_first"].shape
        draws = self.nets.draw(B, T, self.generators["train"])
        post, metrics = self.update_model(carry, batch, draws)
        start = self.start(post, batch)
        metrics |= self.behavior.update(start, draws)
        if self.explore is not None:
            feat, action = self.model.dyn.feat(post.deter, post.stoch), self.flat_action(batch)
            draws = self.nets.draw(B, T, self.generators["train"])
            metrics |= self.explore.update(feat, action, start, draws)
        metrics["opt/loss"] = metrics["loss/model"] + metrics["loss/policy"] + metrics["loss/value"]
        return carry, {}, metrics

    def update_model(
        self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws
    ) -> tuple[fd.Step, Metrics]:
        """One gradient step of the model: the posterior states before it, metrics."""
        loss, post, metrics = self.model_loss(carry, batch, draws)
        self.model_opt.clear()
        loss.backward()
        return post, metrics | {f"opt/model_{k}": v for k, v in self.model_opt.step().items()}

    def metrics(self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws) -> Metrics:
        """What `update` would say of the losses of model and task, without learning."""
        _, post, metrics = self.model_loss(carry, batch, draws)
        return metrics | self.behavior.loss(self.start(post, batch), draws)[1]

    def model_loss(
        self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws
    ) -> tuple[Tensor, fd.Step, Metrics]:
        """Prediction losses and balanced KL (eq. 2, algorithm 2): scalar total, posterior states, metrics."""
        model, config = self.model, self.config
        params, action = model.dyn.params, self.flat_action(batch)
        state = carry["deter"], carry["stoch"], action, model.enc(batch), batch["is_first"]
        post = self.ops.observe(params, *state, draws.post)
        prior = self.prior(post.deter)
        dyn, rep = model.latent.kl(post.logit, prior, config.kl.free, config.kl.clamp)
        losses = {"kl": config.kl.balance * dyn.mean() + (1 - config.kl.balance) * rep.mean()}
        feat = model.dyn.feat(post.deter, post.stoch)

        def inputs(head: str) -> fd.Feat:
            return feat if head in config.grad_heads else feat.detach()

        rew = model.rew(inputs("reward"))
        losses["rew"] = model.rew.loss(rew, self.transformed(batch["reward"])).mean()
        if model.dis is not None:
            losses["dis"] = model.dis.loss(model.dis(inputs("discount")), self.discount(batch)).mean()
        recon = model.dec(*inputs("decoder"))
        losses |= {k: v.mean() for k, v in model.dec.loss(recon, batch).items()}
        assert losses.keys() == self.scales.keys(), (sorted(losses), sorted(self.scales))
        total = torch.stack([losses[k] * scale for k, scale in self.scales.items()]).sum()
        metrics = {f"loss/{k}": v for k, v in losses.items()} | {"loss/model": total}
        metrics |= {
            "dyn_ent": model.latent.entropy(prior).mean(),
            "rep_ent": model.latent.entropy(post.logit).mean(),
        }
        return total, post, {k: v.detach() for k, v in metrics.items()}

    def prior(self, deter: Tensor) -> Tensor:
        """Logits of states [B, T, D], without seeing what was observed there."""
        return self.ops.prior(self.model.dyn.params, deter)

    def transformed(self, reward: Tensor) -> Tensor:
        """Rewards as they are learned."""
        return reward.tanh() if self.config.reward == "tanh" else reward

    def discount(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Discount of every step: 0 where the task ended. Also a soft target of the discount head."""
        return self.config.discount * (1 - batch["is_terminal"].float())

    def task_reward(self, feat: fd.Feat, action: Tensor) -> Tensor:
        """The task's reward in a dream, as predicted from its states."""
        return self.model.rew.pred(self.model.rew(feat, fixed=True))

    def start(self, post: fd.Step, batch: Mapping[str, Tensor]) -> Start:
        """All B·T posterior states."""
        deter, stoch = (x.detach().flatten(0, 1) for x in (post.deter, post.stoch))
        return Start(deter, stoch, self.discount(batch).flatten())
