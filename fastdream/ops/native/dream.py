"""Imagination, without gradient: with the actor inside, or along given actions. And the prior, with gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.actor import add_actor, add_latent_net
from fastdream.ops.native.categorical import check_index
from fastdream.ops.native.dense import mlp
from fastdream.ops.native.library import check_float, check_shape, contiguous, run
from fastdream.ops.native.params import Flat, LatentShape, add_core, check_params, latent_shape, with_gaps
from fastdream.ops.native.registry import call, register
from fastdream.ops.params import RSSM, Actor, Dream, Step, any_gradient, need_steps
from fastdream.ops.reference.actor import action_width
from fastdream.ops.reference.layers import match
from fastdream.ops.reference.state import shaped


class Layout(NamedTuple):
    """What the kernel must know beside parameters, in the order in which it reads it."""

    length: int
    start: int  # 1 if the start is state 0 of the results
    stoch: int
    classes: int  # 0: normals
    form: int  # of their std
    action: int  # width
    elements: int  # numbers that draw an action
    acts: int  # 1 if there is an actor

    @property
    def latent(self) -> LatentShape:
        """Of its draws."""
        return LatentShape(self.stoch, self.classes, self.form, 0.0, 0.0)

    @property
    def drawn(self) -> bool:
        """Whether the classes that were drawn are a result."""
        return self.classes > 0 and not self.start


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
    """As `fastdream.ops.reference.imagine`, in float32 or float64.

    Parameters have deter's dtype; the other floats are cast to it. Has no gradient; for `dream_gradient.imagine`, which
    has looked at length and actions. Raises ValueError naming what does not fit.
    """
    width = action_width(actor)
    flat, latent = _flatten("imagine", rssm, deter, width)
    widths = add_actor(flat, "imagine", actor, deter.shape[-1] + latent.width)
    layout = Layout(length, 1, *latent[:3], *widths, 1)
    draws = (None, action) if action is not None else (action_noise, None)
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


def prior(rssm: RSSM, deter: Tensor) -> Tensor:
    """As `fastdream.ops.reference.prior`; shapes, dtypes and gradients as `mlp`."""
    return shaped(rssm.latent, mlp(deter, rssm.prior))


def _rollout(
    op: str,
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> Step:
    need_steps(op, action.shape[1])
    flat, latent = _flatten(op, rssm, deter, action.shape[-1])
    layout = Layout(action.shape[1], 0, *latent[:3], action.shape[-1], 0, 0)
    deter, stoch, logit, _, index = _run(op, flat, latent, layout, deter, stoch, noise, index, None, action)
    return Step(deter, stoch, logit, index if latent.classes else None)


def _flatten(op: str, rssm: RSSM, deter: Tensor, action: int) -> tuple[Flat, LatentShape]:
    """Core and prior."""
    flat, latent = Flat([], [], []), latent_shape(op, rssm.latent)
    width = add_core(flat, op, rssm.core, latent.width, action)
    check_shape(op, "deter", deter, *deter.shape[:-1], width)
    add_latent_net(flat, op, "prior", rssm.prior, width, rssm.latent)
    return flat, latent


def _run(
    op: str, flat: Flat, latent: LatentShape, layout: Layout, deter: Tensor, *inputs: Tensor | None
) -> "Outputs":
    """inputs: stoch, noise, index, action_noise, action."""
    stoch, noise, index, action_noise, action = inputs
    noise, index = latent.draws(op, noise, index)
    params, filled = flat.present()
    check_params(op, params, deter, "deter")
    floats = [x for x in (deter, stoch, action) if x is not None]
    if torch.is_grad_enabled() and any_gradient(*params, *floats):
        raise ValueError(
            f"native {op} has no gradient; call it under torch.no_grad(), or use the reference, which has: "
            f'fastdream.ops.load({op}="reference")'
        )
    casts = [None if x is None else match(x, deter.dtype) for x in (stoch, noise, action_noise, action)]
    index = None if index is None else match(index, torch.int64)
    settings = flat.sizes, [*latent[3:], *flat.scalars], list(layout)
    return call("imagine", params, filled, *settings, deter, *casts[:2], index, *casts[2:])


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    stoch: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
    action_noise: Tensor | None,
    action: Tensor | None,
) -> Outputs:
    n = Layout(*layout)
    op = "imagine" if n.start else "rollout"
    floats = {"stoch": stoch, "noise": noise, "action_noise": action_noise, "action": action}
    check_float(op, deter=deter, **{name: x for name, x in floats.items() if x is not None})
    if deter.dim() != 2:
        raise ValueError(f"{op}: deter has shape {list(deter.shape)}, expected [rows, features]")
    rows, states = deter.shape[0], n.length + n.start
    latent = n.latent
    shapes = {
        "stoch": (stoch, (rows, *latent.state)),
        "noise": (noise, (rows, n.length, n.stoch)),
        "index": (index, (rows, n.length, n.stoch)),
        "action_noise": (action_noise, (rows, states, n.elements)),
        "action": (action, (rows, states, n.action)),
    }
    for name, (x, shape) in shapes.items():
        if x is not None:
            check_shape(op, name, x, *shape)
    if index is not None and (index.dtype != torch.int64 or index.device != deter.device):
        raise ValueError(f"{op}: index is {index.dtype} on {index.device}, expected int64 on {deter.device}")
    return (
        deter.new_empty(rows, states, deter.shape[1]),
        deter.new_empty(rows, states, *latent.state),
        deter.new_empty(rows, n.length, *latent.logit),
        deter.new_empty(rows, states, n.action) if n.start else deter.new_empty(0),
        deter.new_empty((rows, n.length, n.stoch) if n.drawn else (0,), dtype=torch.int64),
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
    stoch, noise, index, action_noise, action = inputs
    check_index("imagine", index, n.classes)
    wanted = *outputs[:3], outputs[3] if n.start else None, outputs[4] if n.drawn else None
    tensors = deter, stoch, noise, index, action_noise, action
    pointers = contiguous(*tensors, *with_gaps(params, filled))
    run("imagine", [*pointers[:6], *wanted, *pointers[6:]], [deter.shape[0], *layout, *sizes], scalars)
    return outputs


register(
    "imagine(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, Tensor deter, Tensor stoch,"
    " Tensor? noise, Tensor? index, Tensor? action_noise, Tensor? action)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
