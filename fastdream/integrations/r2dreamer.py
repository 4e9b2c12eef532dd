"""r2dreamer (github.com/NM512/r2dreamer, at 546e4fa) on fastdream's ops.

    git clone https://github.com/NM512/r2dreamer && cd r2dreamer
    python -m fastdream.integrations r2dreamer train.py env=dmc_proprio

Their script needs a GPU, as their environments pin memory; their agent by itself runs on a CPU too.

Replaced: the block GRU, the posterior's and the prior's step, imagination, the networks on features, the convolutions
of images (each pool with what precedes it; nearest-neighbour doubling and the convolution after it as one at the low
resolution), KL, two-hot loss and mean, lambda-returns, and LaProp. What is not theirs to the bit:

- Draws have their distributions, but come of other random numbers: one uniform number for each class with a gradient
  (Gumbel-softmax, whose estimator stays), one for each variable without (inverse CDF).
- Imagination leaves out the step that follows its last state, which nothing reads.
- Weights of block-diagonal layers keep their shape, but lie in memory with the blocks in front, so that no step has to
  move them. A checkpoint is the same to whoever reads it.
- On a CPU everything is float32, in which our ops compute there, also where they ask for float16.
- Elsewhere, under their autocast, products of matrices and what is made of them remain their own code: their rules of
  precision are torch's. Two-hot, KL, returns and LaProp, which are in float32 there too, are ours.

Nothing was measured on a GPU yet.
"""

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastdream.integrations.laprop import step as laprop_step
from fastdream.integrations.modules import layers_of
from fastdream.integrations.patching import (
    Function,
    Patch,
    Place,
    halved,
    instead,
    outside_autocast,
    table_of,
)
from fastdream.ops import RSSM, ActionHead, Actor, BlockGRU, Categorical, Layer, Layers
from fastdream.ops.reference.images import phase_taps, phase_weight

RELEASE = "r2dreamer at 546e4fa; git -C r2dreamer checkout 546e4fa brings it"
MODULES = "distributions", "dreamer", "networks", "optim.laprop", "rssm"

StraightThrough = Literal["gumbel", "probabilities"]


def install(straight_through: StraightThrough = "gumbel") -> Patch:
    """Replace functions of r2dreamer, whose folder must be on sys.path; best before an agent is made.

    straight_through  how gradients pass the draws of the posterior. "gumbel": as they do, through the softmax that the
                      hard Gumbel-softmax drew from. "probabilities": through the probabilities, as in the official
                      DreamerV3, in one op over all time steps; what is learned then is no longer what they learn.

    Raises ImportError where r2dreamer is not found, ValueError if it is another release or is replaced already.
    """
    if straight_through not in get_args(StraightThrough):
        known = " or ".join(map(repr, get_args(StraightThrough)))
        raise ValueError(f"straight_through={straight_through!r}; choose {known}")
    try:
        distributions, dreamer, networks, laprop, rssm = map(import_module, MODULES)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"r2dreamer is not found ({error}); run a script of its folder, or put that on sys.path, by a Python that "
            "has what it needs"
        ) from error
    observe = _observe if straight_through == "gumbel" else _observe_at_once
    ops = ("block_gru", "mlp", "gumbel_sample") if straight_through == "gumbel" else ("observe",)
    agent, model, twohot = dreamer.Dreamer, rssm.RSSM, distributions.TwoHot
    step = "self", "stoch", "deter", "prev_action", "embed", "reset"
    returns = "self", "last", "term", "reward", "value", "boot", "disc", "lamb"
    bins = "self", "logits", "bins", "squash", "unsquash"
    features, sequence = ("self", "stoch", "deter"), ("self", "embed", "action", "initial", "reset")
    kl, precision = (
        ("self", "post_logit", "prior_logit", "free"),
        ("device_type", "dtype", "enabled", "cache_enabled"),
    )
    places = [
        Place(dreamer, "autocast", precision, (), instead(_autocast), "float32 on a CPU"),
        Place(agent, "clone_and_freeze", ("self",), (), instead(_clone_and_freeze), "blocks in front"),
        Place(agent, "_imagine", ("self", "start", "imag_horizon"), ("imagine",), instead(_imagine)),
        Place(agent, "_lambda_return", returns, ("lambda_return",), instead(_lambda_return)),
        Place(rssm.Deter, "forward", (*features, "action"), ("block_gru",), outside_autocast(_deter)),
        Place(model, "obs_step", step, ("block_gru", "mlp", "gumbel_sample"), outside_autocast(_obs_step)),
        Place(model, "observe", sequence, ops, outside_autocast(observe)),
        Place(model, "prior", ("self", "deter"), ("mlp", "gumbel_sample"), outside_autocast(_prior)),
        Place(model, "kl_loss", kl, ("categorical_kl",), instead(_kl_loss)),
        Place(networks.MLP, "forward", ("self", "x"), ("mlp",), outside_autocast(_mlp)),
        Place(networks.MLPHead, "forward", ("self", "x"), ("mlp",), outside_autocast(_head)),
        Place(networks.ConvEncoder, "forward", ("self", "obs"), ("conv_pool",), outside_autocast(_encode)),
        Place(networks.ConvDecoder, "forward", features, ("mlp", "conv_spread"), outside_autocast(_decode)),
        Place(twohot, "__init__", bins, (), instead(_twohot), "no probabilities"),
        Place(twohot, "mode", ("self",), ("twohot_mean",), instead(_mode)),
        Place(twohot, "log_prob", ("self", "target"), ("twohot_loss",), instead(_log_prob)),
        Place(laprop.LaProp, "step", ("self",), ("laprop_",), instead(laprop_step)),
    ]
    return Patch("r2dreamer", RELEASE, places)


