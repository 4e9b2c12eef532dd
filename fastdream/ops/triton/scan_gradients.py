"""Gradients of a scan's parameters and inputs, from those of its layers: a few products over all B*T rows at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Layer
from fastdream.ops.triton import layers as _registered  # noqa: F401
from fastdream.ops.triton.scan_backward import Grads
from fastdream.ops.triton.scan_forward import Outputs, Saved
from fastdream.ops.triton.scan_model import Sizes, Weights


class Inputs(NamedTuple):
    """Of the scan, or gradients of them."""

    deter: Tensor | None  # [B, D]
    stoch: Tensor | None  # [B, S*C]
    action: Tensor | None  # [B, T, A]
    embed: Tensor | None  # [B, T, E]


def through_norm(layer: Layer, x: Tensor, d_n: Tensor) -> tuple[Tensor, Layer]:
    """Gradient of pre-activations x [N, W], and a Layer of those of bias, scale and shift; the activation is done."""
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    arguments = x, scale, shift, layer.norm, "none", layer.eps, d_n
    d_x, *vectors = torch.ops.fastdream.triton_norm_act_backward(
        *arguments, [scale is not None, shift is not None]
    )
    d_scale = vectors.pop(0) if scale is not None else None
    d_bias = None if layer.bias is None else d_x.sum(0, dtype=torch.float32)
    return d_x, Layer(d_x, d_bias, d_scale, vectors.pop(0) if vectors else None)


def activated(layer: Layer, x: Tensor) -> Tensor:
    """act(norm(x)) of pre-activations x [N, W]."""
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    return torch.ops.fastdream.triton_norm_act(x, scale, shift, layer.norm, layer.act, layer.eps)


def gradients(
    core: BlockGRU,
    post: tuple[Layer, Layer],
    sizes: Sizes,
    weights: Weights,
    inputs: Inputs,
    reset: Tensor,
    outputs: Outputs,
    saved: Saved,
    grads: Grads,
) -> tuple[list[Layer], Inputs]:
    """Gradients of the layers deter, stoch, action, hidden, gates, post[0], post[1] as Layers, and of the inputs."""
    (first, last), hidden, units, block = post, core.hidden[0], sizes.units, sizes.block
    batch, length = reset.shape
    d_post, post_grads = through_norm(first, _flat(saved.stacked[:, 1:, : sizes.hidden]), _flat(grads.post))
    own = _flat(saved.stacked[:, :length, sizes.own :])
    d_own, own_grads = through_norm(core.deter, own, _flat(grads.x[..., :units]))
    d_stoch, stoch_grads = through_norm(core.stoch, _flat(saved.stoch), _flat(grads.x[..., units:]))
    d_hidden, hidden_grads = through_norm(hidden, _flat(saved.hidden), _flat(grads.hidden))
    # The dense map of all blocks as one matrix, for the gradient of the action's layer alone.
    of_action = weights.hidden[:, block + 2 * units :].transpose(0, 1).flatten(1)
    act = core.action
    action_pre = _flat(saved.action)
    d_x = d_hidden @ of_action.t()
    scale, shift = (None, None) if act.norm == "none" else (act.scale, act.shift)
    d_action, *vectors = torch.ops.fastdream.triton_norm_act_backward(
        action_pre, scale, shift, act.norm, act.act, act.eps, d_x, [scale is not None, shift is not None]
    )
    d_scale = vectors.pop(0) if scale is not None else None
    d_bias = None if act.bias is None else d_action.sum(0, dtype=torch.float32)
    action_grads = Layer(d_action, d_bias, d_scale, vectors.pop(0) if vectors else None)

    assert inputs.deter is not None and inputs.stoch is not None and inputs.embed is not None
    before = _before(inputs.deter, outputs.deter, reset)
    stoch_before = _before(inputs.stoch, outputs.stoch.flatten(2), reset)
    d_gates, d_logit = _flat(grads.gates), _flat(grads.logit)
    y = _blocks(activated(hidden, _flat(saved.hidden)), sizes.blocks)
    h = activated(first, _flat(saved.stacked[:, 1:, : sizes.hidden]))
    by_block = _blocks(d_hidden, sizes.blocks)
    of_hidden = weights.hidden.new_empty(weights.hidden.shape)
    torch.bmm(_blocks(before, sizes.blocks).mT, by_block, out=of_hidden[:, :block])
    x = _flat(saved.x).t().expand(sizes.blocks, -1, -1)
    torch.bmm(x, by_block, out=of_hidden[:, block:])
    of_post = weights.post.new_empty(weights.post.shape)
    torch.mm(d_post.t(), _flat(outputs.deter), out=of_post[:, : sizes.deter])
    torch.mm(d_post.t(), _flat(inputs.embed), out=of_post[:, sizes.deter :])
    layers = [
        own_grads._replace(weight=d_own.t() @ before),
        stoch_grads._replace(weight=d_stoch.t() @ stoch_before),
        action_grads._replace(weight=d_action.t() @ _flat(saved.clipped)),
        hidden_grads._replace(weight=of_hidden),
        Layer(torch.bmm(y.mT, _blocks(d_gates, sizes.blocks)), d_gates.sum(0, dtype=torch.float32)),
        post_grads._replace(weight=of_post),
        Layer(d_logit.t() @ h, d_logit.sum(0, dtype=torch.float32)),
    ]
    kept = ~reset[:, :1]
    first_own, first_stoch = (x.unflatten(0, (batch, length))[:, 0] * kept for x in (d_own, d_stoch))
    d_inputs = Inputs(
        grads.deter + first_own @ weights.stacked[sizes.own :],
        first_stoch @ weights.stoch,
        _action(d_action @ weights.action, inputs.action, reset),
        (d_post @ weights.post[:, sizes.deter :]).unflatten(0, (batch, length)),
    )
    return layers, d_inputs


def _flat(x: Tensor) -> Tensor:
    """[B, T, N] -> [B*T, N]."""
    return x.reshape(-1, x.shape[-1])


def _blocks(x: Tensor, blocks: int) -> Tensor:
    """[N, W] -> [g, N, W / g]."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def _before(first: Tensor, after: Tensor, reset: Tensor) -> Tensor:
    """What each step began with, [B*T, N]: `first`, then all but the last of `after` [B, T, N], zero where reset."""
    before = torch.cat([first.unsqueeze(1), after[:, :-1]], 1)
    return _flat(before.masked_fill_(reset.unsqueeze(-1), 0.0))


def _action(d_clipped: Tensor, action: Tensor | None, reset: Tensor) -> Tensor:
    """Through the clipping to [-1, 1], whose scale has no gradient, and the reset."""
    assert action is not None
    d_action = d_clipped.unflatten(0, reset.shape) / action.abs().clamp_min(1)
    return d_action.masked_fill_(reset.unsqueeze(-1), 0.0)
