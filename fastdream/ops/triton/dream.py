"""Imagination, without gradient: with the actor inside, or along given actions."""

from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.actor import add_actor, add_latent_net
from fastdream.ops.native.dream import Layout, Outputs
from fastdream.ops.native.params import Flat, LatentShape, add_core, latent_shape
from fastdream.ops.params import RSSM, Actor, Dream, Step, any_gradient
from fastdream.ops.reference.actor import action_width
from fastdream.ops.reference.layers import match
from fastdream.ops.triton.library import check_floats, check_shape, contiguous, register
from fastdream.ops.triton.limits import check_served, unserved, unserved_actor
from fastdream.ops.triton.step import Draws, StepKernels
from fastdream.ops.triton.unflatten import Reader, add_latent


def imagine(
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    length: int,
    noise: Tensor | None,
    action_noise: Tensor | None,
    index: Tensor | None = None,
    action: Tensor | None = None,
) -> Dream:
    """As `fastdream.ops.reference.imagine`, for what `limits` serves.

    Computes in deter's dtype, float32 or half precision, whatever that of the parameters. Has no gradient: raises
    ValueError where one would be needed, and naming what does not fit. An index that is no class draws nothing.
    """
    if action is None and action_noise is None:
        raise ValueError("actor needs noise to draw with, or the action that it should replay")
    width = action_width(actor)
    flat, latent = _flatten("imagine", rssm, deter, width)
    acts = action is None
    if acts:
        check_served("imagine", unserved_actor(actor))
        add_actor(flat, "imagine", actor, deter.shape[-1] + latent.width)
    elements = sum(head.elements for head in actor.heads)
    layout = Layout(length, 1, latent.stoch, latent.classes, 0, width, elements, int(acts))
    draws = (action_noise, None) if acts else (None, action)
    return Dream(*_run("imagine", flat, latent, layout, deter, stoch, noise, index, *draws)[:4])