def _autocast(old: Function, device_type: str, *args: Any, **kwargs: Any) -> Any:
    return nullcontext() if device_type == "cpu" else old(device_type, *args, **kwargs)


def _clone_and_freeze(old: Function, self: Any) -> None:
    """Weights of blocks [out, in, blocks] lie as [blocks, in, out] before the frozen copies come to share them."""
    for module in self.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 3:
            weight.data = weight.data.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    old(self)


def _weight(module: Any) -> Tensor:
    """The weight as ops take it: of blocks a view, or a copy where the agent was made before."""
    weight: Tensor = module.weight
    return weight.permute(2, 1, 0).contiguous() if weight.dim() == 3 else weight


def _net(net: Any) -> Layers:
    return layers_of(net, _weight, others=("LambdaLayer",))


def _core(net: Any) -> BlockGRU:
    deter, stoch, action = (_net(part)[0] for part in (net._dyn_in0, net._dyn_in1, net._dyn_in2))
    return BlockGRU(deter, stoch, action, _net(net._dyn_hid), *_net([net._dyn_gru]))


def _model(net: Any) -> RSSM:
    latent = Categorical(net._stoch, net._discrete, net._unimix_ratio)
    return RSSM(_core(net._deter_net), latent, _net(net._img_net), _net(net._obs_net))


def _deter(self: Any, stoch: Tensor, deter: Tensor, action: Tensor) -> Tensor:
    return table_of(deter.device).block_gru(_core(self), deter, stoch.flatten(1), action)


def _drawn(net: Any, logit: Tensor) -> tuple[Tensor, Tensor]:
    """A state [..., S, K] of flat logits, and the logits with that shape."""
    logit = logit.unflatten(-1, (net._stoch, net._discrete))
    ops = table_of(logit.device)
    return ops.gumbel_sample(logit, torch.rand_like(logit), net._unimix_ratio)[0], logit


def _obs_step(
    self: Any, stoch: Tensor, deter: Tensor, prev_action: Tensor, embed: Tensor, reset: Tensor
) -> Any:
    return _posterior(self, _model(self), stoch, deter, prev_action, embed, reset.reshape(-1, 1))


