"""The policy step: one call without autograd and past torch's dispatcher, made for every step of an environment."""

from collections import OrderedDict
from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.actor import add_actor, add_chain, add_latent_net
from fastdream.ops.native.categorical import check_index
from fastdream.ops.native.library import (
    TENSORS_SHARED,
    WHY_NOT,
    C,
    as_stored,
    check_shape,
    contiguous,
    plain,
    run,
)
from fastdream.ops.native.params import Flat, LatentShape, add_core, check_params, latent_shape, with_gaps
from fastdream.ops.native.registry import call, register
from fastdream.ops.params import RSSM, Actor, Layers, Step
from fastdream.ops.reference.actor import action_width, check_mode
from fastdream.ops.reference.layers import match


class Layout(NamedTuple):
    """What the kernel must know beside parameters, in the order in which it reads it."""

    width: int  # of deter
    stoch: int
    classes: int  # 0: normals
    form: int  # of their std
    action: int  # width
    features: int
    embed: int
    elements: int  # numbers that draw an action
    absolute: int


class _Kernel(NamedTuple):
    """The compiled step of a model for inputs of one shape."""

    vectors: tuple[int, ...]
    shapes: "Shapes"  # of what it gives
    run: Any


class _Model(NamedTuple):
    """Parameters as the kernel takes them: those of `source` until the kernel finds that one of them has moved."""

    source: tuple[Layers, RSSM, Actor]
    params: list[Tensor]  # contiguous, perhaps copies
    original: bool  # they are no copies
    filled: list[int]
    sizes: list[int]
    scalars: list[float]
    layout: list[int]
    latent: LatentShape
    last: list["_Kernel"]  # the one that ran last


# Of the models that acted last, by identity. Reading all parameters anew takes as long as a small model takes to act.
_MODELS: OrderedDict[tuple[int, int, int], _Model] = OrderedDict()
_MOST_MODELS = 2


def policy_step(
    encoder: Layers,
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    features: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    action_noise: Tensor | None,
    index: Tensor | None = None,
    vectors: tuple[int, ...] = (),
) -> tuple[Step, Tensor]:
    """As `fastdream.ops.reference.policy_step`, in float32 or float64.

    Parameters have deter's dtype; the other floats are cast to it. Raises ValueError naming what does not fit. The
    parameters of the two models that acted last are kept alive.
    """
    if action_noise is None:
        check_mode(actor)
    direct = TENSORS_SHARED and plain(deter)
    model = (_known if direct else _flatten)(encoder, rssm, actor, deter)
    noise, index = model.latent.draws("policy_step", noise, index)
    inputs: Inputs = deter, stoch, action, features, reset, noise, index, action_noise
    outputs = (_run if direct else _dispatched)(model, deter, inputs, vectors)
    new_deter, new_stoch, logit, drawn, new_action = outputs
    return Step(new_deter, new_stoch, logit, drawn if model.latent.classes else None), new_action


# In this order: deter, stoch, action, features, reset, noise, index, action_noise.
Inputs = tuple[Tensor | None, ...]
_REQUIRED = "stoch", "action", "features", "reset"


def _run(model: "_Model", deter: Tensor, inputs: Inputs, vectors: tuple[int, ...]) -> "Outputs":
    """What the kernel gives that ran last, or, if inputs or parameters do not fit it, one for them."""
    if inputs[6] is not None:
        check_index("policy_step", inputs[6], model.layout[2])
    for x in inputs[1:]:  # deter was looked at; the kernel cannot see that signs are turned
        if x is not None and x.is_neg():
            return _dispatched(model, deter, inputs, vectors)
    for kernel in model.last:
        if kernel.vectors == vectors:
            outputs = _empty(kernel.shapes, deter)
            if kernel.run((*inputs, *outputs), torch.get_num_threads()) == 0:
                return outputs
    if model.last:
        model = _anew(*model.source, deter)
    if not all(x is None or as_stored(x) for x in (*model.params, *inputs)):
        return _dispatched(model, deter, inputs, vectors)
    inputs = tuple(contiguous(*_matched(deter, inputs)))
    _check(model.params, model.layout, vectors, inputs)
    rows = len(deter)
    shapes = _shapes(model.layout, rows)
    assert C is not None, WHY_NOT
    sizes = [rows, *model.layout, len(vectors), *vectors, *model.sizes]
    params = with_gaps(model.params, model.filled)
    step = C.PolicyStep(deter.element_size(), params, sizes, model.scalars)
    model.last[:] = [_Kernel(vectors, shapes, step)]
    outputs = _empty(shapes, deter)
    if (status := step((*inputs, *outputs), torch.get_num_threads())) != 0:
        raise RuntimeError(f"policy_step: {C.error_string(status)}")
    return outputs


def _dispatched(model: "_Model", deter: Tensor, inputs: Inputs, vectors: tuple[int, ...]) -> "Outputs":
    """What torch gives for the registered op."""
    params = [x.detach() for x in model.params]
    static = model.filled, model.sizes, model.scalars, model.layout
    detached = (x if x is None else x.detach() for x in _matched(deter, inputs))
    return call("policy_step", params, *static, vectors, *detached)


def _matched(deter: Tensor, inputs: Inputs) -> Inputs:
    """The same with floats in deter's dtype."""

    def cast(x: Tensor | None, dtype: torch.dtype = deter.dtype) -> Tensor | None:
        return None if x is None else match(x, dtype)

    _, stoch, action, features, reset, noise, index, action_noise = inputs
    state = deter, cast(stoch), cast(action), cast(features), reset
    return *state, cast(noise), cast(index, torch.int64), cast(action_noise)


