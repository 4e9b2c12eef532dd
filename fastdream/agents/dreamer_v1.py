"""DreamerV1: dream to control, learning behaviors by latent imagination (Hafner et al., ICLR 2020).

Read from `update` downwards, it is the paper: the actor climbs the gradient of imagined returns, which flows through
rewards, values, dynamics and actions, all three losses come from one forward pass, and each has its own optimiser.
What can be told apart from the official code: updates are spread evenly over steps, and discrete actions learn by
straight-through gradients, as in its TensorFlow 2 form.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import Adam
from fastdream.agents.dreamer_v1_config import SIZES, Config, loss_weights, size
from fastdream.agents.dreamer_v1_nets import Draws, Networks
from fastdream.annealing import Annealed
from fastdream.behavior import alive_weight, own_return
from fastdream.nets import decode_action, frozen
from fastdream.openloop import open_loop
from fastdream.ops import Ops
from fastdream.spaces import Spaces
from fastdream.transfer import Inputs

__all__ = ["SIZES", "Config", "Draws", "DreamerV1", "size"]

Carry = dict[str, Tensor]
Metrics = dict[str, Tensor]


class DreamerV1:
    """A world model, and an actor and a critic that learn in its dreams.

    obs_space, act_space   what the environment shows and takes, without reward and flags.
    config    `Config()`, through `size` where wanted.
    ops       table of kernels; None loads the best for the device.
    seed      of the initial parameters and of all later draws.
    """

    replay_context = 0  # no state is kept in replay: every sequence starts from nothing

    capturable = False  # as a CUDA graph: see fastdream.graphs

    def __init__(
        self,
        obs_space: Spaces,
        act_space: Spaces,
        config: Config,
        ops: Ops | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device = torch.device(device)
        auto = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.dtype: torch.dtype = auto if config.dtype == "auto" else getattr(torch, config.dtype)
        self.ops = fd.load(device=self.device) if ops is None else ops
        self.inputs = Inputs(self.device)
        self.scales = loss_weights(config, obs_space)
        self.nets = Networks(obs_space, act_space, config, self.ops, self.dtype, seed).to(self.device)
        self.model = self.nets.model
        self.expl = Annealed(config.expl)
        parts = {"model": self.model, "policy": self.nets.pol, "value": self.nets.val}
        settings = {"model": config.model_opt, "policy": config.policy_opt, "value": config.value_opt}
        self.opts = {k: Adam(dict(part.named_parameters()), settings[k]) for k, part in parts.items()}
        # Acting and learning draw from generators of their own, so that neither depends on how often the other
        # is called.
        self.generators = {
            name: torch.Generator(self.device).manual_seed(seed + offset)
            for offset, name in enumerate(("policy", "train", "report"), start=1)
        }

    @property
    def param_count(self) -> int:
        """Trained parameters."""
        return sum(opt.param_count for opt in self.opts.values())

    @property
    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """What `policy` and `update` give replay to keep: nothing."""
        return {}

    def init_policy(self, n: int) -> Carry:
        """State before the first observation of n environments."""
        carry = self.init_train(n)
        return carry | {"action": carry["deter"].new_zeros(n, self.nets.action_width)}

    def policy(
        self, carry: Carry, obs: Mapping[str, np.ndarray], mode: str = "sample"
    ) -> tuple[Carry, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Choose actions for n environments.

        obs     observation keys and is_first, [n, ...].
        mode    "sample" draws from the policy and explores; "mode" takes the most likely of some draws, as the
                official code does in evaluation.
        Returns the next carry, actions [n, ...] by key, and nothing for replay.
        """
        if mode not in ("sample", "mode"):
            raise ValueError(f"mode={mode!r} is unknown; use 'sample' or 'mode'")
        inputs = self.inputs({k: obs[k] for k in (*self.obs_space, "is_first")})
        carry, made = self.act(carry, inputs, greedy=mode == "mode")
        (host,) = self.inputs.back(made)
        return carry, decode_action(self.act_space, host["action"]), {}

    def act(
        self, carry: Carry, obs: Mapping[str, Tensor], greedy: bool = False
    ) -> tuple[Carry, dict[str, Tensor]]:
        """`policy` on the device: the next carry; and the flat action, for the host."""
        explore = self.config.expl_eval if greedy else self.expl(self.opts["model"].count)
        carry = self.nets.act(carry, obs, self.generators["policy"], greedy, explore)
        return carry, {"action": carry["action"].float()}

    def init_train(self, b: int) -> Carry:
        """State before training sequences, which always start from it."""
        deter, stoch = self.model.dyn.initial(b, device=self.device, dtype=self.dtype)
        return {"deter": deter, "stoch": stoch}

    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step of every optimiser on sequences [B, T, ...] in replay's time convention.

        Returns the carry as it came, nothing for replay, and metrics (0-d tensors).
        """
        B, T = batch["is_first"].shape
        loss, metrics = self.loss(carry, batch, self.nets.draw(B, T, self.generators["train"]))
        loss.backward()
        for name, opt in self.opts.items():
            metrics |= {f"opt/{name}_{k}": v for k, v in opt.step().items()}
        return carry, {}, metrics

    def loss(self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws) -> tuple[Tensor, Metrics]:
        """The sum of all losses, each of which reaches its own networks alone; metrics."""
        model, post, metrics = self.model_loss(carry, batch, draws)
        count = self.nets.starts(post.deter.shape[1])
        deter, stoch = (x.detach()[:, :count].flatten(0, 1) for x in (post.deter, post.stoch))
        actor, value, imagined = self.behavior_loss(deter, stoch, draws)
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
        state = carry["deter"], carry["stoch"], self.nets.flat_action(batch), model.enc(batch), reset
        post = self.ops.observe(params, *state, draws.post)
        prior = self.ops.prior(params, post.deter)
        dyn, rep = model.latent.kl(post.logit, prior, self.config.free_nats, "mean")
        # Both are the KL; together they have its gradient with respect to both distributions.
        losses = {"kl": dyn + rep - rep.detach()}
        feat = model.feat(post.deter, post.stoch)
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

    def behavior_loss(self, deter: Tensor, stoch: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Metrics]:
        """Actor and critic on dreams from states deter [N, D] and stoch [N, S] (eqs. 6 to 8): two scalars, metrics.

        A dream's start has no part in it: rewards, values and discounts are of the H states after it, each reward
        of the state itself, and the last value is what returns bootstrap from.
        """
        nets, model = self.nets, self.model
        noise = draws.prior, draws.action
        rssm = frozen(model.dyn.params)
        dream = self.ops.imagine(rssm, nets.pol.params, deter, stoch, self.config.imag_length, *noise)
        feat = model.feat(dream.deter[:, 1:], dream.stoch[:, 1:])
        rew, val = model.rew.pred(model.rew(feat, fixed=True)), nets.val.pred(nets.val(feat, fixed=True))
        disc = model.discount(feat)
        ret = own_return(self.ops, rew, disc, val, self.config.lam)
        weight = alive_weight(disc)[:, :-1]
        actor = -(weight * ret).mean()
        value = (weight * nets.val.loss(nets.val(feat.detach())[:, :-1], ret)).mean()
        stats = {"rew": rew, "disc": disc, "val": val, "ret": ret, "weight": weight}
        metrics = {k: v.mean() for k, v in stats.items()}
        with torch.no_grad():
            start = nets.pol(model.feat(deter, stoch))
            metrics["logpi"] = nets.pol.log_prob(start, dream.action[:, 0]).mean()
        return actor, value, metrics

    def report(
        self, carry: Carry, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Metrics of one batch without learning from it, and what the model would have predicted.

        Returns losses and the like, and for each observation key an open-loop prediction: see `openloop.open_loop`.
        """
        generator, model, (B, T) = self.generators["report"], self.model, batch["is_first"].shape
        with torch.no_grad():
            _, metrics = self.loss(carry, batch, self.nets.draw(B, T, generator))
            action = self.nets.flat_action(batch)
            pictures = open_loop(self.ops, model.enc, model.dyn, model.dec, carry, batch, action, generator)
        return metrics, pictures

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: parameters, optimisers, generators."""
        return {
            "nets": self.nets.state_dict(),
            "opts": {k: opt.state_dict() for k, opt in self.opts.items()},
            "generators": {k: g.get_state() for k, g in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an agent with the same spaces and configuration."""
        self.nets.load_state_dict(state["nets"])
        for name, opt in self.opts.items():
            opt.load_state_dict(state["opts"][name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())
