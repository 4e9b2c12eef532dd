"""The forward scan of a posterior over T steps: nine launches before it, four a step.

What does not depend on the state is computed before: weights in the dtype of products, the layer of the actions and
its part of the hidden layer, the embeddings' part of the posterior's first layer. A step is `block_product` (hidden
layer), `block_gates` (new deter), `block_product` again (all products of the new deter) and `posterior`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Categorical, Layer
from fastdream.ops.triton.actions import actions
from fastdream.ops.triton.block_product import block_product, product_tiles
from fastdream.ops.triton.enter import Entering, enter_first
from fastdream.ops.triton.gates import block_gates, gates_tiles
from fastdream.ops.triton.posterior import posterior, posterior_tiles
from fastdream.ops.triton.rowwise import PLANES, row_tiles
from fastdream.ops.triton.scan_model import Sizes, packed, sizes_of, stacked_tiles


class Saved(NamedTuple):
    """What the backward scan reads beside inputs and outputs; pre-activations unless said otherwise."""

    clipped: Tensor  # [B, T, A] actions
    action: Tensor  # [B, T, H]
    stoch: Tensor  # [B, T, H]
    x: Tensor  # [B, T, 3H], activations of deter's, stoch's and the action's layer
    hidden: Tensor  # [B, T, D]
    gates: Tensor  # [B, T, 3D]
    stacked: (
        Tensor  # [B, T + 1, own + H]: at t + 1 the posterior's layer of step t, at t the core's own of step t
    )
    own_sums: Tensor  # [T, 1, planes, B]
    stoch_sums: Tensor  # [T, 1, planes, B]
    hidden_sums: Tensor  # [T, tiles, planes, B]
    post_sums: Tensor  # [T, tiles, planes, B]


class Outputs(NamedTuple):
    """Of the scan."""

    deter: Tensor  # [B, T, D]
    stoch: Tensor  # [B, T, S, C]
    logit: Tensor  # [B, T, S, C]
    index: Tensor  # [B, T, S] int64


def allocate(
    core: BlockGRU, post: tuple[Layer, Layer], latent: Categorical, deter: Tensor, action: Tensor
) -> tuple[Outputs, Saved]:
    """Memory of a scan's results."""
    (batch, length, width), lead = action.shape, action.shape[:2]
    sizes = sizes_of(core, post[0], batch, deter.itemsize)
    hidden_tile = product_tiles(batch, sizes.deter, sizes.block, deter.itemsize).n
    stacked = sizes.own + sizes.units
    post_tile = stacked_tiles(batch, sizes.hidden + sizes.units, deter.itemsize).n

    def sums(tiles: int, norm: str) -> Tensor:
        return deter.new_empty(length, tiles, PLANES[norm], batch, dtype=torch.float32)

    latents = *lead, latent.stoch, latent.classes
    outputs = Outputs(
        deter.new_empty(*lead, sizes.deter),
        deter.new_empty(latents),
        deter.new_empty(latents),
        deter.new_empty(latents[:-1], dtype=torch.int64),
    )
    saved = Saved(
        clipped=deter.new_empty(*lead, width),
        action=deter.new_empty(*lead, sizes.units),
        stoch=deter.new_empty(*lead, sizes.units),
        x=deter.new_empty(*lead, 3 * sizes.units),
        hidden=deter.new_empty(*lead, sizes.deter),
        gates=deter.new_empty(*lead, 3 * sizes.deter),
        stacked=deter.new_empty(batch, length + 1, stacked),
        own_sums=sums(1, core.deter.norm),
        stoch_sums=sums(1, core.stoch.norm),
        hidden_sums=sums(row_tiles(sizes.deter, sizes.block, hidden_tile), core.hidden[0].norm),
        post_sums=sums(row_tiles(stacked, stacked, post_tile), post[0].norm),
    )
    return outputs, saved


