"""Gradients of a scan's parameters and inputs, from those of its layers: a few products over all B*T rows at once.

What nobody wants is not computed: the model's layers are frozen in a dream, and no state before a batch learns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Layer, Layers
from fastdream.ops.triton.core_gradients import core_gradients
from fastdream.ops.triton.layer_gradients import Pieces, activated, bias_gradient, first_rows, flat


class Inputs(NamedTuple):
    """Of the scan, or gradients of them."""

    deter: Tensor  # [B, D]
    stoch: Tensor  # [B, S*C]
    action: Tensor  # [B, T, A]
    embed: Tensor | None  # [B, T, E]


class Wanted(NamedTuple):
    """Which inputs want a gradient."""

    deter: bool
    stoch: bool
    action: bool
    embed: bool


def gradients(
    pieces: Pieces, inputs: Inputs, wanted: Wanted
) -> tuple[Layers, tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]]:
    """Gradients of all layers in the order in which `native.params` lists them, as Layers, and of the inputs.

    No layers if none learns, None for inputs that want none.
    """
    core, reset, weights = core_gradients(pieces), pieces.reset, pieces.weights
    layers, d_embed = _posterior(pieces, inputs.embed, wanted.embed)
    if pieces.learns:
        before = _before(inputs.deter, pieces.outputs.deter, reset)
        layers = *core.layers(before, _before(inputs.stoch, pieces.outputs.stoch.flatten(2), reset)), *layers
    d_action = _action(pieces, core.action, inputs.action) if wanted.action else None
    d_stoch = first_rows(core.stoch.weight, reset) @ weights.stoch if wanted.stoch else None
    return layers, (core.deter if wanted.deter else None, d_stoch, d_action, d_embed)


def _action(pieces: Pieces, d_action: Tensor, action: Tensor) -> Tensor:
    """That of actions from that of what the core takes of them, which DreamerV3's alone clips."""
    d_action = d_action.unflatten(0, pieces.reset.shape)
    if isinstance(pieces.model.core, BlockGRU):
        d_action = d_action / action.abs().clamp_min(1)
    return d_action.masked_fill(pieces.reset.unsqueeze(-1), 0.0)


def _posterior(pieces: Pieces, embed: Tensor | None, seen: bool) -> tuple[Layers, Tensor | None]:
    """Gradients of the posterior's layers if they learn, and of the embeddings if those are `seen` to want one."""
    if not (pieces.learns or seen):
        return (), None
    model, saved, grads, weight = pieces.model, pieces.saved, pieces.grads, pieces.weights.post[0]
    split = 0 if model.absolute else pieces.sizes.deter
    first, *others = model.post
    pre = flat(saved.stacked[:, 1:, : pieces.sizes.hidden])
    d_first = pieces.through_norm(first, pre, flat(grads.post[0]))
    d_embed = None
    if embed is not None and seen:
        d_embed = (d_first.weight @ weight[:, split:]).unflatten(0, embed.shape[:2])
    if not pieces.learns:
        return (), d_embed
    d_weight = torch.empty_like(weight)
    if split:
        torch.mm(d_first.weight.t(), flat(pieces.outputs.deter), out=d_weight[:, :split])
    if embed is not None:
        torch.mm(d_first.weight.t(), flat(embed), out=d_weight[:, split:])
    layers, read = [d_first._replace(weight=d_weight)], activated(first, pre)
    for i, layer in enumerate(others[:-1]):
        pre = flat(saved.later[i])
        d_layer = pieces.through_norm(layer, pre, flat(grads.post[i + 1]))
        layers.append(d_layer._replace(weight=d_layer.weight.t() @ read))
        read = activated(layer, pre)
    d_logit = flat(grads.logit)
    layers.append(Layer(d_logit.t() @ read, bias_gradient(others[-1], d_logit)))
    return tuple(layers), d_embed


def _before(first: Tensor, after: Tensor, reset: Tensor) -> Tensor:
    """What each step began with, [B*T, N]: `first`, then all but the last of `after` [B, T, N], zero where reset."""
    before = torch.cat([first.unsqueeze(1), after[:, :-1]], 1)
    return flat(before.masked_fill_(reset.unsqueeze(-1), 0.0))
