"""Linear maps, norms and activations: the layer from which every network is built."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.params import Act, Feat, Layer, Layers, Norm

_ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "elu": F.elu,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def upcast(x: Tensor) -> Tensor:
    """x in float32 at least: half precision widens, float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def match(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, without a call into torch where it already is: inside a scan even a no-op costs."""
    return x if x.dtype == dtype else x.to(dtype)


def _normalize(x: Tensor, scale: Tensor | None, shift: Tensor | None, norm: Norm, eps: float) -> Tensor:
    """The norm in float32 at least. scale and shift may have further leading axes that broadcast."""
    if norm == "none":
        return x
    y = upcast(x)
    if norm == "rms":
        y = F.rms_norm(y, y.shape[-1:], None, eps)
    elif norm == "layer":
        # Two passes over x; the official E[x^2] - E[x]^2, floored at 0, differs only by its rounding error.
        y = F.layer_norm(y, y.shape[-1:], None, None, eps)
    else:
        raise ValueError(f"unknown norm {norm!r}; choose none, rms or layer")
    if scale is not None:
        y = y * match(scale, y.dtype)
    if shift is not None:
        y = y + match(shift, y.dtype)
    return match(y, x.dtype)


def _activate(x: Tensor, act: Act) -> Tensor:
    if act == "none":
        return x
    if act not in _ACTS:
        raise ValueError(f"unknown activation {act!r}; choose none, {', '.join(_ACTS)}")
    return _ACTS[act](x)


def norm_act(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """Norm over the last axis, then activation.

    x [..., N]; scale, shift [N] float32 or None for 1 and 0. rms: x * rsqrt(mean(x^2) + eps) * scale.
    layer: (x - mean) * rsqrt(var + eps) * scale + shift with the biased variance. The norm works in
    float32 at least; its result is cast to x.dtype before the activation. gelu is the tanh form.
    Returns [..., N] like x. Raises ValueError for an unknown norm or activation.
    Source: DreamerV3 `nets.Norm` (eps 1e-4), DreamerV2's GRU (layer, eps 1e-3).
    """
    return _activate(_normalize(x, scale, shift, norm, eps), act)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] through a dense weight [out, in] or a block-diagonal one [g, in / g, out / g].

    weight and bias [out] are cast to x.dtype. The g blocks of input and output are contiguous.
    Returns [..., out] in x.dtype, also where autocast multiplies in another.
    """
    weight = match(weight, x.dtype)
    bias = None if bias is None else match(bias, x.dtype)
    if weight.ndim == 2:
        return match(F.linear(x, weight, bias), x.dtype)
    blocks, width, out = weight.shape
    grouped = x.reshape(-1, blocks, width).transpose(0, 1)
    return grouped_linear(grouped, weight, bias).transpose(0, 1).reshape(*x.shape[:-1], blocks * out)


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Block-diagonal map with the blocks in front: x [g, N, i], weight [g, i, o], bias [g * o] -> [g, N, o]."""
    if bias is None:
        return match(torch.bmm(x, weight), x.dtype)
    return match(torch.baddbmm(bias.view(weight.shape[0], 1, -1), x, weight), x.dtype)


def added(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x [N, out] and the product of y [N, in] with weight [out, in], all of one dtype: [N, out] in it."""
    return match(torch.addmm(x, y, weight.t()), x.dtype)


def dense(x: Tensor, layer: Layer) -> Tensor:
    """`linear`, then `norm_act`, of one Layer. x [..., in] -> [..., out] in x.dtype."""
    x = linear(x, layer.weight, layer.bias)
    return norm_act(x, layer.scale, layer.shift, layer.norm, layer.act, layer.eps)


def mlp(x: Tensor | Feat, layers: Layers) -> Tensor:
    """x [..., in] through `dense` layers one after the other -> [..., out] in x.dtype."""
    if isinstance(x, Feat):
        x, layers = _joined(x, layers)
    for layer in layers:
        x = dense(x, layer)
    return x


def mlps(x: Tensor | Feat, nets: Sequence[Layers]) -> tuple[Tensor, ...]:
    """x [..., in] through several `mlp`s of their own -> what each gives, [..., out] in x.dtype."""
    return tuple(mlp(x, layers) for layers in nets)


def _joined(feat: Feat, layers: Layers) -> tuple[Tensor, Layers]:
    """The features through the first layer, and the other layers.

    The two parts of a dense weight multiply the two parts of the features, which costs less than joining these.
    """
    if not layers or layers[0].weight.dim() != 2:
        return torch.cat(feat, -1), layers
    first, width = layers[0], feat.deter.shape[-1]
    of_deter, of_stoch = first.weight.split([width, first.weight.shape[1] - width], 1)
    x = linear(feat.deter, of_deter, first.bias) + linear(feat.stoch, of_stoch)
    return norm_act(x, first.scale, first.shift, first.norm, first.act, first.eps), layers[1:]


def trunk(layers: Layers, outs: Sequence[Layer]) -> Layers:
    """What all of `outs` on top of the layers have in common: everything, where there is but one."""
    return (*layers, *outs) if len(outs) == 1 else layers


def branches(
    x: Tensor, outs: Sequence[Layer], mlps: Callable[..., tuple[Tensor, ...]] = mlps
) -> tuple[Tensor, ...]:
    """What each of `outs` gives, from what their `trunk` gave."""
    return (x,) if len(outs) == 1 else mlps(x, [(out,) for out in outs])


def mlp_outputs(
    x: Tensor | Feat,
    layers: Layers,
    outs: Sequence[Layer],
    mlps: Callable[..., tuple[Tensor, ...]] = mlps,
) -> tuple[Tensor, ...]:
    """x through the layers and then through each of `outs`."""
    return branches(mlps(x, (trunk(layers, outs),))[0], outs, mlps)


def cast(layer: Layer, dtype: torch.dtype) -> Layer:
    """The layer with weight and bias in `dtype`, so that a scan casts them once; the norm's stay."""
    bias = None if layer.bias is None else match(layer.bias, dtype)
    return layer._replace(weight=match(layer.weight, dtype), bias=bias)