def rollout(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """As `fastdream.ops.reference.rollout`; see `imagine`."""
    return _rollout("rollout", rssm, deter, stoch, action, noise, index)


def imagine_step(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """As `fastdream.ops.reference.imagine_step`; see `imagine`."""
    noise, index = (None if x is None else x.unsqueeze(1) for x in (noise, index))
    step = _rollout("imagine_step", rssm, deter, stoch, action.unsqueeze(1), noise, index)
    return Step(*(None if x is None else x.squeeze(1) for x in step))  # type: ignore[arg-type]


def _rollout(
    op: str,
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> Step:
    flat, latent = _flatten(op, rssm, deter, action.shape[-1])
    layout = Layout(action.shape[1], 0, latent.stoch, latent.classes, 0, action.shape[-1], 0, 0)
    deter, stoch, logit, _, index = _run(op, flat, latent, layout, deter, stoch, noise, index, None, action)
    return Step(deter, stoch, logit, index if latent.classes else None)


def _flatten(op: str, rssm: RSSM, deter: Tensor, action: int) -> tuple[Flat, LatentShape]:
    """Latent, core and prior."""
    check_served(op, unserved(rssm, rssm.prior))
    flat, latent = Flat([], [], []), latent_shape(op, rssm.latent)
    add_latent(flat, op, rssm.latent)
    width = add_core(flat, op, rssm.core, latent.width, action)
    check_shape(op, "deter", deter, *deter.shape[:-1], width)
    add_latent_net(flat, op, "prior", rssm.prior, width, rssm.latent)
    return flat, latent


def _run(
    op: str, flat: Flat, latent: LatentShape, layout: Layout, deter: Tensor, *inputs: Tensor | None
) -> Outputs:
    """inputs: stoch, noise, index, action_noise, action."""
    stoch, noise, index, action_noise, action = inputs
    noise, index = latent.draws(op, noise, index)
    params, filled = flat.present()
    floats = [x for x in (deter, stoch, action) if x is not None]
    if torch.is_grad_enabled() and any_gradient(*params, *floats):
        raise ValueError(
            f"triton {op} has no gradient; call it under torch.no_grad(), or use the reference, which has: "
            f'fastdream.ops.load({op}="reference")'
        )
    assert stoch is not None
    settings = flat.sizes, flat.scalars, list(layout)
    given = match(stoch, deter.dtype), noise, index, action_noise, action
    return torch.ops.fastdream.triton_imagine(params, filled, *settings, deter, *given)


def _check(op: str, n: Layout, params: list[Tensor], deter: Tensor, inputs: dict[str, Tensor | None]) -> None:
    index = inputs["index"]
    floats = {name: x for name, x in inputs.items() if name != "index"}
    check_floats(op, deter=deter, **floats, **{f"parameter {i}": x for i, x in enumerate(params)})
    if deter.dim() != 2:
        raise ValueError(f"{op}: deter has shape {list(deter.shape)}, expected [rows, features]")
    rows, states = deter.shape[0], n.length + n.start
    shapes = {
        "stoch": (rows, *n.latent.state),
        "noise": (rows, n.length, n.stoch),
        "index": (rows, n.length, n.stoch),
        "action_noise": (rows, states, n.elements),
        "action": (rows, states, n.action),
    }
    for name, x in inputs.items():
        if x is not None:
            check_shape(op, name, x, *shapes[name])
    if index is not None and (index.is_floating_point() or index.device != deter.device):
        raise ValueError(f"{op}: index is {index.dtype} on {index.device}, expected int64 on {deter.device}")


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    *inputs: Tensor | None,
) -> Outputs:
    n = Layout(*layout)
    names = "stoch", "noise", "index", "action_noise", "action"
    _check("imagine" if n.start else "rollout", n, params, deter, dict(zip(names, inputs, strict=True)))
    rows, states = deter.shape[0], n.length + n.start
    wide = torch.float32
    return (
        deter.new_empty(rows, states, deter.shape[1]),
        deter.new_empty(rows, states, *n.latent.state),
        deter.new_empty(rows, n.length, *n.latent.logit),
        deter.new_empty((rows, states, n.action) if n.start else 0, dtype=wide),
        deter.new_empty(0 if n.start else (rows, n.length, n.stoch if n.classes else 0), dtype=torch.int64),
    )


def _kernel(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    *inputs: Any,
) -> Outputs:
    n = Layout(*layout)
    outputs = _fake(params, filled, sizes, scalars, layout, deter, *inputs)
    deters, stochs, logits, actions, drawn = outputs
    deter, (stoch, noise, index, action_noise, action) = deter.contiguous(), contiguous(*inputs)
    assert stoch is not None
    reader = Reader(params, filled, sizes, scalars)
    latent, core, net = reader.latent(), reader.core(), reader.layers()
    acts = n.acts == 1
    kernels, _ = StepKernels.bind(core, latent, net, reader.actor() if acts else None, n.action, deter)
    if n.start:
        deters[:, 0], stochs[:, 0] = deter, stoch
        drawn = deter.new_empty((len(deter), n.length, n.stoch if n.classes else 0), dtype=torch.int32)
        action = actions if action is None else actions.copy_(action)
    assert action is not None
    draws = Draws(noise, index, drawn, logits, stochs, action_noise, action)
    kernels.project(deter)
    kernels.finish(draws, -1, 0, start=stoch.flatten(1), acts=acts, enter=n.length > 0)
    for time, state in enumerate(deters[:, n.start :].unbind(1)):
        kernels.core(deter, kernels.x, state)
        kernels.project(state)
        kernels.finish(draws, time, time + 1, acts=acts, enter=time + 1 < n.length)
        deter = state
    return outputs


register(
    "imagine(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, Tensor deter, Tensor stoch,"
    " Tensor? noise, Tensor? index, Tensor? action_noise, Tensor? action)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
