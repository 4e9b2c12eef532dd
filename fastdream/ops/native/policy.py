"""The policy step: one call without autograd and past torch's dispatcher, made for every step of an environment."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.actor import add_actor, add_chain, add_latent_net
from fastdream.ops.native.dream import check_index
from fastdream.ops.native.library import WHY_NOT, C, addresses, check_shape, plain, register
from fastdream.ops.native.params import Flat, add_core, check_params, with_gaps
from fastdream.ops.params import RSSM, Actor, Categorical, Layers, Step
from fastdream.ops.reference.actor import action_width
from fastdream.ops.reference.layers import match


class Layout(NamedTuple):
    """What the kernel must know beside parameters, in the order in which it reads it."""

    width: int  # of deter
    stoch: int
    classes: int
    action: int  # width
    features: int
    embed: int
    elements: int  # numbers that draw an action
    absolute: int


class _Model(NamedTuple):
    """Parameters as the kernel takes them. They are those of `source` while its tensors are at the same addresses."""

    source: tuple[Layers, RSSM, Actor]
    params: list[Tensor]  # contiguous, perhaps copies
    original: bool  # they are no copies
    addresses: list[int]  # of params
    filled: list[int]
    sizes: list[int]
    scalars: list[float]
    layout: list[int]
    kept: Any  # pointers, sizes and scalars as the compiled module keeps them
    fitting: list[Any]  # what the inputs were like that were checked last


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
    """As `fastdream.ops.reference.policy_step`, in float32 or float64, for categorical latents and their two cores.

    Parameters have deter's dtype; the other floats are cast to it. Raises ValueError naming what does not fit. The
    parameters of the two models that acted last are kept alive.
    """
    if noise is None and index is None:
        raise ValueError("policy_step needs noise to draw with, or the index of an earlier draw")
    dtype = deter.dtype
    state = deter, match(stoch, dtype), match(action, dtype), match(features, dtype), reset
    noise = None if noise is None or index is not None else match(noise, dtype)
    index = None if index is None else match(index, torch.int64)
    inputs = *state, noise, index, None if action_noise is None else match(action_noise, dtype)
    if plain(deter):
        model = _known(encoder, rssm, actor, deter)
        described: list[Any] = [None if x is None else (x.shape, x.dtype, x.is_cpu) for x in inputs]
        described.append(vectors)
        if described != model.fitting:
            _check(model.params, model.layout, vectors, inputs)
            model.fitting[:] = described
        outputs = _empty(model.layout, deter)
        _launch(model.kept, model.layout, vectors, inputs, outputs)
    else:
        model = _flatten(encoder, rssm, actor, deter)
        params = [x.detach() for x in model.params]
        static = model.filled, model.sizes, model.scalars, model.layout
        outputs = torch.ops.fastdream.policy_step(
            params, *static, vectors, *(x if x is None else x.detach() for x in inputs)
        )
    return Step(*outputs[:4]), outputs[4]


def _known(encoder: Layers, rssm: RSSM, actor: Actor, deter: Tensor) -> _Model:
    """The model flattened, as before if it can be."""
    key = id(encoder), id(rssm), id(actor)
    model = _MODELS.get(key)
    if model is None or not model.original or list(map(Tensor.data_ptr, model.params)) != model.addresses:
        model = _MODELS[key] = _flatten(encoder, rssm, actor, deter)
        while len(_MODELS) > _MOST_MODELS:
            _MODELS.popitem(last=False)
    return model


def _flatten(encoder: Layers, rssm: RSSM, actor: Actor, deter: Tensor) -> _Model:
    op, latent = "policy_step", rssm.latent
    if not isinstance(latent, Categorical):
        raise ValueError(f"{op}: native has no {type(latent).__name__} latents, use the reference")
    flat, width = Flat([], [], []), action_width(actor)
    features = add_chain(flat, op, "encoder", encoder, encoder[0].weight.shape[-1] if encoder else 0)
    deter_width = add_core(flat, op, rssm.core, latent.stoch * latent.classes, width)
    seen = rssm.post[0].weight.shape[-1] if rssm.post else 0
    embed = seen if rssm.absolute else seen - deter_width
    add_latent_net(flat, op, "post", rssm.post, seen, latent)
    if encoder and features != embed:
        raise ValueError(f"{op}: encoder gives {features} features, the posterior takes {embed}")
    _, elements = add_actor(flat, op, actor, deter_width + latent.stoch * latent.classes)
    params, filled = flat.present()
    check_params(op, params, deter, "deter")
    layout = Layout(
        deter_width,
        latent.stoch,
        latent.classes,
        width,
        encoder[0].weight.shape[1] if encoder else embed,
        embed,
        elements,
        int(rssm.absolute),
    )
    original = all(x.is_contiguous() for x in params)
    params = params if original else [x.detach().contiguous() for x in params]
    pointers = addresses(with_gaps(params, filled)) if plain(deter) else []
    scalars = [latent.unimix, *flat.scalars]
    return _Model(
        source=(encoder, rssm, actor),
        params=params,
        original=original,
        addresses=[p for p in pointers if p],
        filled=filled,
        sizes=flat.sizes,
        scalars=scalars,
        layout=list(layout),
        kept=_keep(pointers, flat.sizes, scalars) if pointers else None,
        fitting=[],
    )


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _check(
    params: list[Tensor], layout: list[int], vectors: Sequence[int], inputs: Sequence[Tensor | None]
) -> None:
    """ValueError unless the inputs fit the model and one another."""
    width, stoch, classes, action, features, _, elements, _ = layout
    deter = inputs[0]
    assert deter is not None
    check_params("policy_step", params[:1], deter, "deter")
    if vectors and (sum(vectors) != features or min(vectors) < 0):
        raise ValueError(f"policy_step: vectors of {list(vectors)} are not {features} features")
    dtype, rows = deter.dtype, len(deter)
    expected = {
        "deter": ((rows, width), dtype),
        "stoch": ((rows, stoch, classes), dtype),
        "action": ((rows, action), dtype),
        "features": ((rows, features), dtype),
        "reset": ((rows,), torch.bool),
        "noise": ((rows, stoch), dtype),
        "index": ((rows, stoch), torch.int64),
        "action_noise": ((rows, elements), dtype),
    }
    for x, (name, (shape, kind)) in zip(inputs, expected.items(), strict=True):
        if x is None:
            continue
        check_shape("policy_step", name, x, *shape)
        if x.dtype != kind or x.device != deter.device:
            raise ValueError(
                f"policy_step: {name} is {x.dtype} on {x.device}, expected {kind} on {deter.device}"
            )


def _empty(layout: list[int], deter: Tensor) -> Outputs:
    _, stoch, classes, action, *_ = layout
    rows, width = deter.shape
    return (
        deter.new_empty(rows, width),
        deter.new_empty(rows, stoch, classes),
        deter.new_empty(rows, stoch, classes),
        torch.empty(rows, stoch, dtype=torch.int64, device=deter.device),
        deter.new_empty(rows, action),
    )


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
    return _empty(layout, inputs[0])


def _keep(pointers: list[int], sizes: list[int], scalars: list[float]) -> Any:
    """A model's arguments, converted once."""
    assert C is not None, WHY_NOT
    return C.Model(pointers, sizes, scalars)


def _launch(
    model: Any,
    layout: list[int],
    vectors: Sequence[int],
    inputs: Sequence[Tensor | None],
    outputs: Outputs,
) -> None:
    check_index("policy_step", inputs[6], layout[2])
    deter = outputs[0]
    whole = [x if x is None or x.is_contiguous() else x.contiguous() for x in inputs]
    given = addresses((*whole, *outputs))
    sizes = [len(deter), *layout, len(vectors), *vectors]
    assert C is not None, WHY_NOT
    status = C.cpu_policy_step_of(deter.element_size(), given, sizes, model, torch.get_num_threads())
    if status != 0:
        raise RuntimeError(f"policy_step: {C.error_string(status)}")


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
    whole = [x.contiguous() for x in params]
    model = _keep(addresses(with_gaps(whole, filled)), sizes, scalars)
    _launch(model, layout, vectors, inputs, outputs)
    return outputs


register(
    "policy_step(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, int[] vectors,"
    " Tensor deter, Tensor stoch, Tensor action, Tensor features, Tensor reset, Tensor? noise, Tensor? index,"
    " Tensor? action_noise) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
