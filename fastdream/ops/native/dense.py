"""mlp: a chain of dense layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.layers import Flags, Optional, code, contiguous, rows_of, spread
from fastdream.ops.native.library import (
    check_float,
    check_shape,
    empty_like,
    register,
    register_once_differentiable,
    run,
)
from fastdream.ops.native.params import ACTS, NORMS
from fastdream.ops.params import Feat, Layers

MAX_LAYERS = 16  # kMaxLayers in csrc/cpu/dense.h

Params = Sequence[Tensor]


def mlp(x: Tensor | Feat, layers: Layers) -> Tensor:
    """As `fastdream.ops.reference.mlp`, all float32 or all float64, of dense layers alone. Differentiable once.

    The one-hots of a `Feat` are multiplied entry by entry, so that zeros cost nothing. Raises ValueError for
    block-diagonal layers and for more than 16 of them.
    """
    x, hot = (x.deter, x.stoch) if isinstance(x, Feat) else (x, None)
    if not layers:
        return x if hot is None else torch.cat((x, hot), -1)
    all_params, sizes, eps = flat(layers, hot)
    params, there = [p for p in all_params if p is not None], [p is not None for p in all_params]
    keep = torch.is_grad_enabled() and any(p.requires_grad for p in (x, *params))
    return torch.ops.fastdream.mlp(x, params, there, sizes, eps, keep)[0]


def flat(layers: Layers, hot: Optional = None) -> tuple[list[Optional], list[int], list[float]]:
    """What csrc/cpu/dense.h reads, with hot [..., K] the last inputs, if they come apart from the others.

    Tensors: hot, then those of each layer; sizes: K, layers, in, then out, norm, act of each; and eps of each.
    """
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"mlp: {len(layers)} layers, at most {MAX_LAYERS} are served; split them")
    params: list[Optional] = [hot]
    sizes = [0 if hot is None else hot.shape[-1], len(layers), layers[0].weight.shape[-1]]
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
    extra, _, width, *_ = sizes
    if x.dim() < 1 or x.shape[-1] + extra != width:
        beside = f" with {extra} features beside it" if extra else ""
        raise ValueError(
            f"{op}: x has shape {list(x.shape)}{beside}, expected [..., {width - extra}] as the first weight"
        )
    like = x.dtype, x.device
    if params[0] is not None:
        check_float(op, x=x, hot=params[0])
        check_shape(op, "hot", params[0], *x.shape[:-1], extra)
    for i, out in enumerate(sizes[3::3]):
        for j, shape in enumerate(((out, width), (out,), (out,), (out,)), 4 * i):
            p = params[1 + j]
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
    check_layers("mlp", x, spread(params, there), sizes)
    outs, linear = sizes[3::3], list(sizes[-2:]) == [0, 0]
    kept = sum(outs[:-1] if linear else outs) if keep else 0
    return x.new_empty(*x.shape[:-1], outs[-1]), x.new_empty(kept, *x.shape[:-1])


def _mlp(
    x: Tensor, params: Params, there: Flags, sizes: Sequence[int], eps: Sequence[float], keep: bool
) -> tuple[Tensor, Tensor]:
    y, kept = _mlp_fake(x, params, there, sizes, eps, keep)
    tensors = (x.contiguous(), *contiguous(spread(params, there)), y, kept if keep else None)
    run("mlp", tensors, (rows_of(x)[0], *sizes), eps)
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
    check_layers("mlp_backward", x, spread(params, there), sizes)
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
    d_x, *d_params = spread(gradients, wanted)
    inputs = (x.contiguous(), *contiguous(spread(params, there)), grad.contiguous(), kept)
    run("mlp_backward", (*inputs, d_x, *spread(d_params, there)), (rows_of(x)[0], *sizes), eps)
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
    d_x, *d_params = spread(gradients, wanted)
    return d_x, d_params, None, None, None, None


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
