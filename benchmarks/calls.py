"""One call of every op at the shapes of a preset: what it is called with, and what it must at least compute.

A name is that of an op, or `op:where` for a second place at which the op is called with other shapes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.ops import RSSM, Layer, Layers

from . import floors
from .image_calls import conv_pool, conv_spread, image_loss
from .inputs import Call, Source
from .loss_calls import (
    bounded_normal,
    critic_loss,
    join_inputs,
    latent_entropy,
    percentiles,
    reinforce,
    summarize,
    vector_losses,
)
from .memory_calls import lstm_mdn_dream, lstm_mdn_step, lstm_scan
from .shapes import EARLIER, PRESETS, Shape, model, networks


def leaves(call: Call) -> list[Tensor]:
    """What a call is differentiated in."""
    return [x for x in floors.tensors(call.args) if x.requires_grad]


def forward(function: Callable[..., Any], call: Call) -> Any:
    with torch.no_grad():
        return function(*call.args, **call.kwargs)


def forward_backward(
    function: Callable[..., Any], call: Call, inputs: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs, given those of all outputs that have any."""
    outputs = [x for x in floors.tensors(function(*call.args, **call.kwargs)) if x.requires_grad]
    return torch.autograd.grad(outputs, inputs, grads, allow_unused=True)


def _only(rssm: RSSM, *used: str) -> RSSM:
    """The parts of a model that an op reads, so that no others count as traffic."""
    return rssm._replace(**{part: () for part in ("core", "prior", "post") if part not in used})


def norm_act(s: Shape) -> Call:
    """The hidden layer of the core, for a whole batch."""
    return Call((Source().normal(s.starts, s.deter), torch.ones(s.deter).requires_grad_(), None))


def mlp(s: Shape, rows: int = 0) -> Call:
    """The critic with its output, on imagined states or on fewer."""
    r, layers = Source(), networks(s.name).val.layers
    rows = rows or s.starts * (s.horizon + 1)
    return Call((r.normal(rows, s.feat, grad=False), layers), 2 * rows * floors.macs(layers))


def mlps(s: Shape) -> Call:
    """Actor and critic with what they learn from, on imagined states, whose features are one tensor here."""
    r, nets = Source(), networks(s.name)
    fixed = tuple(_fixed(head.layers) for head in (nets.rew, nets.con, nets.slowval))
    heads = nets.pol.layers, nets.val.layers, *fixed
    rows = s.starts * (s.horizon + 1)
    return Call((r.normal(rows, s.feat, grad=False), heads), 2 * rows * floors.macs(*heads))


def _fixed(layers: Layers) -> Layers:
    """The same layers without gradient."""
    return tuple(Layer(*(p if p is None else p.detach() for p in layer[:4]), *layer[4:]) for layer in layers)


def core(s: Shape) -> Call:
    """One step of whichever recurrent core the shape has."""
    r, params = Source(), model(s.name)[0].core
    deter, stoch = r.state(s, s.batch)
    flat = stoch.detach().flatten(1).requires_grad_()
    args = params, deter, flat, r.normal(s.batch, s.action)
    return Call(args, 2 * s.batch * floors.macs(params))


def categorical_sample(s: Shape) -> Call:
    r, dims = Source(), (s.batch, s.length, s.stoch)
    return Call((r.normal(*dims, s.classes), r.uniform(*dims), 0.01))


def gumbel_sample(s: Shape) -> Call:
    r, dims = Source(), (s.batch, s.length, s.stoch, s.classes)
    return Call((r.normal(*dims), r.uniform(*dims), 0.01))


def categorical_kl(s: Shape) -> Call:
    r, dims = Source(), (s.batch, s.length, s.stoch, s.classes)
    return Call((r.normal(*dims), r.normal(*dims), 0.01))


def gaussian_sample(s: Shape) -> Call:
    r, dims = Source(), (s.batch, s.length, s.stoch)
    return Call((r.normal(*dims), r.uniform(*dims, grad=True), r.normal(*dims, grad=False)))


def gaussian_kl(s: Shape) -> Call:
    r, dims = Source(), (s.batch, s.length, s.stoch)
    std = [(0.1 + r.uniform(*dims)).requires_grad_() for _ in range(2)]
    return Call(((r.normal(*dims), std[0]), (r.normal(*dims), std[1])))


def elementwise(s: Shape) -> Call:
    """Sensors of a whole batch."""
    return Call((Source().normal(s.batch, s.length, 24),))


