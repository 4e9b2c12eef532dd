"""Offline DV2 (Lu et al., TMLR 2023): DreamerV2 that learns from a dataset alone.

Where the dataset says little, a world model is wrong, and an actor that learns in its dreams finds out where. So the
model has several priors, which disagree where they know little; disagreement is taken off the rewards of dreams, and
dreams are short. The model learns first, alone; then it stays as it is, and actor and critic learn in it.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastdream import ops as fd
from fastdream.adam import Adam, AdamConfig
from fastdream.agents.dreamer_v2 import DreamerV2
from fastdream.agents.dreamer_v2_behavior import Behavior
from fastdream.agents.dreamer_v2_nets import Draws
from fastdream.agents.dreamer_v2_offline_config import Config
from fastdream.agents.dreamer_v2_penalties import PENALTIES
from fastdream.dreamer import Carry, Metrics
from fastdream.keras import keras_defaults
from fastdream.nets import Dense
from fastdream.ops import Ops, reference
from fastdream.ops.params import frozen
from fastdream.spaces import Spaces, refuse_misfit, refuse_short


class Priors(nn.Module):
    """The prior of a DreamerV2, which is the first, and others of its form that begin elsewhere."""

    def __init__(self, ops: Ops, config: Config, logits: int, generator: torch.Generator) -> None:
        super().__init__()
        dyn, count = config.dyn, config.offline.models - 1

        def prior() -> nn.ModuleList:
            hidden = Dense(ops, dyn.deter, dyn.hidden, norm=dyn.norm, act=dyn.act, generator=generator)
            return nn.ModuleList([hidden, Dense(ops, dyn.hidden, logits, generator=generator)])

        self.others = nn.ModuleList(prior() for _ in range(count))
        keras_defaults(self, generator)

    def params(self, rssm: fd.RSSM) -> list[fd.RSSM]:
        """The RSSM with each of the priors."""
        others = cast(list[list[Dense]], self.others)
        return [rssm, *(rssm._replace(prior=tuple(dense.layer for dense in prior)) for prior in others)]


class OfflineDV2(DreamerV2):
    """DreamerV2 with an ensemble of priors, rewards that their disagreement lowers, and two phases of learning."""

    capturable = False  # which prior is drawn, and what learns, is decided on the host

    config: Config

    def __init__(
        self,
        obs_space: Spaces,
        act_space: Spaces,
        config: Config,
        ops: Ops | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(obs_space, act_space, config, ops, device, seed)
        generator = torch.Generator().manual_seed(seed + 7)
        logits = self.model.latent.logit_width
        self.priors = self.model.priors = Priors(self.ops, config, logits, generator).to(self.device)
        self.model_opt = Adam(dict(self.model.named_parameters()), config.model_opt)
        dreams = self.ops._replace(imagine=self.imagine)
        reward = self.penalised_reward
        self.behavior = Behavior(dreams, self.model, self.nets.task, reward, act_space, config)
        self.log_lam = nn.Parameter(torch.zeros((), device=self.device))
        self.lam_opt = Adam({"log_lam": self.log_lam}, AdamConfig(config.offline.tune_lr, clip=0.0, eps=1e-7))
        self.made = 0  # updates
        self.rng = np.random.default_rng(seed)  # of the priors that are drawn
        self.last_penalty = torch.zeros(
            2, device=self.device
        )  # mean and standard deviation over the last dream

    @property
    def phase(self) -> str:
        """What the next update learns: "model", "behavior", or "" for both."""
        if not self.config.offline.model_updates:
            return ""
        return "model" if self.made < self.config.offline.model_updates else "behavior"

    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step of what this phase learns; else as DreamerV2's."""
        refuse_misfit(batch, self.obs_space, self.act_space)
        refuse_short(batch, 1)
        phase = self.phase
        self.made += 1
        if not phase:
            carry, _, metrics = super().update(carry, batch)
            return carry, {}, metrics | self.tune_penalty()
        B, T = batch["is_first"].shape
        draws = self.nets.draw(B, T, self.generators["train"])
        if phase == "model":
            metrics = self.update_model(carry, batch, draws)[1]
            return carry, {}, metrics | {"opt/loss": metrics["loss/model"]}
        return carry, {}, self.update_behavior(carry, batch, draws) | self.tune_penalty()

    def update_behavior(self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws) -> Metrics:
        """One step of actor and critic in dreams from the states of a batch."""
        model = self.model
        with torch.no_grad():
            state = carry["deter"], carry["stoch"], self.flat_action(batch), model.enc(batch)
            post = self.ops.observe(model.dyn.params, *state, batch["is_first"], draws.post)
        metrics = self.behavior.update(self.start(post, batch), draws)
        return metrics | {"opt/loss": metrics["loss/policy"] + metrics["loss/value"]}

    def prior(self, deter: Tensor) -> Tensor:
        """Logits of states [B, T, D] by the prior that is drawn for each time step: [B, T, ...]."""
        logits = torch.stack(
            [self.ops.prior(rssm, deter) for rssm in self.priors.params(self.model.dyn.params)]
        )
        steps = deter.shape[1]
        drawn = torch.as_tensor(self.rng.integers(len(logits), size=steps), device=deter.device)
        return logits[drawn, :, torch.arange(steps, device=deter.device)].transpose(0, 1)

    def imagine(
        self,
        rssm: fd.RSSM,
        actor: fd.Actor,
        deter: Tensor,
        stoch: Tensor,
        length: int,
        noise: Tensor,
        action_noise: Tensor,
    ) -> fd.Dream:
        """`ops.imagine`, in which every step is drawn from the prior that is drawn for it."""
        priors = frozen(tuple(self.priors.params(rssm)))
        # No other backend's step has a gradient.
        step_of = reference.imagine_step if torch.is_grad_enabled() else self.ops.imagine_step
        deters, stochs, logits, actions = [deter], [stoch], [], []
        for t, drawn in enumerate([*self.rng.integers(len(priors), size=length), None]):
            feat = torch.cat(self.model.dyn.feat(deters[-1], stochs[-1]), -1)
            actions.append(fd.actor(actor, feat, action_noise[:, t]))
            if drawn is not None:
                step = step_of(priors[drawn], deters[-1], stochs[-1], actions[-1], noise[:, t])
                deters.append(step.deter)
                stochs.append(step.stoch)
                logits.append(step.logit)
        return fd.Dream(*(torch.stack(x, 1) for x in (deters, stochs, logits, actions)))

    def penalty(self, feat: fd.Feat) -> Tensor:
        """How unsure the priors are of states [..., F], as the settings measure it: [...]."""
        rssms = frozen(tuple(self.priors.params(self.model.dyn.params)))
        logits = torch.stack([self.ops.prior(rssm, feat.deter) for rssm in rssms])
        return PENALTIES[self.config.offline.penalty](self.model.latent, logits, feat.stoch)

    @property
    def lam(self) -> Tensor:
        """Weight of the penalty."""
        return (
            self.log_lam.detach().exp()
            if self.config.offline.tune
            else self.log_lam.new_tensor(self.config.offline.lam)
        )

    def penalised_reward(self, feat: fd.Feat, action: Tensor) -> Tensor:
        """Predicted reward less the penalty, of the states of a dream [N, H+1]."""
        reward = self.task_reward(feat, action)
        if self.config.offline.penalty == "none":
            return reward
        penalty = self.penalty(feat)
        # The mean lowers all returns alike, unless episodes end: it is differences that an actor feels.
        self.last_penalty = torch.stack([penalty.mean(), penalty.std(correction=0)]).detach()
        return reward - self.lam * penalty

    def tune_penalty(self) -> Metrics:
        """Bring what was taken off in the last dream nearer to what is wanted, if anything is; metrics."""
        mean, std = self.last_penalty
        metrics = {"penalty": mean, "penalty_std": std, "lam": self.lam}
        if wanted := self.config.offline.tune:
            self.log_lam.grad = self.lam * mean - wanted
            self.lam_opt.step()
        return metrics

    def report(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Metrics, dict[str, np.ndarray]]:
        """As DreamerV2's; leaves what comes next as it was."""
        drawn = self.rng.bit_generator.state
        try:
            return super().report(carry, batch)
        finally:
            self.rng.bit_generator.state = drawn

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        tuned = {"log_lam": self.log_lam.detach(), "lam_opt": self.lam_opt.state_dict()}
        offline = {"made": self.made, "rng": self.rng.bit_generator.state, **tuned}
        return super().state_dict() | {"offline": offline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an agent with the same spaces and configuration."""
        super().load_state_dict(state)
        offline = state["offline"]
        self.made, self.rng.bit_generator.state = int(offline["made"]), offline["rng"]
        with torch.no_grad():
            self.log_lam.copy_(offline["log_lam"])
        self.lam_opt.load_state_dict(offline["lam_opt"])
