"""Gradients of a scan's parameters and inputs, from those of its layers: a few products over all B*T rows at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import GRU, BlockGRU, Layer, Layers
from fastdream.ops.triton import layers as _registered  # noqa: F401
from fastdream.ops.triton.config import WIDEST
from fastdream.ops.triton.scan_model import Model, Sizes, Weights
from fastdream.ops.triton.scan_saved import Grads, Outputs, Saved


class Inputs(NamedTuple):
    """Of the scan, or gradients of them."""

    deter: Tensor  # [B, D]
    stoch: Tensor  # [B, S*C]
    action: Tensor  # [B, T, A]
    embed: Tensor  # [B, T, E]


def through_norm(layer: Layer, x: Tensor, d_y: Tensor, act: str = "none") -> Layer:
    """Gradients of a layer as a Layer, of pre-activations x [N, W] in the place of its weight.

    d_y is that of act(norm(x)): without the activation for what the scan has taken through it already.
    """
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    if x.shape[-1] > WIDEST:
        assert act == "none", "only DreamerV2's gates are so wide"
        return _through_wide_norm(layer, x, d_y)
    wanted = [scale is not None, shift is not None]
    d_x, *vectors = torch.ops.fastdream.triton_norm_act_backward(
        x, scale, shift, layer.norm, act, layer.eps, d_y, wanted
    )
    d_scale = vectors.pop(0) if scale is not None else None
    return Layer(d_x, _bias(layer, d_x), d_scale, vectors[0] if vectors else None)


def _through_wide_norm(layer: Layer, x: Tensor, d_y: Tensor) -> Layer:
    """The same of rows that no program holds, in PyTorch: of DreamerV2's core at sizes from 100m."""
    dtype, x, d_y = x.dtype, x.float(), d_y.float()
    if layer.norm == "none":
        d_x, d_scale = d_y, None
    else:
        mean = x.mean(-1, keepdim=True) if layer.norm == "layer" else 0.0
        rstd = ((x - mean).square().mean(-1, keepdim=True) + layer.eps).rsqrt()
        hat, d_hat = (x - mean) * rstd, d_y if layer.scale is None else d_y * layer.scale
        d_x = d_hat - hat * (hat * d_hat).mean(-1, keepdim=True)
        d_x = rstd * (d_x - d_hat.mean(-1, keepdim=True) if layer.norm == "layer" else d_x)
        d_scale = None if layer.scale is None else (d_y * hat).sum(0)
    d_shift = None if layer.norm == "none" or layer.shift is None else d_y.sum(0)
    d_x = d_x.to(dtype)
    return Layer(d_x, _bias(layer, d_x), d_scale, d_shift)


def activated(layer: Layer, x: Tensor) -> Tensor:
    """act(norm(x)) of pre-activations x [N, W]."""
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    return torch.ops.fastdream.triton_norm_act(x, scale, shift, layer.norm, layer.act, layer.eps)


def gradients(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    inputs: Inputs,
    reset: Tensor,
    outputs: Outputs,
    saved: Saved,
    grads: Grads,
) -> tuple[Layers, Inputs]:
    """Gradients of all layers in the order in which `native.params` lists them, as Layers, and of the inputs."""
    d_stoch = through_norm(model.stoch, flat(saved.stoch), flat(grads.x[..., -sizes.units :]))
    before = _before(inputs.deter, outputs.deter, reset)
    stoch_before = _before(inputs.stoch, outputs.stoch.flatten(2), reset)
    dense = _plain_core if isinstance(model.core, GRU) else _dense_core
    core = _block_core if isinstance(model.core, BlockGRU) else dense
    core_layers, d_deter, d_action = core(
        model, sizes, weights, reset, before, stoch_before, d_stoch, saved, grads
    )
    post_layers, d_embed = _posterior(model, sizes, weights, inputs.embed, outputs, saved, grads)
    first_stoch = _first(d_stoch.weight, reset) @ weights.stoch
    # The other cores take actions as they are.
    scale = inputs.action.abs().clamp_min(1) if isinstance(model.core, BlockGRU) else 1
    d_action = (d_action.unflatten(0, reset.shape) / scale).masked_fill_(reset.unsqueeze(-1), 0.0)
    return (*core_layers, *post_layers), Inputs(d_deter, first_stoch, d_action, d_embed)


