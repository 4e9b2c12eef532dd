"""mlp, mlps and prior: chains of dense layers on one input."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.dense import flat
from fastdream.ops.native.layers import Flags, Optional
from fastdream.ops.native.params import ACTS, NORMS, with_gaps
from fastdream.ops.params import RSSM, Feat, Layer, Layers
from fastdream.ops.reference.state import shaped
from fastdream.ops.triton import dense_nets
from fastdream.ops.triton.config import WIDEST
from fastdream.ops.triton.dense_gradients import backward
from fastdream.ops.triton.dense_nets import Kept
from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    empty_like,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.padding import as_rows, empty_rows

Params = Sequence[Tensor]


def mlp(x: Tensor | Feat, layers: Layers) -> Tensor:
    """As `fastdream.ops.reference.mlp`, x float32 or half precision, of dense layers alone. Differentiable once.

    Raises ValueError for block-diagonal layers, for outputs of over 16384 and for more than 16 layers.
    """
    return mlps(x, (layers,))[0]


def mlps(x: Tensor | Feat, nets: Sequence[Layers]) -> tuple[Tensor, ...]:
    """As `fastdream.ops.reference.mlps`, under the conditions of `mlp`.

    The first layers of all nets are one product. What a net's gradient needs is kept of those alone that want one, and
    nets whose parameters want none cost nothing in the backward pass if their outputs get no gradient.
    """
    x, hot = (x.deter, x.stoch) if isinstance(x, Feat) else (x, None)
    learned = [len(net) > 0 and torch.is_grad_enabled() and _learns(x, hot, net) for net in nets]
    # Those that learn come first: their part of the one product is then in one piece.
    fixed = [not any(p is not None and p.requires_grad for layer in net for p in layer[:4]) for net in nets]
    order = sorted((i for i, net in enumerate(nets) if net), key=lambda i: (not learned[i], fixed[i]))
    outputs: dict[int, Tensor] = {}
    if order:
        outputs = dict(
            zip(order, _mlps_of_layers(x, hot, [nets[i] for i in order], sum(learned)), strict=True)
        )
    return tuple(
        outputs[i] if net else x if hot is None else torch.cat((x, hot), -1) for i, net in enumerate(nets)
    )


def prior(rssm: RSSM, deter: Tensor) -> Tensor:
    """As `fastdream.ops.reference.prior`, under the conditions of `mlp`."""
    return shaped(rssm.latent, mlp(deter, rssm.prior))


def _learns(x: Tensor, hot: Optional, net: Layers) -> bool:
    tensors = x, hot, *(p for layer in net for p in layer[:4])
    return any(p is not None and p.requires_grad for p in tensors)


def _mlps_of_layers(x: Tensor, hot: Optional, nets: Sequence[Layers], learned: int) -> Iterator[Tensor]:
    all_params, sizes, eps = flat(nets, hot)
    params, there = [p for p in all_params if p is not None], [p is not None for p in all_params]
    outputs = torch.ops.fastdream.triton_mlps(x, params, there, sizes, eps, learned)
    # Torch lets all outputs want a gradient if one does.
    return (y if i < learned else y.detach() for i, y in enumerate(outputs[: len(nets)]))


def _nets(params: Sequence[Optional], sizes: Sequence[int], eps: Sequence[float]) -> list[Layers]:
    """What `flat` collected, but for the one-hots, which are the first of params."""
    tensors, numbers, floats = iter(params), iter(sizes), iter(eps)
    next(tensors), next(numbers), next(numbers)

    def layer() -> Layer:
        next(numbers)
        four = [next(tensors) for _ in range(4)]
        return Layer(*four, NORMS[next(numbers)], ACTS[next(numbers)], next(floats))  # type: ignore[call-arg, arg-type]

    return [tuple(layer() for _ in range(next(numbers))) for _ in range(next(numbers))]


def _check(op: str, x: Tensor, params: Sequence[Optional], sizes: Sequence[int], nets: list[Layers]) -> None:
    """ValueError unless the layers fit one another and x [..., in], in shape and device."""
    hot, inputs = params[0], sizes[1]
    check_floats(op, x=x)
    if x.dim() < 1 or x.shape[-1] + sizes[0] != inputs:
        beside = f" with {sizes[0]} features beside it" if sizes[0] else ""
        raise ValueError(
            f"{op}: x has shape {list(x.shape)}{beside}, expected [..., {inputs - sizes[0]}] as the first weight"
        )
    if hot is not None:
        check_shape(op, "stoch", hot, *x.shape[:-1], sizes[0])
        if hot.dtype != x.dtype:
            raise ValueError(f"{op}: stoch is {hot.dtype}, expected {x.dtype} like deter")
    for net in nets:
        width = inputs
        for i, layer in enumerate(net):
            out = len(layer.weight)
            if not 0 < out <= WIDEST:
                raise ValueError(f"{op}: layer {i} gives {out} numbers, expected from 1 to {WIDEST}")
            for field, p in zip(layer._fields[:4], layer[:4], strict=True):
                if p is not None:
                    check_floats(op, x=x, **{f"{field} of layer {i}": p})
                    check_shape(
                        op, f"{field} of layer {i}", p, *((out, width) if field == "weight" else (out,))
                    )
            width = out


def _mlps_fake(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], learned: int
) -> list[Tensor]:
    """The output of every net, then `Kept`."""
    given = with_gaps(params, there)
    nets = _nets(given, sizes, eps)
    _check("mlp", x, given, sizes, nets)
    outputs, rows = [empty_rows(x, *x.shape[:-1], len(net[-1].weight)) for net in nets], x.shape[:-1].numel()
    shapes = dense_nets.kept_shapes(rows, nets, learned) if learned else []
    return [*outputs, *(x.new_empty(shape) for shape in shapes)]


def _mlps(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], learned: int
) -> list[Tensor]:
    given = with_gaps(params, there)
    nets = _nets(given, sizes, eps)
    _check("mlp", x, given, sizes, nets)
    outputs, kept = dense_nets.forward(_parts(x, given[0]), nets, learned)
    widths = (len(net[-1].weight) for net in nets)
    shaped = [y.view(*x.shape[:-1], y.shape[-1])[..., :n] for y, n in zip(outputs, widths, strict=True)]
    return [*shaped, kept.first, *kept.later] if learned else shaped


def _parts(x: Tensor, hot: Optional) -> list[Tensor]:
    """The inputs as rows."""
    return [p.reshape(x.shape[:-1].numel(), p.shape[-1]) for p in (x, hot) if p is not None]


def _mlps_backward_fake(
    x: Tensor,
    params: Params,
    there: Flags,
    sizes: Sequence[int],
    eps: Sequence[float],
    kept: Params,
    grads: Params,
    wanted: Flags,
) -> list[Tensor]:
    given = with_gaps(params, there)
    nets = _nets(given, sizes, eps)
    _check("mlp_backward", x, given, sizes, nets)
    for net, grad in zip(nets, grads, strict=False):
        check_floats("mlp_backward", x=x, grad=grad)
        check_shape("mlp_backward", "grad", grad, *x.shape[:-1], len(net[-1].weight))
    return [empty_like(p) for p, want in zip((x, *params), wanted, strict=True) if want]


def _mlps_backward(*args: Any) -> list[Tensor]:
    _mlps_backward_fake(*args)
    x, params, there, sizes, eps, kept, grads, wanted = args
    given = with_gaps(params, there)
    nets, parts, (first, *later) = _nets(given, sizes, eps), _parts(x, given[0]), kept
    places = [(j, i, field) for j, net in enumerate(nets) for i in range(len(net)) for field in range(4)]
    flags = iter(wanted)
    inputs = [next(flags) for _ in parts]
    slots = [place for place, is_there in zip(places, there[1:], strict=True) if is_there]
    chosen = [place for place, want in zip(slots, flags, strict=True) if want]
    rows = [*map(as_rows, grads)]
    d_parts, found = backward(parts, nets, Kept(first, later), rows, inputs, set(chosen))
    return [d.view(*x.shape[:-1], d.shape[1]) for d in d_parts] + [found[place] for place in chosen]


def _save_mlps(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, params, *ctx.statics, ctx.learned = inputs
    ctx.nets, ctx.count = ctx.statics[1][2], len(params)
    ctx.save_for_backward(x, *params, *output[ctx.nets :])
    ctx.shapes = [y.shape for y in output[: ctx.learned]]
    ctx.set_materialize_grads(False)  # those of what is kept never come


def _mlps_gradient(ctx: Any, grads: Sequence[Optional]) -> tuple[Any, ...]:
    x, *saved = ctx.saved_tensors
    params, kept = saved[: ctx.count], saved[ctx.count :]
    there, sizes, _ = ctx.statics
    used = _trained(there, sizes, ctx.needs_input_grad[1])
    used = max(used, *(i + 1 for i in range(ctx.learned) if grads[i] is not None))
    given = [
        x.new_zeros(shape) if grad is None else grad
        for grad, shape in zip(grads, ctx.shapes[:used], strict=False)
    ]
    # Nets that learn nothing come last, and their parameters want no gradient.
    wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    gradients = torch.ops.fastdream.triton_mlps_backward(x, params, *ctx.statics, kept, given, wanted)
    d_x, *d_params = with_gaps(gradients, wanted)
    return d_x, d_params, None, None, None, None


def _trained(there: Flags, sizes: Sequence[int], wants: Sequence[bool]) -> int:
    """How many nets there are up to the last of which a parameter wants a gradient."""
    each, at, begin, trained = iter(wants), 3, 1, 0
    slots = [has and next(each) for has in there]
    for i in range(sizes[2]):
        end = begin + 4 * sizes[at]
        if any(slots[begin:end]):
            trained = i + 1
        at, begin = at + 1 + 3 * sizes[at], end
    return trained


_NETS = "Tensor x, Tensor[] params, bool[] there, int[] sizes, float[] eps"
register_once_differentiable(
    register(f"mlps({_NETS}, int learned) -> Tensor[]", _mlps, _mlps_fake),
    register(
        f"mlps_backward({_NETS}, Tensor[] kept, Tensor[] grads, bool[] wanted) -> Tensor[]",
        _mlps_backward,
        _mlps_backward_fake,
    ),
    _mlps_gradient,
    _save_mlps,
    "mlp",
)
