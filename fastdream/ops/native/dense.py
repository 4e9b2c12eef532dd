"""mlps: chains of dense layers on one input."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.layers import Flags, Optional
from fastdream.ops.native.library import check_float, check_shape, contiguous, empty_like, rows_of, run
from fastdream.ops.native.params import ACTS, NORMS, code, with_gaps
from fastdream.ops.native.registry import call, register, register_once_differentiable
from fastdream.ops.params import Feat, Layers

MAX_LAYERS = 16  # kMaxLayers in csrc/cpu/dense.h
MAX_NETS = 8  # kMaxNets there

Params = Sequence[Tensor]


def mlp(x: Tensor | Feat, layers: Layers) -> Tensor:
    """As `fastdream.ops.reference.mlp`, all float32 or all float64, of dense layers alone. Differentiable once.

    The one-hots of a `Feat` are multiplied entry by entry, so that zeros cost nothing. Raises ValueError for
    block-diagonal layers and for more than 16 of them.
    """
    return mlps(x, (layers,))[0]


def mlps(x: Tensor | Feat, nets: Sequence[Layers]) -> tuple[Tensor, ...]:
    """As `fastdream.ops.reference.mlps`, under the conditions of `mlp`.

    Features are read from memory once for up to 8 nets, forward and backward. What a net's gradient needs is kept of
    those alone that want one, and nets whose outputs get no gradient cost nothing in the backward pass.
    """
    x, hot = (x.deter, x.stoch) if isinstance(x, Feat) else (x, None)
    full = [layers for layers in nets if layers]
    groups = (full[i : i + MAX_NETS] for i in range(0, len(full), MAX_NETS))
    outputs = chain.from_iterable(_mlps_of_layers(x, hot, group) for group in groups)
    return tuple(
        next(outputs) if layers else x if hot is None else torch.cat((x, hot), -1) for layers in nets
    )


def _mlps_of_layers(x: Tensor, hot: Optional, nets: Sequence[Layers]) -> Iterator[Tensor]:
    all_params, sizes, eps = flat(nets, hot)
    params, there = [p for p in all_params if p is not None], [p is not None for p in all_params]
    given = x.requires_grad or (hot is not None and hot.requires_grad)
    learned = [
        given or any(p is not None and p.requires_grad for layer in net for p in layer[:4]) for net in nets
    ]
    keep = [torch.is_grad_enabled() and wants for wants in learned]
    outputs = call("mlps", x, params, there, sizes, eps, keep)
    # Torch lets all outputs want a gradient if one does.
    return (y if wants else y.detach() for y, wants in zip(outputs, keep, strict=False))


def flat(nets: Sequence[Layers], hot: Optional = None) -> tuple[list[Optional], list[int], list[float]]:
    """What csrc/cpu/dense.h reads, with hot [..., K] the last inputs, if they come apart from the others.

    Tensors: hot, then those of each layer of each net; sizes: K, in, nets, then of each net its layers and out, norm,
    act of each; and eps of each layer.
    """
    params: list[Optional] = [hot]
    sizes = [0 if hot is None else hot.shape[-1], nets[0][0].weight.shape[-1], len(nets)]
    for layers in nets:
        if len(layers) > MAX_LAYERS:
            raise ValueError(f"mlp: {len(layers)} layers, at most {MAX_LAYERS} are served; split them")
        sizes.append(len(layers))
        for i, layer in enumerate(layers):
            params += layer[:4] if layer.norm != "none" else (*layer[:2], None, None)
            if layer.weight.dim() != 2:
                raise ValueError(
                    f"mlp: weight of layer {i} has shape {list(layer.weight.shape)}, expected [out, in]; "
                    'block-diagonal layers are served by fastdream.ops.load("reference")'
                )
            codes = code(NORMS, layer.norm, "norm"), code(ACTS, layer.act, "activation")
            sizes += (layer.weight.shape[0], *codes)
    return params, sizes, [layer.eps for layers in nets for layer in layers]


class _Net(NamedTuple):
    """One net in the flat lists."""

    sizes: list[int]  # its part of them
    params: slice
    eps: slice
    outs: list[int]  # widths of its layers
    kept: int  # how many numbers a row keeps for the gradients


def _nets(sizes: Sequence[int]) -> list[_Net]:
    nets, at, first = [], 3, 0
    for _ in range(sizes[2]):
        count = sizes[at]
        part = list(sizes[at : at + 1 + 3 * count])
        outs = part[1::3]
        kept = sum(outs[:-1] if part[-2:] == [0, 0] else outs)
        params = slice(1 + 4 * first, 1 + 4 * (first + count))
        nets.append(_Net(part, params, slice(first, first + count), outs, kept))
        at, first = at + len(part), first + count
    return nets


def check_nets(op: str, x: Tensor, params: Sequence[Optional], sizes: Sequence[int]) -> None:
    """ValueError unless the layers of the flat nets fit one another and x [..., in], in shape, dtype and device."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: x is {x.dtype}, expected torch.float32 or torch.float64")
    extra, inputs, *_ = sizes
    if x.dim() < 1 or x.shape[-1] + extra != inputs:
        beside = f" with {extra} features beside it" if extra else ""
        raise ValueError(
            f"{op}: x has shape {list(x.shape)}{beside}, expected [..., {inputs - extra}] as the first weight"
        )
    if params[0] is not None:
        check_float(op, x=x, hot=params[0])
        check_shape(op, "hot", params[0], *x.shape[:-1], extra)
    for net in _nets(sizes):
        _check_layers(op, x, params[net.params], inputs, net.outs)


