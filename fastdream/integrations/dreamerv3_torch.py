"""dreamerv3-torch (github.com/NM512/dreamerv3-torch, at 6ef8646) on fastdream's ops.

    git clone https://github.com/NM512/dreamerv3-torch && cd dreamerv3-torch
    python -m fastdream.integrations dreamerv3_torch dreamer.py --configs dmc_proprio --task dmc_walker_walk \\
        --logdir ~/logdir

Replaced: the posterior's scan, with the priors of all time steps computed and drawn after it; the prior's step; loops
of imagination; KL; two-hot loss and mean. What is not theirs to the bit:

- Draws have their distributions and their straight-through gradients, but come of other random numbers: one uniform
  number for each variable, whose class the inverse CDF gives.
- The batch's actions stay as they are where an episode begins; theirs are set to 0 in place.
- Imagination leaves out the step that follows its last state, which nothing reads.
- A scan goes from one time at which an episode of the batch begins to the next. The flags are read on the host, once
  for a sequence; theirs are at every step.
- Half precision (`--precision 16`, under autocast) remains their own code, and so do Gaussian latents, `norm: False`
  and more than one recurrent layer.

Nothing was measured on a GPU yet.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastdream.integrations import resets
from fastdream.integrations.modules import layers_of
from fastdream.integrations.patching import Function, Patch, Place, halved, instead, table_of
from fastdream.ops import RSSM, Categorical, LayerNormGRU

RELEASE = "dreamerv3-torch at 6ef8646; git -C dreamerv3-torch checkout 6ef8646 brings it"
MODULES = "models", "networks", "tools"

State = dict[str, Tensor]


def install() -> Patch:
    """Replace functions of dreamerv3-torch, whose folder must be on sys.path; before or after an agent is made.

    Raises ImportError where it is not found, ValueError if it is another release or is replaced already.
    """
    try:
        models, networks, tools = map(import_module, MODULES)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"dreamerv3-torch is not found ({error}); run a script of its folder, or put that on sys.path, by a Python "
            "that has what it needs"
        ) from error
    rssm, twohot = networks.RSSM, tools.DiscDist
    kl = "self", "post", "prior", "free", "dyn_scale", "rep_scale"
    scan = "observe", "prior", "categorical_sample"
    step, dream = ("self", "prev_state", "prev_action", "sample"), ("self", "start", "policy", "horizon")
    observe, given = ("self", "embed", "action", "is_first", "state"), ("self", "action", "state")
    places = [
        Place(rssm, "observe", observe, scan, instead(_observe)),
        Place(rssm, "img_step", step, ("imagine_step",), instead(_img_step)),
        Place(rssm, "imagine_with_action", given, ("rollout",), instead(_imagine_with_action)),
        Place(rssm, "kl_loss", kl, ("categorical_kl",), instead(_kl_loss)),
        Place(models.ImagBehavior, "_imagine", dream, (), instead(_imagine), "its loop"),
        Place(twohot, "mean", ("self",), ("twohot_mean",), instead(_mean)),
        Place(twohot, "mode", ("self",), ("twohot_mean",), instead(_mean)),
        Place(twohot, "log_prob", ("self", "x"), ("twohot_loss",), instead(_log_prob)),
    ]
    return Patch("dreamerv3-torch", RELEASE, places)


def model_of(net: Any) -> RSSM:
    """Parameters of all their networks of states, which have our order of inputs and gates."""
    (inputs,), (gates,) = layers_of(net._img_in_layers), layers_of(net._cell.layers)
    latent = Categorical(net._stoch, net._discrete, net._unimix_ratio)
    prior = layers_of([*net._img_out_layers, net._imgs_stat_layer])
    return RSSM(
        LayerNormGRU(inputs, gates), latent, prior, layers_of([*net._obs_out_layers, net._obs_stat_layer])
    )


def _ours(net: Any, x: Tensor) -> bool:
    cell = net._cell
    known = net._discrete and net._rec_depth == 1 and len(cell.layers) == 2
    standard = cell._act is torch.tanh and cell._update_bias == -1
    return bool(known and standard) and not (halved(x) or torch.compiler.is_compiling())


def _observe(
    old: Function, self: Any, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None
) -> tuple[State, State]:
    if not _ours(self, embed):
        return old(self, embed, action, is_first, state)
    model, new = model_of(self), self.initial(len(embed))
    start = new if state is None else state
    if state is None:
        is_first = torch.cat([torch.ones_like(is_first[:, :1]), is_first[:, 1:]], 1)
    noise = embed.new_empty(2, *embed.shape[:2], self._stoch).uniform_()
    inputs = action, embed, is_first, noise[0], (new["deter"], new["stoch"])
    post = resets.observe(model, start["deter"], start["stoch"], *inputs)
    ops = table_of(embed.device)
    logit = ops.prior(model, post.deter)
    drawn, _ = ops.categorical_sample(logit, noise[1], self._unimix_ratio)
    return _state(post), {"stoch": drawn, "deter": post.deter, "logit": logit}


def _state(step: Any) -> State:
    return {"stoch": step.stoch, "deter": step.deter, "logit": step.logit}


def _img_step(old: Function, self: Any, prev_state: State, prev_action: Tensor, sample: bool = True) -> State:
    deter, stoch = prev_state["deter"], prev_state["stoch"]
    if not sample or deter.dim() != 2 or not _ours(self, deter):
        return old(self, prev_state, prev_action, sample)
    noise = deter.new_empty(len(deter), self._stoch).uniform_()
    # A view of the batch's actions, which their own step of the posterior changes in place.
    action = prev_action.clone()
    return _state(table_of(deter.device).imagine_step(model_of(self), deter, stoch, action, noise))


def _imagine_with_action(old: Function, self: Any, action: Tensor, state: State) -> State:
    if not _ours(self, action):
        return old(self, action, state)
    noise = action.new_empty(*action.shape[:2], self._stoch).uniform_()
    start = state["deter"], state["stoch"]
    return _state(table_of(action.device).rollout(model_of(self), *start, action, noise))


def _imagine(old: Function, self: Any, start: State, policy: Callable[[Tensor], Any], horizon: int) -> Any:
    net = self._world_model.dynamics
    if not _ours(net, start["deter"]):
        return old(self, start, policy, horizon)
    states, feats, actions = [{key: x.flatten(0, 1) for key, x in start.items()}], [], []
    for time in range(horizon):
        feats.append(net.get_feat(states[-1]))
        actions.append(policy(feats[-1].detach()).sample())
        if time < horizon - 1:
            states.append(net.img_step(states[-1], actions[-1]))
    together = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    return torch.stack(feats), together, torch.stack(actions)


def _kl_loss(
    old: Function, self: Any, post: State, prior: State, free: float, dyn_scale: float, rep_scale: float
) -> Any:
    if not self._discrete or halved(post["logit"]):
        return old(self, post, prior, free, dyn_scale, rep_scale)
    logits, ops = (post["logit"], prior["logit"]), table_of(post["logit"].device)
    dyn, value = ops.categorical_kl(*logits, self._unimix_ratio, clamp="none")
    dyn, rep = dyn.clamp(min=free), value.clamp(min=free)
    return dyn_scale * dyn + rep_scale * rep, value, dyn, rep


def _plain(dist: Any) -> bool:
    """Whether the distribution is over bins in symlog space, which are in the logits' precision, a full one."""
    maps, precision = (dist.transfwd.__name__, dist.transbwd.__name__), dist.logits.dtype
    alike = precision == dist.buckets.dtype and precision in (torch.float32, torch.float64)
    return maps == ("symlog", "symexp") and alike


def _mean(old: Function, self: Any) -> Tensor:
    if not _plain(self):
        return old(self)
    return table_of(self.logits.device).twohot_mean(self.logits, self.buckets, "symlog").unsqueeze(-1)


def _log_prob(old: Function, self: Any, x: Tensor) -> Tensor:
    if x.requires_grad or not _plain(self):
        return old(self, x)
    return -table_of(x.device).twohot_loss(self.logits, x.squeeze(-1), self.buckets, "symlog")
