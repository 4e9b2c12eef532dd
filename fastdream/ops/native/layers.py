"""norm_act and mlp: layers of dense maps, norms and activations."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.library import (
    check_float,
    check_shape,
    empty_like,
    register,
    register_once_differentiable,
    run,
)
from fastdream.ops.native.params import ACTS, NORMS
from fastdream.ops.params import Act, Layers, Norm

MAX_LAYERS = 16  # kMaxLayers in csrc/cpu/dense.h

Optional = Tensor | None
Params = Sequence[Tensor]
Flags = Sequence[bool]


def code(known: Sequence[str], name: str, kind: str) -> int:
    """The number of a norm or an activation; ValueError names one that does not exist."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose {', '.join(known[:-1])} or {known[-1]}")
    return known.index(name)


def norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.norm_act`, all float32 or all float64. Differentiable once."""
    codes = code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    if norm == "none":
        scale = shift = None  # they belong to the norm
    return torch.ops.fastdream.norm_act(x, scale, shift, *codes, eps)


def mlp(x: Tensor, layers: Layers) -> Tensor:
    """As `fastdream.ops.reference.mlp`, all float32 or all float64, of dense layers alone. Differentiable once.

    Raises ValueError for block-diagonal layers and for more than 16 of them.
    """
    if not layers:
        return x
    all_params, sizes, eps = flat(layers)
    params, there = [p for p in all_params if p is not None], [p is not None for p in all_params]
    keep = torch.is_grad_enabled() and any(p.requires_grad for p in (x, *params))
    return torch.ops.fastdream.mlp(x, params, there, sizes, eps, keep)[0]


def flat(layers: Layers) -> tuple[list[Optional], list[int], list[float]]:
    """What csrc/cpu/dense.h reads: tensors, sizes (layers, in, then out, norm, act of each) and eps of each."""
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"mlp: {len(layers)} layers, at most {MAX_LAYERS} are served; split them")
    params: list[Optional] = []
    sizes = [len(layers), layers[0].weight.shape[-1]]
    for i, layer in enumerate(layers):
        params += layer[:4] if layer.norm != "none" else (*layer[:2], None, None)
        if layer.weight.dim() != 2:
            raise ValueError(
                f"mlp: weight of layer {i} has shape {list(layer.weight.shape)}, expected [out, in]; "
                'block-diagonal layers are served by fastdream.ops.load("reference")'
            )
        sizes += (layer.weight.shape[0], code(NORMS, layer.norm, "norm"), code(ACTS, layer.act, "activation"))
    return params, sizes, [layer.eps for layer in layers]


def check_layers(op: str, x: Tensor, params: Sequence[Optional], sizes: Sequence[int]) -> None:
    """ValueError unless the flat layers fit one another and x [..., in], in shape, dtype and device."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: x is {x.dtype}, expected torch.float32 or torch.float64")
    width = x.shape[-1] if x.dim() else 0
    if width != sizes[1]:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [..., {sizes[1]}] as the first weight")
    like = x.dtype, x.device
    for i, out in enumerate(sizes[2::3]):
        for j, shape in enumerate(((out, width), (out,), (out,), (out,)), 4 * i):
            p = params[j]
            if p is not None and (p.shape != shape or (p.dtype, p.device) != like):
                raise ValueError(
                    f"{op}: {_FIELDS[j % 4]} of layer {i} is {_describe(p.shape, p.dtype, p.device)}, "
                    f"expected {_describe(shape, *like)}"
                )
        width = out


_FIELDS = ("weight", "bias", "scale", "shift")


def _describe(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
    return f"{list(shape)} {dtype} on {device}"


def _mlp_fake(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], keep: bool
) -> tuple[Tensor, Tensor]:
    check_layers("mlp", x, _spread(params, there), sizes)
    outs, linear = sizes[2::3], list(sizes[-2:]) == [0, 0]
    kept = sum(outs[:-1] if linear else outs) if keep else 0
    return x.new_empty(*x.shape[:-1], outs[-1]), x.new_empty(kept, *x.shape[:-1])


def _mlp(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], keep: bool
) -> tuple[Tensor, Tensor]:
    y, kept = _mlp_fake(x, params, there, sizes, eps, keep)
    tensors = (x.contiguous(), *_contiguous(_spread(params, there)), y, kept if keep else None)
    run("mlp", tensors, (_rows(x)[0], *sizes), eps)
    return y, kept


def _mlp_backward_fake(
    x: Tensor,
    params: Params,
    there: Flags,
    sizes: Sequence[int],
    eps: Sequence[float],
    grad: Tensor,
    kept: Tensor,
    wanted: Flags,
) -> list[Tensor]:
    check_layers("mlp_backward", x, _spread(params, there), sizes)
    check_float("mlp_backward", x=x, grad=grad, kept=kept)
    check_shape("mlp_backward", "grad", grad, *x.shape[:-1], sizes[-3])
    return [empty_like(p) for p, want in zip((x, *params), wanted, strict=True) if want]


def _mlp_backward(
    x: Tensor,
    params: Params,
    there: Flags,
    sizes: Sequence[int],
    eps: Sequence[float],
    grad: Tensor,
    kept: Tensor,
    wanted: Flags,
) -> list[Tensor]:
    gradients = _mlp_backward_fake(x, params, there, sizes, eps, grad, kept, wanted)
    d_x, *d_params = _spread(gradients, wanted)
    inputs = (x.contiguous(), *_contiguous(_spread(params, there)), grad.contiguous(), kept)
    run("mlp_backward", (*inputs, d_x, *_spread(d_params, there)), (_rows(x)[0], *sizes), eps)
    return gradients


def _save_mlp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, params, *ctx.statics, _ = inputs
    ctx.save_for_backward(x, output[1], *params)
    ctx.set_materialize_grads(False)  # that of what is kept never comes


def _mlp_gradient(ctx: Any, grad: Optional, _: Optional) -> tuple[Any, ...]:
    x, kept, *params = ctx.saved_tensors
    if grad is None:
        return None, [None] * len(params), None, None, None, None
    wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    gradients = torch.ops.fastdream.mlp_backward(x, params, *ctx.statics, grad, kept, wanted)
    d_x, *d_params = _spread(gradients, wanted)
    return d_x, d_params, None, None, None, None


def _spread(tensors: Sequence[Optional], there: Flags) -> list[Optional]:
    """The tensors at the places that have one, in order."""
    each = iter(tensors)
    return [next(each) if has else None for has in there]


def _contiguous(params: Sequence[Optional]) -> list[Optional]:
    return [None if p is None else p.contiguous() for p in params]


def _rows(x: Tensor) -> tuple[int, int]:
    return math.prod(x.shape[:-1]), x.shape[-1]


_LAYERS = "Tensor x, Tensor[] params, bool[] there, int[] sizes, float[] eps"
register_once_differentiable(
    register(f"mlp({_LAYERS}, bool keep) -> (Tensor, Tensor)", _mlp, _mlp_fake),
    register(
        f"mlp_backward({_LAYERS}, Tensor grad, Tensor kept, bool[] wanted) -> Tensor[]",
        _mlp_backward,
        _mlp_backward_fake,
    ),
    _mlp_gradient,
    _save_mlp,
    "mlp",
)


def _check_norm_act(op: str, x: Tensor, scale: Optional, shift: Optional) -> None:
    given = {"x": x} | {name: p for name, p in (("scale", scale), ("shift", shift)) if p is not None}
    check_float(op, **given)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], expected [..., N]")
    for name, p in given.items():
        if name != "x":
            check_shape(op, name, p, x.shape[-1])


def _norm_act_fake(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    _check_norm_act("norm_act", x, scale, shift)
    return empty_like(x)


def _norm_act(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    y = _norm_act_fake(x, scale, shift, norm, act, eps)
    run("norm_act", (*_contiguous((x, scale, shift)), y), (norm, act, *_rows(x)), (eps,))
    return y


def _norm_act_backward_fake(
    x: Tensor,
    scale: Optional,
    shift: Optional,
    norm: int,
    act: int,
    eps: float,
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _check_norm_act("norm_act_backward", x, scale, shift)
    check_float("norm_act_backward", x=x, grad=grad)
    check_shape("norm_act_backward", "grad", grad, *x.shape)
    inputs = zip((x, scale, shift), (True, *wanted[1:]), strict=True)
    return [empty_like(p) for p, want in inputs if p is not None and want]


def _norm_act_backward(
    x: Tensor,
    scale: Optional,
    shift: Optional,
    norm: int,
    act: int,
    eps: float,
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    gradients = _norm_act_backward_fake(x, scale, shift, norm, act, eps, grad, wanted)
    outputs = _spread(gradients, (True, *wanted[1:]))
    inputs = _contiguous((x, scale, shift, grad))
    run("norm_act_backward", (*inputs, *outputs), (norm, act, *_rows(x)), (eps,))
    return gradients


def _save_norm_act(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, *ctx.statics = inputs
    ctx.present = scale is not None, shift is not None
    ctx.save_for_backward(x, *(p for p in (scale, shift) if p is not None))


def _norm_act_gradient(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
    x, *present = ctx.saved_tensors
    each = iter(present)
    scale, shift = (next(each) if there else None for there in ctx.present)
    # A norm with neither scale nor shift in it does not read them.
    wanted = [True, *ctx.needs_input_grad[1:3]]
    gradients = torch.ops.fastdream.norm_act_backward(x, scale, shift, *ctx.statics, grad, wanted)
    return (*_spread(gradients, wanted), None, None, None)


_NORM_ACT = "Tensor x, Tensor? scale, Tensor? shift, int norm, int act, float eps"
register_once_differentiable(
    register(f"norm_act({_NORM_ACT}) -> Tensor", _norm_act, _norm_act_fake),
    register(
        f"norm_act_backward({_NORM_ACT}, Tensor grad, bool[] wanted) -> Tensor[]",
        _norm_act_backward,
        _norm_act_backward_fake,
    ),
    _norm_act_gradient,
    _save_norm_act,
    "norm_act",
)