def twohot_loss(s: Shape) -> Call:
    """The critic on imagined states."""
    r, dims = Source(), (s.starts, s.horizon)
    return Call((r.normal(*dims, s.bins), 100 * r.normal(*dims, grad=False), fd.twohot_bins(s.bins)))


def twohot_mean(s: Shape) -> Call:
    """The critic on imagined states and their starts."""
    return Call((Source().normal(s.starts, s.horizon + 1, s.bins), fd.twohot_bins(s.bins)))


def lambda_return(s: Shape) -> Call:
    """Imagined states."""
    return _returns(s.starts, s.horizon)


def replayed_return(s: Shape) -> Call:
    """Replayed states."""
    return _returns(s.batch, s.length - 1)


def _returns(rows: int, steps: int) -> Call:
    r = Source()
    live, mix = (r.uniform(rows, steps, grad=True) for _ in range(2))
    return Call((r.normal(rows, steps), live, mix, r.normal(rows, steps)))


def observe_step(s: Shape) -> Call:
    r, (rssm, _) = Source(), model(s.name)
    inputs = r.normal(s.batch, s.action), r.normal(s.batch, s.embed), r.resets(s.batch), r.noise(s, s.batch)
    args = _only(rssm, "core", "post"), *r.state(s, s.batch), *inputs
    return Call(args, floors.observe_flops(rssm, s.batch))


def observe(s: Shape) -> Call:
    r, (rssm, _), lead = Source(), model(s.name), (s.batch, s.length)
    inputs = r.normal(*lead, s.action), r.normal(*lead, s.embed), r.resets(*lead), r.noise(s, *lead)
    args = _only(rssm, "core", "post"), *r.state(s, s.batch), *inputs
    return Call(args, floors.observe_flops(rssm, s.starts))


def imagine_step(s: Shape) -> Call:
    """One step from every state of a batch."""
    r, (rssm, _), n = Source(), model(s.name), s.starts
    args = _only(rssm, "core", "prior"), *r.state(s, n), r.normal(n, s.action), r.noise(s, n)
    return Call(args, floors.imagine_flops(rssm, (), n, 1))


def prior(s: Shape) -> Call:
    rssm = model(s.name)[0]
    flops = 2 * s.starts * floors.macs(rssm.prior)
    return Call((_only(rssm, "prior"), Source().normal(s.batch, s.length, s.deter)), flops)


def imagine(s: Shape) -> Call:
    """From every state of a batch."""
    return _dream(s, s.starts)


def imagine_few(s: Shape) -> Call:
    """From 16 states."""
    return _dream(s, 16)


def _dream(s: Shape, n: int) -> Call:
    r, (rssm, actor) = Source(), model(s.name)
    draws = r.noise(s, n, s.horizon), r.action_noise(actor, n, s.horizon + 1)
    args = _only(rssm, "core", "prior"), actor, *r.state(s, n), s.horizon, *draws
    return Call(args, floors.imagine_flops(rssm, actor, n, s.horizon))