def _posterior(
    net: Any, model: RSSM, stoch: Tensor, deter: Tensor, action: Tensor, embed: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    ops = table_of(deter.device)
    stoch, deter, action = (x.masked_fill(reset, 0) for x in (stoch.flatten(1), deter, action))
    deter = ops.block_gru(model.core, deter, stoch, action)
    stoch, logit = _drawn(net, ops.mlp(torch.cat([deter, embed], -1), model.post))
    return stoch, deter, logit


def _observe(self: Any, embed: Tensor, action: Tensor, initial: Any, reset: Tensor) -> Any:
    stoch, deter = initial
    model, steps = _model(self), []
    resets = reset.reshape(*action.shape[:2], 1)
    for inputs in zip(action.unbind(1), embed.unbind(1), resets.unbind(1), strict=True):
        steps.append(_posterior(self, model, stoch, deter, *inputs))
        stoch, deter, _ = steps[-1]
    return tuple(torch.stack(parts, 1) for parts in zip(*steps, strict=True))


def _observe_at_once(self: Any, embed: Tensor, action: Tensor, initial: Any, reset: Tensor) -> Any:
    stoch, deter = initial
    noise = deter.new_empty(*action.shape[:2], self._stoch).uniform_()
    reset = reset.reshape(action.shape[:2])
    step = table_of(deter.device).observe(_model(self), deter, stoch, action, embed, reset, noise)
    return step.stoch, step.deter, step.logit


def _prior(self: Any, deter: Tensor) -> Any:
    return _drawn(self, table_of(deter.device).mlp(deter, _net(self._img_net)))


def _kl_loss(old: Function, self: Any, post_logit: Tensor, prior_logit: Tensor, free: float) -> Any:
    return table_of(post_logit.device).categorical_kl(post_logit, prior_logit, 0.0, free)


@torch.no_grad()
def _imagine(old: Function, self: Any, start: Any, imag_horizon: int) -> Any:
    stoch, deter = start
    actor = _actor(self._frozen_actor, deter.shape[-1])
    if actor is None or halved(deter):
        return old(self, start, imag_horizon)
    net, rows, length = self._frozen_rssm, len(deter), imag_horizon - 1
    noise = deter.new_empty(rows, length, net._stoch).uniform_()
    action_noise = deter.new_empty(rows, imag_horizon, sum(head.elements for head in actor.heads))
    action_noise = action_noise.uniform_() if actor.heads[0].classes else action_noise.normal_()
    dream = table_of(deter.device).imagine(_model(net), actor, deter, stoch, length, noise, action_noise)
    return torch.cat([dream.stoch.flatten(-2), dream.deter], -1), dream.action


def _actor(net: Any, deter: int) -> Actor | None:
    """Their actor on [stoch, deter] as an op's on [deter, stoch]; None for one that no op has."""
    settings, out = net._dist.keywords, net.last
    if net.mlp._symlog_inputs or net._dist_name not in ("bounded_normal", "onehot", "multi_onehot"):
        return None
    if net._dist_name == "bounded_normal":
        halves = zip(out.weight.chunk(2), out.bias.chunk(2), strict=True)
        outs = tuple(Layer(*half) for half in halves)
        heads = [ActionHead("bounded_normal", len(out.weight) // 2, 0, outs, **settings)]
    else:
        sizes = settings.get("shape", (len(out.weight),))
        parts = zip(sizes, out.weight.split(sizes), out.bias.split(sizes), strict=True)
        mixing = settings["unimix_ratio"]
        heads = [ActionHead("categorical", 1, size, (Layer(*part),), mixing) for size, *part in parts]
    first, *others = _net(net.mlp.layers)
    turned = first._replace(weight=first.weight.roll(deter, 1))
    return Actor((turned, *others), tuple(heads))


@torch.no_grad()
def _lambda_return(
    old: Function,
    self: Any,
    last: Tensor,
    term: Tensor,
    reward: Tensor,
    value: Tensor,
    boot: Tensor,
    disc: float,
    lamb: float,
) -> Tensor:
    live, mix = (1 - term.float()) * disc, (1 - last.float()) * lamb
    parts = (x[:, 1:].squeeze(-1).float() for x in (reward, live, mix, boot))
    return table_of(reward.device).lambda_return(*parts).unsqueeze(-1)


def _mlp(self: Any, x: Tensor) -> Tensor:
    return _through(self, x, ())


def _head(self: Any, x: Tensor) -> Any:
    return self._dist(_through(self.mlp, x, _net([self.last])))


def _through(net: Any, x: Tensor, last: Layers) -> Tensor:
    ops = table_of(x.device)
    return ops.mlp(ops.symlog(x) if net._symlog_inputs else x, (*_net(net.layers), *last))


@cache
def _taps(kernel: int, device: torch.device) -> Tensor:
    return phase_taps(kernel).to(device)


def _images(net: Any) -> Layers:
    """The convolutions of a net, whose changes of resolution are known."""
    return layers_of(net.layers, others=("MaxPool2d", "Upsample"))


def _encode(self: Any, obs: Tensor) -> Tensor:
    x = (obs - 0.5).reshape(-1, *obs.shape[-3:])
    for layer in _images(self):
        x = table_of(x.device).conv_pool(x, *layer)
    return x.permute(0, 3, 1, 2).reshape(*obs.shape[:-3], -1)


def _decode(self: Any, stoch: Tensor, deter: Tensor) -> Tensor:
    ops, lead, seed = table_of(deter.device), deter.shape[:-1], self.min_shape
    x0 = self.sp0(deter.flatten(0, -2)).unflatten(-1, (self.bspace, *seed[:2], -1))
    x1 = ops.mlp(stoch.reshape(len(x0), -1), _net([*self.sp1, self.sp2]))
    x = self.sp_norm(x0.permute(0, 2, 3, 1, 4).reshape(-1, *seed) + x1.view(-1, *seed))
    for weight, *others in _images(self):
        weight = phase_weight(weight, _taps(weight.shape[-1], x.device))
        x = ops.conv_spread(x, weight, *others)
    return torch.sigmoid(x).unflatten(0, lead)


def _twohot(old: Function, self: Any, logits: Tensor, bins: Tensor, *args: Any, **kwargs: Any) -> None:
    if args or kwargs:
        old(self, logits, bins, *args, **kwargs)
    else:
        # Without all probabilities, which the ops do without.
        self.logits, self.bins, self.squash = logits.float(), bins, None


def _mode(old: Function, self: Any) -> Tensor:
    if self.squash is not None:
        return old(self)
    return table_of(self.logits.device).twohot_mean(self.logits, self.bins).unsqueeze(-1)


def _log_prob(old: Function, self: Any, target: Tensor) -> Tensor:
    if self.squash is not None:
        return old(self, target)
    return -table_of(self.logits.device).twohot_loss(self.logits, target.squeeze(-1), self.bins)