def _known(encoder: Layers, rssm: RSSM, actor: Actor, deter: Tensor) -> _Model:
    """The model flattened, as before if it can be."""
    model = _MODELS.get((id(encoder), id(rssm), id(actor)))
    return model if model is not None and model.original else _anew(encoder, rssm, actor, deter)


def _anew(encoder: Layers, rssm: RSSM, actor: Actor, deter: Tensor) -> _Model:
    """The model flattened, to be known from now on."""
    model = _MODELS[id(encoder), id(rssm), id(actor)] = _flatten(encoder, rssm, actor, deter)
    while len(_MODELS) > _MOST_MODELS:
        _MODELS.popitem(last=False)
    return model


def _flatten(encoder: Layers, rssm: RSSM, actor: Actor, deter: Tensor) -> _Model:
    op = "policy_step"
    flat, width, latent = Flat([], [], []), action_width(actor), latent_shape(op, rssm.latent)
    features = add_chain(flat, op, "encoder", encoder, encoder[0].weight.shape[-1] if encoder else 0)
    deter_width = add_core(flat, op, rssm.core, latent.width, width)
    seen = rssm.post[0].weight.shape[-1] if rssm.post else 0
    embed = seen if rssm.absolute else seen - deter_width
    add_latent_net(flat, op, "post", rssm.post, seen, rssm.latent)
    if encoder and features != embed:
        raise ValueError(f"{op}: encoder gives {features} features, the posterior takes {embed}")
    _, elements = add_actor(flat, op, actor, deter_width + latent.width)
    params, filled = flat.present()
    check_params(op, params, deter, "deter")
    layout = Layout(
        deter_width,
        *latent[:3],
        width,
        encoder[0].weight.shape[1] if encoder else embed,
        embed,
        elements,
        int(rssm.absolute),
    )
    params = [x if x.is_contiguous() else x.detach().contiguous() for x in params]
    # `present` has copied vectors with gaps.
    original = all(map(is_, params, (x for x in flat.tensors if x is not None)))
    scalars = [*latent[3:], *flat.scalars]
    return _Model(
        source=(encoder, rssm, actor),
        params=params,
        original=original,
        filled=filled,
        sizes=flat.sizes,
        scalars=scalars,
        layout=list(layout),
        latent=latent,
        last=[],
    )


# deter, stoch, logit, index (None of normals), action.
Outputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
Shapes = tuple[tuple[int, ...] | None, ...]


def _check(params: list[Tensor], layout: list[int], vectors: Sequence[int], inputs: Inputs) -> None:
    """ValueError unless the inputs fit the model and one another."""
    n = Layout(*layout)
    deter = inputs[0]
    assert deter is not None
    check_params("policy_step", params[:1], deter, "deter")
    if vectors and (sum(vectors) != n.features or min(vectors) < 0):
        raise ValueError(f"policy_step: vectors of {list(vectors)} are not {n.features} features")
    dtype, rows = deter.dtype, deter.shape[0]
    expected = {
        "deter": ((rows, n.width), dtype),
        "stoch": ((rows, n.stoch, n.classes) if n.classes else (rows, n.stoch), dtype),
        "action": ((rows, n.action), dtype),
        "features": ((rows, n.features), dtype),
        "reset": ((rows,), torch.bool),
        "noise": ((rows, n.stoch), dtype),
        "index": ((rows, n.stoch), torch.int64),
        "action_noise": ((rows, n.elements), dtype),
    }
    for x, (name, (shape, kind)) in zip(inputs, expected.items(), strict=True):
        if x is None:
            if name in _REQUIRED:
                raise ValueError(f"policy_step: {name} is None, expected a tensor of shape {list(shape)}")
            continue
        check_shape("policy_step", name, x, *shape)
        if x.dtype != kind or x.device != deter.device:
            raise ValueError(
                f"policy_step: {name} is {x.dtype} on {x.device}, expected {kind} on {deter.device}"
            )


def _shapes(layout: list[int], rows: int) -> Shapes:
    n = Layout(*layout)
    latent = LatentShape(n.stoch, n.classes, n.form, 0.0, 0.0)
    states = (rows, n.width), (rows, *latent.state), (rows, *latent.logit)
    return *states, (rows, n.stoch) if n.classes else None, (rows, n.action)


def _empty(shapes: Shapes, like: Tensor) -> Outputs:
    new = like.new_empty
    deter, stoch, logit, index, action = shapes
    # Numbers one by one, as torch takes half a microsecond longer to read a tuple of them.
    drawn = None if index is None else new(*index, dtype=torch.int64)
    return new(*deter), new(*stoch), new(*logit), drawn, new(*action)  # type: ignore[misc]


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    vectors: list[int],
    *inputs: Any,
) -> Outputs:
    _check(params, layout, vectors, inputs)
    deter, stoch, logit, index, action = _empty(_shapes(layout, inputs[0].shape[0]), inputs[0])
    return deter, stoch, logit, deter.new_empty(0, dtype=torch.int64) if index is None else index, action


def _kernel(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    vectors: list[int],
    *inputs: Any,
) -> Outputs:
    outputs = _fake(params, filled, sizes, scalars, layout, vectors, *inputs)
    check_index("policy_step", inputs[6], layout[2])
    tensors = contiguous(*inputs, *outputs, *with_gaps(params, filled))
    run("policy_step", tensors, [len(inputs[0]), *layout, len(vectors), *vectors, *sizes], scalars)
    return outputs


register(
    "policy_step(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, int[] vectors,"
    " Tensor deter, Tensor stoch, Tensor action, Tensor features, Tensor reset, Tensor? noise, Tensor? index,"
    " Tensor? action_noise) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