def _check_layers(op: str, x: Tensor, params: Sequence[Optional], width: int, outs: Sequence[int]) -> None:
    like = x.dtype, x.device
    for i, out in enumerate(outs):
        for j, shape in enumerate(((out, width), (out,), (out,), (out,))):
            p = params[4 * i + j]
            if p is not None and (p.shape != shape or (p.dtype, p.device) != like):
                raise ValueError(
                    f"{op}: {_FIELDS[j]} of layer {i} is {_describe(p.shape, p.dtype, p.device)}, "
                    f"expected {_describe(shape, *like)}"
                )
        width = out


_FIELDS = ("weight", "bias", "scale", "shift")


def _describe(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
    return f"{list(shape)} {dtype} on {device}"


def _mlps_fake(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], keep: Flags
) -> list[Tensor]:
    """The output of every net, then what is kept of each."""
    check_nets("mlp", x, with_gaps(params, there), sizes)
    nets, lead = _nets(sizes), x.shape[:-1]
    kept = (net.kept if keeps else 0 for net, keeps in zip(nets, keep, strict=True))
    return [*(x.new_empty(*lead, net.outs[-1]) for net in nets), *(x.new_empty(n, *lead) for n in kept)]


def _mlps(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], keep: Flags
) -> list[Tensor]:
    outputs = _mlps_fake(x, params, there, sizes, eps, keep)
    kept = (y if keeps else None for y, keeps in zip(outputs[len(keep) :], keep, strict=True))
    tensors = (*contiguous(x, *with_gaps(params, there)), *outputs[: len(keep)], *kept)
    run("mlps", tensors, (rows_of(x)[0], *sizes), eps)
    return outputs


def _mlps_backward_fake(
    x: Tensor,
    params: Params,
    there: Flags,
    sizes: Sequence[int],
    eps: Sequence[float],
    grads: Params,
    kept: Params,
    wanted: Flags,
) -> list[Tensor]:
    check_nets("mlp_backward", x, with_gaps(params, there), sizes)
    for net, grad, z in zip(_nets(sizes), grads, kept, strict=True):
        check_float("mlp_backward", x=x, grad=grad, kept=z)
        check_shape("mlp_backward", "grad", grad, *x.shape[:-1], net.outs[-1])
        check_shape("mlp_backward", "kept", z, net.kept, *x.shape[:-1])
    return [empty_like(p) for p, want in zip((x, *params), wanted, strict=True) if want]


def _mlps_backward(*inputs: Any) -> list[Tensor]:
    gradients = _mlps_backward_fake(*inputs)
    x, params, there, sizes, eps, grads, kept, wanted = inputs
    d_x, *d_params = with_gaps(gradients, wanted)
    tensors = (*contiguous(x, *with_gaps(params, there), *grads), *kept)
    run("mlps_backward", (*tensors, d_x, *with_gaps(d_params, there)), (rows_of(x)[0], *sizes), eps)
    return gradients


def _save_mlps(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, params, *ctx.statics, keep = inputs
    ctx.save_for_backward(x, *output[len(keep) :], *params)
    # Those of what is kept never come, nor those of outputs that nothing used.
    ctx.set_materialize_grads(False)


def _mlps_gradient(ctx: Any, grads: Sequence[Optional]) -> tuple[Any, ...]:
    """Of those nets alone whose outputs have a gradient."""
    there, sizes, eps = ctx.statics
    nets = _nets(sizes)
    x, *saved = ctx.saved_tensors
    kept, params = saved[: len(nets)], saved[len(nets) :]
    used = [i for i in range(len(nets)) if grads[i] is not None]
    slots = [0, *(slot for i in used for slot in range(nets[i].params.start, nets[i].params.stop))]
    filled = [slot for slot in slots if there[slot]]
    place = {slot: at for at, slot in enumerate(slot for slot, has in enumerate(there) if has)}
    wanted = [ctx.needs_input_grad[0], *(ctx.needs_input_grad[1][place[slot]] for slot in filled)]
    d_x: Optional = None
    d_params: list[Optional] = [None] * len(params)
    if used:
        gradients = call(
            "mlps_backward",
            x,
            [params[place[slot]] for slot in filled],
            [there[slot] for slot in slots],
            [*sizes[:2], len(used), *(size for i in used for size in nets[i].sizes)],
            [value for i in used for value in eps[nets[i].eps]],
            [grads[i] for i in used],
            [kept[i] for i in used],
            wanted,
        )
        d_x, *some = with_gaps(gradients, wanted)
        for slot, gradient in zip(filled, some, strict=True):
            d_params[place[slot]] = gradient
    return d_x, d_params, None, None, None, None


_NETS = "Tensor x, Tensor[] params, bool[] there, int[] sizes, float[] eps"
register_once_differentiable(
    register(f"mlps({_NETS}, bool[] keep) -> Tensor[]", _mlps, _mlps_fake),
    register(
        f"mlps_backward({_NETS}, Tensor[] grads, Tensor[] kept, bool[] wanted) -> Tensor[]",
        _mlps_backward,
        _mlps_backward_fake,
    ),
    _mlps_gradient,
    _save_mlps,
    "mlp",
)
