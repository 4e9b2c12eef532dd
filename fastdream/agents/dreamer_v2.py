"""DreamerV2: mastering Atari with discrete world models (Hafner et al., ICLR 2021).

Read from `update` downwards, it is the paper: the world model learns first, then actor and critic in the dreams of
the model that has just learned. What can be told apart from the official code: schedules count updates, not steps of
the environment; and the target critic begins as a copy of the critic, not as a stranger for one update.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import Adam
from fastdream.agents.dreamer_v2_behavior import Behavior, Start
from fastdream.agents.dreamer_v2_config import SIZES, Config, loss_weights, size
from fastdream.agents.dreamer_v2_explore import Plan2Explore
from fastdream.agents.dreamer_v2_nets import Draws, Networks
from fastdream.nets import decode_action
from fastdream.openloop import open_loop
from fastdream.ops import Ops
from fastdream.spaces import Spaces
from fastdream.transfer import Inputs

__all__ = ["SIZES", "Config", "Draws", "DreamerV2", "size"]

Carry = dict[str, Tensor]
Metrics = dict[str, Tensor]


class DreamerV2:
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
        self.model_opt = Adam(dict(self.model.named_parameters()), config.model_opt)
        self.behavior = Behavior(self.ops, self.model, self.nets.task, self.task_reward, act_space, config)
        self.explore: Plan2Explore | None = None
        if config.explore.behavior == "plan2explore":
            self.explore = Plan2Explore(self.ops, self.nets, act_space, config, self.task_reward)
        self.updates = 0
        # Acting and learning draw from generators of their own, so that neither depends on how often the other
        # is called.
        self.generators = {
            name: torch.Generator(self.device).manual_seed(seed + offset)
            for offset, name in enumerate(("policy", "train", "report"), start=1)
        }

    @property
    def param_count(self) -> int:
        """Trained parameters, without target critics."""
        opts = self.model_opt, self.behavior.policy_opt, self.behavior.value_opt
        return sum(opt.param_count for opt in opts) + (self.explore.param_count if self.explore else 0)

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
        mode    "sample" draws from the policy, which may be the one that explores; "mode" takes the most likely
                class or the mean of the task's, as the official code does in evaluation.
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
        until = self.config.explore.until
        explores = self.explore is not None and not greedy and (not until or self.updates < until)
        behavior = "explore" if explores else "task"
        carry = self.nets.act(carry, obs, self.generators["policy"], greedy, behavior)
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
        draws = self.nets.draw(B, T, self.generators["train"])
        loss, post, metrics = self.model_loss(carry, batch, draws)
        loss.backward()
        metrics |= {f"opt/model_{k}": v for k, v in self.model_opt.step().items()}
        start = self.start(post, batch)
        metrics |= self.behavior.update(start, draws)
        if self.explore is not None:
            feat, action = self.model.feat(post.deter, post.stoch), self.nets.flat_action(batch)
            draws = self.nets.draw(B, T, self.generators["train"])
            metrics |= self.explore.update(feat, action, start, draws)
        self.updates += 1
        metrics["opt/loss"] = metrics["loss/model"] + metrics["loss/policy"] + metrics["loss/value"]
        return carry, {}, metrics

    def model_loss(
        self, carry: Carry, batch: Mapping[str, Tensor], draws: Draws
    ) -> tuple[Tensor, fd.Step, Metrics]:
        """Prediction losses and balanced KL (eqs. 2 and 3): scalar total, posterior states, metrics."""
        model, config = self.model, self.config
        params, action = model.dyn.params, self.nets.flat_action(batch)
        state = carry["deter"], carry["stoch"], action, model.enc(batch), batch["is_first"]
        post = self.ops.observe(params, *state, draws.post)
        prior = self.prior(post.deter)
        dyn, rep = model.latent.kl(post.logit, prior, config.kl.free, config.kl.clamp)
        losses = {"kl": config.kl.balance * dyn.mean() + (1 - config.kl.balance) * rep.mean()}
        feat = model.feat(post.deter, post.stoch)

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

    def report(
        self, carry: Carry, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Metrics of one batch without learning from it, and what the model would have predicted.

        Returns losses and the like, and for each observation key an open-loop prediction: see `openloop.open_loop`.
        """
        generator, model, (B, T) = self.generators["report"], self.model, batch["is_first"].shape
        with torch.no_grad():
            draws = self.nets.draw(B, T, generator)
            _, post, metrics = self.model_loss(carry, batch, draws)
            metrics |= self.behavior.loss(self.start(post, batch), draws)[1]
            action = self.nets.flat_action(batch)
            pictures = open_loop(self.ops, model.enc, model.dyn, model.dec, carry, batch, action, generator)
        return metrics, pictures

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: parameters, optimisers, generators."""
        return {
            "nets": self.nets.state_dict(),
            "model_opt": self.model_opt.state_dict(),
            "behavior": self.behavior.state_dict(),
            "explore": {} if self.explore is None else self.explore.state_dict(),
            "updates": self.updates,
            "generators": {k: g.get_state() for k, g in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an agent with the same spaces and configuration."""
        self.nets.load_state_dict(state["nets"])
        self.model_opt.load_state_dict(state["model_opt"])
        self.behavior.load_state_dict(state["behavior"])
        if self.explore is not None:
            self.explore.load_state_dict(state["explore"])
        self.updates = int(state["updates"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())