def rollout(s: Shape) -> Call:
    """The second half of a batch, as reports predict it."""
    r, rssm, steps = Source(), model(s.name)[0], max(1, s.length // 2)
    inputs = r.normal(s.batch, steps, s.action), r.noise(s, s.batch, steps)
    args = _only(rssm, "core", "prior"), *r.state(s, s.batch), *inputs
    return Call(args, floors.imagine_flops(rssm, (), s.batch, steps))


def policy_step(s: Shape) -> Call:
    """One environment with its sensors; of the earlier agents with the embedding of its image."""
    return _act(s, 1)


def policy_steps(s: Shape) -> Call:
    """A batch of environments."""
    return _act(s, s.batch)


def _act(s: Shape, n: int) -> Call:
    r, (rssm, actor) = Source(), model(s.name)
    encoder = () if s.name in EARLIER else networks(s.name).enc.vector_layers
    width = encoder[0].weight.shape[1] if encoder else s.embed
    deter, stoch = (x.detach() for x in r.state(s, n))  # nothing is differentiated where an agent acts
    state = deter, stoch, r.normal(n, s.action, grad=False), r.normal(n, width, grad=False)
    draws = r.resets(n), r.noise(s, n), r.action_noise(actor, n)
    args = encoder, _only(rssm, "core", "post"), actor, *state, *draws
    return Call(args, floors.observe_flops(rssm, n) + 2 * n * floors.macs(encoder, actor))


def laprop_(s: Shape) -> Call:
    """All that a preset learns."""
    r = Source()
    params = [p.detach().clone() for p in networks(s.name).learned().values()]
    grads = [1e-3 * r.normal(*p.shape, grad=False) for p in params]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    args = params, grads, *moments, torch.tensor(1), 4e-5
    return Call(args, bytes=floors.laprop_bytes(params))


def gather_sequences(s: Shape) -> Call:
    """64 x 64 images for one batch with its context, from a storage that no cache holds."""
    storage = torch.zeros(4096, 64, 64, 3, dtype=torch.uint8)
    start = torch.randint(4096, (s.batch,), generator=Source().generator)
    moved = floors.gather_bytes(storage, s.batch, s.length + 1)
    return Call((storage, start, s.length + 1), bytes=moved)


class Plan(NamedTuple):
    """At which presets a call is timed by default and with the slow ones, and whether it is differentiated."""

    call: Callable[[Shape], Call]
    presets: tuple[str, ...] = ("1m",)
    slow: tuple[str, ...] = ()
    backward: bool = True


_BY_CLASSES = ("1m", "12m", "200m"), ("25m", "50m", "100m", "400m")
_SCAN = ("1m", "12m"), ("25m", "50m")

# Shapes that are the same for all sizes stand under the smallest. DreamerV3 does not differentiate its dreams.
PLANS: dict[str, Plan] = {
    "norm_act": Plan(norm_act, *_BY_CLASSES),
    "mlp": Plan(mlp, ("1m",), ("12m",)),
    "mlp:batch": Plan(lambda s: mlp(s, 64), ("1m", "12m")),
    "mlps": Plan(mlps, ("1m",), ("12m",)),
    "conv_pool": Plan(conv_pool, ("1m", "12m")),
    "conv_spread": Plan(conv_spread, ("1m", "12m")),
    "image_loss": Plan(image_loss),
    "block_gru": Plan(core, ("1m", "12m"), ("25m", "50m", "100m", "200m")),
    "layernorm_gru": Plan(core, ("v2-dmc", "v2-atari")),
    "gru": Plan(core, ("v1",)),
    "categorical_sample": Plan(categorical_sample, *_BY_CLASSES),
    "gumbel_sample": Plan(gumbel_sample, *_BY_CLASSES),
    "categorical_kl": Plan(categorical_kl, *_BY_CLASSES),
    "gaussian_sample": Plan(gaussian_sample, ("v1",)),
    "gaussian_kl": Plan(gaussian_kl, ("v1",)),
    "symlog": Plan(elementwise),
    "symexp": Plan(elementwise),
    "twohot_loss": Plan(twohot_loss),
    "twohot_mean": Plan(twohot_mean),
    "critic_loss": Plan(critic_loss),
    "reinforce": Plan(reinforce),
    "bounded_normal": Plan(bounded_normal),
    "percentiles": Plan(percentiles, backward=False),
    "latent_entropy": Plan(latent_entropy, ("1m", "12m"), backward=False),
    "summarize": Plan(summarize),
    "join_inputs": Plan(join_inputs, backward=False),
    "vector_losses": Plan(vector_losses),
    "lambda_return": Plan(lambda_return),
    "lambda_return:replay": Plan(replayed_return),
    "observe_step": Plan(observe_step, *_SCAN, backward=False),
    "imagine_step": Plan(imagine_step, ("1m", "12m"), ("25m", "50m", "v1"), backward=False),
    "observe": Plan(observe, ("1m", "12m", "v2-atari"), ("25m", "v2-dmc", "v1")),
    "prior": Plan(prior, ("1m", "12m", "v1"), ("25m", "50m")),
    "imagine": Plan(imagine, ("1m", "12m"), tuple(EARLIER), backward=False),
    "imagine:16": Plan(imagine_few, ("1m", "12m"), tuple(EARLIER), backward=False),
    "rollout": Plan(rollout, ("1m", "12m"), tuple(EARLIER), backward=False),
    "policy_step": Plan(policy_step, ("1m", "12m"), ("25m", "50m", *EARLIER), backward=False),
    "policy_step:batch": Plan(policy_steps, ("1m", "12m"), tuple(EARLIER), backward=False),
    "lstm_mdn_step": Plan(lstm_mdn_step, backward=False),
    "lstm_mdn_dream": Plan(lstm_mdn_dream, backward=False),
    "lstm_scan": Plan(lstm_scan),
    "laprop_": Plan(laprop_, ("1m", "12m"), ("25m", "50m"), backward=False),
    "gather_sequences": Plan(gather_sequences, backward=False),
}

assert {name for plan in PLANS.values() for name in plan.presets + plan.slow} >= set(PRESETS)