def _block_core(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    reset: Tensor,
    before: Tensor,
    stoch_before: Tensor,
    d_stoch: Layer,
    saved: Saved,
    grads: Grads,
) -> tuple[Layers, Tensor, Tensor]:
    """Gradients of the core's layers, of the initial deter, of the clipped actions."""
    core, blocks, block, units = model.core, sizes.blocks, sizes.block, sizes.units
    assert isinstance(core, BlockGRU)
    own = saved.stacked[:, :-1, sizes.own :]
    d_own = through_norm(core.deter, flat(own), flat(grads.x[..., :units]))
    hidden, read = [], by_block(before, blocks)
    for i, layer in enumerate(core.hidden):
        d_hidden = through_norm(layer, flat(saved.hidden[i]), flat(grads.hidden[i]))
        d_pre = by_block(d_hidden.weight, blocks)
        d_weight = torch.empty_like(weights.hidden[i])
        torch.bmm(read.mT, d_pre, out=d_weight[:, : read.shape[-1]])
        if i == 0:
            first, x = d_hidden.weight, flat(saved.x).t().expand(blocks, -1, -1)
            torch.bmm(x, d_pre, out=d_weight[:, block:])
        hidden.append(d_hidden._replace(weight=d_weight))
        read = by_block(activated(layer, flat(saved.hidden[i])), blocks)
    # The actions' dense map of all blocks as one matrix.
    of_action = weights.hidden[0][:, block + 2 * units :].transpose(0, 1).flatten(1)
    d_action = through_norm(core.action, flat(saved.action), first @ of_action.t(), core.action.act)
    d_gates = flat(grads.gates)
    layers = (
        d_own._replace(weight=d_own.weight.t() @ before),
        d_stoch._replace(weight=d_stoch.weight.t() @ stoch_before),
        d_action._replace(weight=d_action.weight.t() @ flat(saved.clipped)),
        Layer(torch.bmm(read.mT, by_block(d_gates, blocks)), _bias(core.gates, d_gates)),
        *hidden,
    )
    d_deter = grads.deter + _first(d_own.weight, reset) @ weights.stacked[sizes.own :]
    return layers, d_deter, d_action.weight @ weights.action


def _dense_core(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    reset: Tensor,
    before: Tensor,
    stoch_before: Tensor,
    d_stoch: Layer,
    saved: Saved,
    grads: Grads,
) -> tuple[Layers, Tensor, Tensor]:
    """Gradients of the core's layers, of the initial deter, of the actions."""
    d_gates = through_norm(model.hidden[0], flat(saved.hidden[0]), flat(grads.hidden[0]))
    layers = (
        d_stoch._replace(weight=d_stoch.weight.t() @ torch.cat([stoch_before, flat(saved.clipped)], -1)),
        d_gates._replace(weight=d_gates.weight.t() @ torch.cat([flat(saved.x), before], -1)),
    )
    return layers, grads.deter, d_stoch.weight @ weights.action


def _plain_core(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    reset: Tensor,
    before: Tensor,
    stoch_before: Tensor,
    d_stoch: Layer,
    saved: Saved,
    grads: Grads,
) -> tuple[Layers, Tensor, Tensor]:
    """The same of a plain GRU, whose gates lie as `gru` says."""
    width, d_gates = sizes.deter, flat(grads.gates)
    of_input, of_deter, bias = (
        d_gates[:, : 3 * width],
        d_gates[:, width:],
        d_gates.sum(0, dtype=torch.float32),
    )
    layers = (
        Layer(of_deter.t() @ before, bias[width:]),
        d_stoch._replace(weight=d_stoch.weight.t() @ torch.cat([stoch_before, flat(saved.clipped)], -1)),
        Layer((of_input.t() @ flat(saved.x)).roll(-width, 0), bias[: 3 * width].roll(-width)),
    )
    return layers, grads.deter, d_stoch.weight @ weights.action


def _posterior(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    embed: Tensor,
    outputs: Outputs,
    saved: Saved,
    grads: Grads,
) -> tuple[Layers, Tensor]:
    """Gradients of the posterior's layers and of the embeddings."""
    split = 0 if model.absolute else sizes.deter
    first, *others = model.post
    pre = flat(saved.stacked[:, 1:, : sizes.hidden])
    d_first = through_norm(first, pre, flat(grads.post[0]))
    d_weight = torch.empty_like(weights.post[0])
    torch.mm(d_first.weight.t(), flat(outputs.deter), out=d_weight[:, :split]) if split else None
    torch.mm(d_first.weight.t(), flat(embed), out=d_weight[:, split:])
    layers, read = [d_first._replace(weight=d_weight)], activated(first, pre)
    for i, layer in enumerate(others[:-1]):
        pre = flat(saved.later[i])
        d_layer = through_norm(layer, pre, flat(grads.post[i + 1]))
        layers.append(d_layer._replace(weight=d_layer.weight.t() @ read))
        read = activated(layer, pre)
    d_logit = flat(grads.logit)
    layers.append(Layer(d_logit.t() @ read, _bias(others[-1], d_logit)))
    return tuple(layers), (d_first.weight @ weights.post[0][:, split:]).unflatten(0, embed.shape[:2])


def flat(x: Tensor) -> Tensor:
    """[B, T, N] -> [B*T, N]."""
    return x.reshape(-1, x.shape[-1])


def by_block(x: Tensor, blocks: int) -> Tensor:
    """[N, W] -> [g, N, W / g]."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def _bias(layer: Layer, gradient: Tensor) -> Tensor | None:
    return None if layer.bias is None else gradient.sum(0, dtype=torch.float32)


def _first(x: Tensor, reset: Tensor) -> Tensor:
    """The rows [B, N] of the first step, zero where reset, of x [B*T, N]."""
    return x.unflatten(0, reset.shape)[:, 0].masked_fill(reset[:, :1], 0.0)


def _before(first: Tensor, after: Tensor, reset: Tensor) -> Tensor:
    """What each step began with, [B*T, N]: `first`, then all but the last of `after` [B, T, N], zero where reset."""
    before = torch.cat([first.unsqueeze(1), after[:, :-1]], 1)
    return flat(before.masked_fill_(reset.unsqueeze(-1), 0.0))