def forward(
    core: BlockGRU,
    post: tuple[Layer, Layer],
    latent: Categorical,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> tuple[Outputs, Saved]:
    """Inputs as of `observe`, contiguous, floats of deter's dtype but for action and noise, which have any."""
    outputs, saved = allocate(core, post, latent, deter, action)
    batch, length, _ = action.shape
    sizes = sizes_of(core, post[0], batch, deter.itemsize)
    if batch * length:
        _scan(core, post, latent, sizes, deter, stoch, action, embed, reset, noise, index, outputs, saved)
    return outputs, saved


def _scan(
    core: BlockGRU,
    post: tuple[Layer, Layer],
    latent: Categorical,
    sizes: Sizes,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
    outputs: Outputs,
    saved: Saved,
) -> None:
    (batch, length, _), itemsize = action.shape, deter.itemsize
    (hidden, gates), (first, last) = (core.hidden[0], core.gates), post
    block, units = sizes.block, sizes.units
    weights = packed(core, post, sizes, deter.dtype)
    of_deter, of_state = weights.hidden[:, :block], weights.hidden[:, block : block + 2 * units]

    x = saved.x.flatten(0, 1)[:, 2 * units :]
    flat_actions = saved.clipped.flatten(0, 1), saved.action.flatten(0, 1), x
    actions(action.flatten(0, 1), reset.flatten(), core.action, weights.action, *flat_actions)
    tiles = product_tiles(batch * length, sizes.deter, block, itemsize)
    base = _rows(hidden.bias, x, sizes.deter)
    entered = saved.hidden.flatten(0, 1)
    of_action = weights.hidden[:, block + 2 * units :]
    block_product(x, None, weights.hidden[:, :0], x, of_action, base, entered, None, "none", tiles)
    of_embed = weights.post[:, sizes.deter :].t()
    seen = embed.flatten(0, 1)
    seen = seen @ of_embed if weights.post_bias is None else torch.addmm(weights.post_bias, seen, of_embed)

    resets, stacked = reset.unbind(1), saved.stacked.unbind(1)
    own = weights.stacked.t()[None]
    stacked_cut = stacked_tiles(batch, sizes.hidden + units, itemsize)
    block_product(deter, resets[0], own, None, None, None, stacked[0], None, "none", stacked_cut)
    arriving = _entering(core, sizes, reset, saved)
    cut = posterior_tiles(sizes.hidden, latent.stoch, latent.classes, itemsize)
    arrived = deter.new_empty(-(-batch // cut.rows), dtype=torch.int32)
    product = stoch.flatten(1) @ weights.stoch.t()
    enter_first(product, arrived, arriving[0], cut.rows, *core.stoch[4:])

    hidden_cut = product_tiles(batch, sizes.deter, block, itemsize)
    gates_cut = gates_tiles(batch, sizes.deter, block, itemsize)
    steps = zip(
        saved.hidden.unbind(1),
        saved.gates.unbind(1),
        saved.x[..., : 2 * units].unbind(1),
        seen.unflatten(0, (batch, length)).unbind(1),
        outputs.deter.unbind(1),
        outputs.stoch.flatten(2).unbind(1),
        outputs.logit.flatten(2).unbind(1),
        outputs.index.unbind(1),
        strict=True,
    )
    for t, (b_hidden, b_gates, b_x, b_seen, b_deter, b_stoch, b_logit, b_index) in enumerate(steps):
        sums, post_sums = at(saved.hidden_sums, t), at(saved.post_sums, t)
        block_product(
            deter, resets[t], of_deter, b_x, of_state, b_hidden, b_hidden, sums, hidden.norm, hidden_cut
        )
        block_gates(
            b_hidden,
            sums,
            hidden.scale,
            hidden.shift,
            weights.gates,
            gates.bias,
            deter,
            resets[t],
            b_deter,
            b_gates,
            hidden.norm,
            hidden.act,
            hidden.eps,
            hidden_cut.n,
            gates_cut,
        )
        block_product(
            b_deter, None, own, None, None, b_seen, stacked[t + 1], post_sums, first.norm, stacked_cut
        )
        posterior(
            stacked[t + 1][:, : sizes.hidden],
            post_sums,
            post,
            weights.logit,
            latent,
            None if noise is None else noise[:, t],
            None if index is None else index[:, t],
            b_logit,
            b_stoch,
            b_index,
            arrived,
            weights.of_stoch if t + 1 < length else None,
            arriving[min(t + 1, length - 1)],
            core.stoch,
            stacked_cut.n,
            cut,
        )
        deter = b_deter


def at(sums: Tensor, t: int) -> Tensor | None:
    """The sums of one step, None where no norm needs any."""
    return sums[t] if sums.numel() else None


def _rows(bias: Tensor | None, like: Tensor, width: int) -> Tensor:
    """A bias as rows, as many as `like` has."""
    bias = like.new_zeros(width) if bias is None else bias
    return bias.expand(like.shape[0], -1)


def _entering(core: BlockGRU, sizes: Sizes, reset: Tensor, saved: Saved) -> list[Entering]:
    """What `enter` reads and writes for each step."""
    own, stoch = core.deter, core.stoch
    base = _rows(stoch.bias, saved.stoch, sizes.units)
    return [
        Entering(
            reset[:, t],
            saved.stacked[:, t, sizes.own :],
            own.bias,
            own.scale,
            own.shift,
            at(saved.own_sums, t),
            base,
            saved.stoch[:, t],
            stoch.scale,
            stoch.shift,
            at(saved.stoch_sums, t),
            saved.x[:, t],
        )
        for t in range(saved.stoch.shape[1])
    ]
