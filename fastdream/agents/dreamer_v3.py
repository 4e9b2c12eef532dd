"""DreamerV3: mastering diverse control tasks through world models (Hafner et al., Nature 2025).

Read from `loss` downwards, it is the paper. Everything between a batch and its metrics stays on the device and
nothing waits for it. One thing is better than in the official code on purpose: `report` keeps the losses that it
computes. What environments do better (Atari's time limit is no terminal state) is said where they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.agents.dreamer_v3_behavior import (
    Shown,
    actor_critic_loss,
    numbers,
    replay_critic_loss,
)
from fastdream.agents.dreamer_v3_config import Config, loss_weights, size, variant
from fastdream.agents.dreamer_v3_nets import Draws, Networks
from fastdream.casts import Casts
from fastdream.dreamer import Carry, Dreamer, Metrics, Stateful
from fastdream.heads import outputs_at
from fastdream.normalize import Slow
from fastdream.ops import Ops
from fastdream.optim import LaProp
from fastdream.pages import use_large_pages
from fastdream.spaces import Spaces, refuse_misfit, refuse_short

__all__ = ["Config", "Draws", "DreamerV3", "size", "variant"]


class DreamerV3(Dreamer):
    """A world model, an actor and a critic, trained together by one optimiser.

    obs_space, act_space   what the environment shows and takes, without reward and flags.
    config    `Config()`, through `size` and `variant` where wanted.
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
        self.config, self.replay_context = config, config.replay_context
        self.scales = loss_weights(config, obs_space)
        self.scale = torch.tensor(list(self.scales.values()), device=self.device)
        self.nets: Networks = Networks(obs_space, act_space, config, self.ops, self.dtype, seed).to(
            self.device
        )
        self.model = self.nets
        self.slow = Slow(self.nets.val, self.nets.slowval, config.slowvalue)
        self.slow.copy()
        use_large_pages(self.nets.parameters())
        self.casts = Casts(self.nets, self.dtype, self.nets.joined())
        self.opt = LaProp(self.ops, self.nets.learned(), config.opt, self.casts.leaf)

    @property
    def param_count(self) -> int:
        """Trained parameters, without the slow critic."""
        return self.opt.param_count

    @property
    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of what `policy` and `update` give replay to keep: deter and stoch."""
        return self.nets.latent_spec

    def stateful(self) -> dict[str, Stateful]:
        """Networks and optimiser."""
        return {"nets": self.nets, "opt": self.opt}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: also when the slow critic moves next."""
        return super().state_dict() | {"slow_count": self.slow.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an agent with the same spaces and configuration."""
        super().load_state_dict(state)
        self.slow.count.copy_(state["slow_count"])

    def act(
        self, carry: Carry, obs: Mapping[str, Tensor], greedy: bool = False
    ) -> tuple[Carry, dict[str, Tensor]]:
        """`policy` on the device: the next carry; and flat action, deter and classes drawn, for the host."""
        carry, index = self.nets.act(carry, obs, self.generators["policy"], greedy)
        return carry, {"action": carry["action"].float(), "deter": carry["deter"].float(), "stoch": index}

    def context(
        self, carry: Carry, batch: Mapping[str, Tensor]
    ) -> tuple[Carry, Mapping[str, Tensor], Tensor]:
        """Split replay context from a batch: initial state, the T trained steps, their flat actions [B, T, A]."""
        if context := self.replay_context:
            deter, stoch = batch["deter"][:, context - 1], batch["stoch"][:, context - 1]
            carry = {"deter": deter.to(self.dtype), "stoch": self.nets.latent.unpack(stoch, self.dtype)}
        batch = {k: v[:, context:] for k, v in batch.items()}
        return carry, batch, self.flat_action(batch)

    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step on sequences [B, replay_context + T, ...] in replay's time convention.

        Returns the next carry, the new latents of the T trained steps for replay, and metrics (0-d tensors).
        """
        others = ["is_last"] * ("repval" in self.scales) + [*self.latent_spec] * (self.replay_context > 0)
        refuse_misfit(batch, self.obs_space, self.act_space, *others)
        refuse_short(batch, 1 + self.replay_context)
        carry, batch, action = self.context(carry, batch)
        B, T = action.shape[:2]
        draws = self.nets.draw(B, T, self.generators["train"])
        with self.casts:
            loss, post, metrics = self.loss(carry, batch, action, draws)
        self.opt.clear()
        loss.backward()
        metrics |= {f"opt/{k}": v for k, v in self.opt.step().items()}
        self.slow.update()
        deter, stoch = post.deter.detach(), post.stoch.detach()
        return {"deter": deter[:, -1], "stoch": stoch[:, -1]}, self.nets.pack(deter, post.index), metrics

    def metrics(self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws) -> Metrics:
        """What `update` would say of all losses, without learning; sequences without their context."""
        return self.loss(carry, batch, self.flat_action(batch), draws, training=False)[2]

    def loss(
        self,
        carry: Carry,
        batch: Mapping[str, Tensor],
        action: Tensor,
        draws: Draws,
        *,
        training: bool = True,
    ) -> tuple[Tensor, fd.Step, Metrics]:
        """All losses on one batch: scalar total, posterior states, metrics.

        training=False leaves the running normalisers as they are.
        """
        params = self.nets.dyn.params
        embed = self.nets.enc(batch)
        state = carry["deter"], carry["stoch"], action, embed, batch["is_first"]
        post = self.ops.observe(params, *state, draws.post, draws.post_index)
        outs = self.nets.replayed(post, critics="repval" in self.scales)
        losses, shown = self.world_model_loss(params, post, batch, outs)
        learned, ret, imagined = self.behavior_loss(params, post, batch, draws, training)
        losses |= learned
        if "repval" in self.scales:
            losses["repval"] = self.replay_value_loss(batch, outs, ret[:, :, 0], training)
        assert losses.keys() == self.scales.keys(), (sorted(losses), sorted(self.scales))
        means = self.ops.summarize([losses[k] for k in self.scales], ["mean"] * len(losses))
        total = (means * self.scale).sum()
        metrics = numbers(self.ops, self.nets, shown | imagined) | {"opt/loss": total.detach()}
        metrics |= {f"loss/{k}": v for k, v in zip(self.scales, means.detach(), strict=True)}
        return total, post, metrics

    def world_model_loss(
        self,
        params: fd.RSSM,
        post: fd.Step,
        batch: Mapping[str, Tensor],
        outs: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Shown]:
        """Prediction, dynamics and representation losses (eqs. 4 and 5), each [B, T], and what a log shows."""
        nets, rew, con = self.nets, outs["rew"], outs["con"]
        prior = self.ops.prior(params, post.deter)
        recon = nets.dec(post.deter, nets.dyn.flat(post.stoch))
        dyn, rep = nets.latent.kl(post.logit, prior, self.config.dyn.free_nats)
        losses = {"dyn": dyn, "rep": rep, "rew": nets.rew.loss(rew, batch["reward"])}
        losses |= {"con": nets.con.loss(con, self.continuation(batch))} | nets.dec.loss(recon, batch)
        logits = {"dyn_ent": prior, "rep_ent": post.logit}
        shown: Shown = {k: (nets.latent.entropy(logit.detach()), "mean") for k, logit in logits.items()}
        return losses, shown

    def continuation(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Target of the continuation head: 1 - is_terminal, times the discount if that is learned too."""
        cont = 1 - batch["is_terminal"].float()
        return cont * (1 - 1 / self.config.horizon) if self.config.contdisc else cont

    def behavior_loss(
        self,
        params: fd.RSSM,
        post: fd.Step,
        batch: Mapping[str, Tensor],
        draws: Draws,
        training: bool,
    ) -> tuple[dict[str, Tensor], Tensor, Shown]:
        """Actor and critic on imagined trajectories (eqs. 7 to 12): losses [B, K], returns [B, K, H], shown."""
        nets, config, (B, T) = self.nets, self.config, post.deter.shape[:2]
        K, H = nets.starts(T), config.imag_length
        deter, stoch = (x[:, -K:].flatten(0, 1) for x in (post.deter, post.stoch))
        # The actor learns by REINFORCE: nothing is differentiated through the dream.
        with torch.no_grad():
            noise = draws.prior, draws.action, draws.prior_index, draws.action_flat
            dream = self.ops.imagine(params, nets.pol.params, deter, stoch, H, *noise)
        feat = nets.dyn.feat(dream.deter, dream.stoch)
        if config.ac_grads:
            begun = zip((deter, stoch), (dream.deter, dream.stoch), strict=True)
            feat = nets.dyn.feat(*(torch.cat([start[:, None], later[:, 1:]], 1) for start, later in begun))
        heads = (nets.pol, nets.val), (nets.rew, nets.con, nets.slowval)
        (policy, value), (rew, con, slow) = outputs_at(self.ops, feat, *heads)
        with torch.no_grad():
            rew, cont, slow = nets.rew.pred(rew), nets.con.pred(con), nets.slowval.pred(slow)
            if config.imag_start == "data":
                rew = torch.cat([batch["reward"][:, -K:].reshape(-1, 1), rew[:, 1:]], 1)
                cont = torch.cat([1 - batch["is_terminal"][:, -K:].float().reshape(-1, 1), cont[:, 1:]], 1)
        losses, ret, shown = actor_critic_loss(
            self.ops, nets, config, dream.action, rew, cont, policy, value, slow, training
        )
        return {k: v.mean(1).reshape(B, K) for k, v in losses.items()}, ret.reshape(B, K, H), shown

    def replay_value_loss(
        self,
        batch: Mapping[str, Tensor],
        outs: Mapping[str, Tensor],
        boot: Tensor,
        training: bool,
    ) -> Tensor:
        """Critic on the last K replayed states, bootstrapped from the imagined return of each: [B, K-1]."""
        nets, K = self.nets, boot.shape[1]
        with torch.no_grad():
            slow = nets.slowval.pred(outs["slowval"])
        batch = {k: batch[k][:, -K:] for k in ("reward", "is_last", "is_terminal")}
        return replay_critic_loss(self.ops, nets, self.config, batch, boot, outs["val"], slow, training)
