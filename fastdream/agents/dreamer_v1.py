"""DreamerV1: dream to control, learning behaviors by latent imagination (Hafner et al., ICLR 2020).

Read from `update` downwards, it is the paper: the actor climbs the gradient of imagined returns, which flows through
rewards, values, dynamics and actions, all three losses come from one forward pass, and each has its own optimiser.
What differs from the official code: updates are spread evenly over steps; the noise of latents is drawn for every
sequence and every dream, not once for all of them; dreams that begin where an episode has ended do not count (its
sequences are of one episode each, and end there); and the actor's output begins as two matrices, of means and of
deviations, where theirs is one, whose Glorot limit is 0.7 % lower (6 actions).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import Adam
from fastdream.agents.dreamer_v1_config import SIZES, Config, loss_weights, size
from fastdream.agents.dreamer_v1_nets import Draws, Networks, Start
from fastdream.annealing import Annealed
from fastdream.behavior import alive_weight, own_return
from fastdream.dreamer import Carry, Dreamer, Metrics, Stateful
from fastdream.ops import Ops
from fastdream.ops.params import frozen
from fastdream.spaces import Spaces, refuse_misfit, refuse_short

__all__ = ["SIZES", "Config", "Draws", "DreamerV1", "size"]


class DreamerV1(Dreamer):
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
        self.expl = Annealed(config.expl)
        parts = {"model": self.model, "policy": self.nets.pol, "value": self.nets.val}
        settings = {"model": config.model_opt, "policy": config.policy_opt, "value": config.value_opt}
        self.opts = {k: Adam(dict(part.named_parameters()), settings[k]) for k, part in parts.items()}

    @property
    def param_count(self) -> int:
        """Trained parameters."""
        return sum(opt.param_count for opt in self.opts.values())

    def stateful(self) -> dict[str, Stateful]:
        """Networks and optimisers."""
        return {"nets": self.nets} | {f"{name}_opt": opt for name, opt in self.opts.items()}

    def act(
        self, carry: Carry, obs: Mapping[str, Tensor], greedy: bool = False
    ) -> tuple[Carry, dict[str, Tensor]]:
        """`policy` on the device; most likely actions are the most likely of some draws."""
        explore = self.config.expl_eval if greedy else self.expl(self.opts["model"].count)
        carry = self.nets.act(carry, obs, self.generators["policy"], greedy, explore)
        return carry, {"action": carry["action"].float()}

    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step of model, actor and critic, from one forward pass."""
        refuse_misfit(batch, self.obs_space, self.act_space)
        refuse_short(batch, 2 if self.config.pcont else 1)  # the last state of each begins no dream then
        B, T = batch["is_first"].shape
        loss, metrics = self.loss(carry, batch, self.nets.draw(B, T, self.generators["train"]))
        for opt in self.opts.values():
            opt.clear()
        loss.backward()
        for name, opt in self.opts.items():
            metrics |= {f"opt/{name}_{k}": v for k, v in opt.step().items()}
        return carry, {}, metrics

    def metrics(self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws) -> Metrics:
        """What `update` would say of all losses, without learning."""
        return self.loss(carry, batch, draws)[1]

    def loss(self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws) -> tuple[Tensor, Metrics]:
        """The sum of all losses, each of which reaches its own networks alone; metrics."""
        model, post, metrics = self.model_loss(carry, batch, draws)
        actor, value, imagined = self.behavior_loss(self.start(post, batch), draws)
        total = model + actor + value
        metrics |= imagined | {"loss/model": model, "loss/policy": actor, "loss/value": value}
        metrics |= {"opt/loss": total, "expl": self.expl(self.opts["model"].count)}
        return total, {k: v.detach() for k, v in metrics.items()}

    def model_loss(
        self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws
    ) -> tuple[Tensor, fd.Step, Metrics]:
        """Prediction losses and KL (eq. 10): scalar total, posterior states, metrics."""
        model, params, first = self.model, self.model.dyn.params, batch["is_first"]
        # A sequence begins with nothing, but with the action that led to it.
        reset = torch.cat([torch.zeros_like(first[:, :1]), first[:, 1:]], 1)
        state = carry["deter"], carry["stoch"], self.flat_action(batch), model.enc(batch), reset
        post = self.ops.observe(params, *state, draws.post)
        prior = self.ops.prior(params, post.deter)
        dyn, rep = model.latent.kl(post.logit, prior, self.config.free_nats, "mean")
        # Both are the KL; together they have its gradient with respect to both distributions.
        losses = {"kl": dyn + rep - rep.detach()}
        feat = model.dyn.feat(post.deter, post.stoch)
        reward = batch["reward"].tanh() if self.config.reward == "tanh" else batch["reward"]
        losses["rew"] = model.rew.loss(model.rew(feat), reward).mean()
        if model.pcont is not None:
            target = self.config.discount * (1 - batch["is_terminal"].float())
            losses["pcont"] = model.pcont.loss(model.pcont(feat), target).mean()
        losses |= {k: v.mean() for k, v in model.dec.loss(model.dec(*feat), batch).items()}
        assert losses.keys() == self.scales.keys(), (sorted(losses), sorted(self.scales))
        total = torch.stack([losses[k] * scale for k, scale in self.scales.items()]).sum()
        metrics = {f"loss/{k}": v for k, v in losses.items()}
        metrics |= {
            "dyn_ent": model.latent.entropy(prior).mean(),
            "rep_ent": model.latent.entropy(post.logit).mean(),
        }
        return total, post, metrics

    def start(self, post: fd.Step, batch: Mapping[str, Tensor]) -> Start:
        """Where dreams begin; nothing that follows the end of an episode counts, if ends are learned."""
        count = self.nets.starts(post.deter.shape[1])
        deter, stoch = (x.detach()[:, :count].flatten(0, 1) for x in (post.deter, post.stoch))
        ends = batch["is_terminal"][:, :count].flatten()
        return Start(deter, stoch, 1 - ends.float() if self.config.pcont else torch.ones_like(deter[:, 0]))

    def behavior_loss(self, start: Start, draws: Draws) -> tuple[Tensor, Tensor, Metrics]:
        """Actor and critic on dreams from these states (eqs. 6 to 8): two scalars, metrics.

        A dream's start has no part in it: rewards, values and discounts are of the H states after it, each reward
        of the state itself, and the last value is what returns bootstrap from.
        """
        nets, model = self.nets, self.model
        noise = draws.prior, draws.action
        rssm = frozen(model.dyn.params)
        dream = self.ops.imagine(
            rssm, nets.pol.params, start.deter, start.stoch, self.config.imag_length, *noise
        )
        feat = model.dyn.feat(dream.deter[:, 1:], dream.stoch[:, 1:])
        rew, val = model.rew.pred(model.rew(feat, fixed=True)), nets.val.pred(nets.val(feat, fixed=True))
        disc = model.discount(feat)
        ret = own_return(self.ops, rew, disc, val, self.config.lam)
        weight = start.alive[:, None] * alive_weight(disc)[:, :-1]
        actor = -(weight * ret).mean()
        value = (weight * nets.val.loss(nets.val(feat.detach())[:, :-1], ret)).mean()
        stats = {"rew": rew, "disc": disc, "val": val, "ret": ret, "weight": weight}
        metrics = {k: v.mean() for k, v in stats.items()}
        with torch.no_grad():
            policy = nets.pol(model.dyn.feat(start.deter, start.stoch))
            metrics["logpi"] = nets.pol.log_prob(policy, dream.action[:, 0]).mean()
        return actor, value, metrics
