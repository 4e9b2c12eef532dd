"""What updates of our DreamerV2 compute on their way, held against the official ones."""

from typing import Any

from torch import Tensor

from fastdream import ops as fd
from fastdream.agents.dreamer_v2 import Draws
from fastdream.behavior import alive_weight, own_return

from .golden_dreamer_v2 import Official
from .golden_tools import LOOSE, assert_close
from .watched import Call, watch

# Our metrics and theirs; the second behaviour's have a prefix each.
METRICS = {
    "loss/kl": "kl_loss",
    "loss/rew": "reward_loss",
    "loss/dis": "discount_loss",
    "loss/model": "model_loss",
    "dyn_ent": "prior_ent",
    "rep_ent": "post_ent",
    "opt/model_grad_norm": "model_grad_norm",
    "loss/ensemble": "expl_expl_loss",
    "opt/ensemble_grad_norm": "expl_expl_grad_norm",
}
BEHAVIOR_METRICS = {
    "loss/{}policy": "actor_loss",
    "loss/{}value": "critic_loss",
    "opt/{}policy_grad_norm": "actor_grad_norm",
    "opt/{}value_grad_norm": "critic_grad_norm",
    "{}rew": "reward_mean",
    "{}rew_std": "reward_std",
    "{}ret": "critic_target",
    "{}slowval": "critic_slow",
    "{}val": "critic",
    "ent/{}action": "actor_ent",
    "{}actent": "actor_ent_scale",
    "{}actor_mix": "actor_grad_mix",
}


class Update:
    """Updates of our agent by the official draws; keeps what the last one computed on its way."""

    def __init__(self, official: Official) -> None:
        self.official, agent = official, official.agent
        self.draws: list[Draws] = []
        self.grads: dict[str, Tensor] = {}
        agent.nets.draw = lambda *_: self.draws.pop(0)
        self.calls = watch(agent, "model_loss", "prior") | watch(agent.model.enc, "forward")
        self.dreams: list[list[Call]] = []  # of each behaviour
        self.watch(agent.model_opt, "model.")
        behaviors = {"task": agent.behavior}
        if agent.explore:
            self.watch(agent.explore.opt, "ensemble.")
            behaviors["explore"] = agent.explore.behavior
        for name, behavior in behaviors.items():
            self.dreams.append(watch(behavior, "imagine")["imagine"])
            self.watch(behavior.policy_opt, f"{name}.pol.")
            self.watch(behavior.value_opt, f"{name}.val.")

    def watch(self, opt: Any, prefix: str) -> None:
        """Keep gradients before they are clipped."""
        step = opt.step

        def keep_and_step() -> Any:
            named = self.official.agent.nets.named_parameters()
            self.grads |= {k: p.grad.clone() for k, p in named if k.startswith(prefix)}
            return step()

        opt.step = keep_and_step

    def __call__(self, step: str) -> dict[str, Tensor]:
        """Metrics, after the update."""
        official, agent = self.official, self.official.agent
        for kept in (*self.calls.values(), *self.dreams, self.grads):
            kept.clear()
        self.draws = [official.draws(step, dream) for dream in official.dreams]
        batch = official.batch()
        _, _, metrics = agent.update(agent.init_train(len(batch["is_first"])), batch)
        assert not self.draws
        return metrics


def state(official: Official, deter: Tensor, stoch: Tensor | None, logit: Tensor) -> dict[str, Tensor]:
    """States as the official code names their parts."""
    latent, parts = official.agent.model.latent, {"deter": deter}
    parts |= {} if stoch is None else {"stoch": stoch}
    if official.config["rssm.discrete"]:
        return parts | {"logit": logit}
    return parts | dict(zip(("mean", "std"), latent.stats(logit), strict=True))


def dreamt(official: Official, dream: fd.Dream, rew: Tensor, disc: Tensor, slow: Tensor) -> dict[str, Tensor]:
    """A dream and what follows from it, [H+1, N, ...]; logits and actions begin at the first imagined state."""
    ret = own_return(official.agent.ops, rew, disc, slow, official.agent.config.lam)
    parts = state(official, dream.deter, dream.stoch, dream.logit) | {"action": dream.action[:, :-1]}
    parts |= {"reward": rew, "discount": disc, "weight": alive_weight(disc), "target": ret}
    return {k: v.transpose(0, 1) for k, v in parts.items()}


def check_states(official: Official, update: Update, step: str) -> None:
    golden = official.golden
    embed, (_, post, _), prior = (update.calls[name][0].result for name in ("forward", "model_loss", "prior"))
    assert_close({"embed": official.as_theirs(embed)}, {"embed": golden[f"{step}/embed"]}, LOOSE)
    assert_close(state(official, post.deter, post.stoch, post.logit), golden.under(f"{step}/post"), LOOSE)
    theirs = {k: v for k, v in golden.under(f"{step}/prior").items() if k != "stoch"}
    assert_close(state(official, post.deter, None, prior), theirs, LOOSE)


def check_dream(official: Official, update: Update, index: int, step: str) -> None:
    dream, _, rew, disc, slow = update.dreams[index][0].result
    theirs = {
        k: v for k, v in official.golden.under(f"{step}/{official.dreams[index]}").items() if "/" not in k
    }
    for key in {"logit", "mean", "std", "action"} & theirs.keys():
        theirs[key] = theirs[key][1:]
    assert_close(dreamt(official, dream, rew, disc, slow), theirs, LOOSE)


def check_metrics(official: Official, metrics: dict[str, Tensor], step: str) -> None:
    pairs = (
        METRICS
        | {k: f"{k}_loss" for k in official.agent.obs_space}
        | {
            ours.format(prefix): their_prefix + theirs
            for prefix, their_prefix in (("", ""), ("explore_", "expl_"))
            for ours, theirs in BEHAVIOR_METRICS.items()
        }
    )
    pairs = {f"loss/{k}" if k in official.agent.obs_space else k: v for k, v in pairs.items()}
    theirs = official.golden.under(f"{step}/metrics")
    assert_close(
        {theirs_name: metrics[k] for k, theirs_name in pairs.items() if k in metrics},
        {k: v for k, v in theirs.items() if k in pairs.values()},
        LOOSE,
    )


def check_gradients(official: Official, grads: dict[str, Tensor], step: str) -> None:
    """Norms, and whole gradients where the file has them. One that is rounding noise beside the others may be any."""
    theirs = official.golden.under(f"{step}/grad_norm")
    norms = {official.name(path.partition("/")[2]): norm for path, norm in theirs.items()}
    assert norms.keys() == grads.keys()
    floor = 1e-4 * max(float(norm) for norm in norms.values())
    assert_close({k: v.norm() for k, v in grads.items()}, norms, LOOSE, floor)
    whole = {}
    for part in {path.partition("/")[0] for path in official.golden.under(f"{step}/grad")}:
        whole |= official.values(f"{step}/grad/{part}")
    if whole:
        assert_close(grads, {k: v.numpy() for k, v in whole.items()}, LOOSE, floor)


def check_parameters(official: Official) -> None:
    """After the last update."""
    lr = official.config["model_opt.lr"]
    parameters, after = dict(official.agent.nets.named_parameters()), official.values("param_after")
    assert parameters.keys() == after.keys()
    for name, value in after.items():
        # The first steps move every entry by about lr, whatever its gradient: one that is rounding noise may differ.
        distance = (parameters[name] - value).abs()
        assert distance.max() <= 0.1 * lr and distance.mean() <= 1e-3 * lr, name
