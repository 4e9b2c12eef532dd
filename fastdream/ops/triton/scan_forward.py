"""The forward scan of a posterior over T steps: about nine launches before it, four a step (DreamerV1's core: three).

What does not depend on the state is computed before: weights in the dtype of products, the actions' part of the core,
the embeddings' part of the posterior's first layer. A step is two kernels of the core (DreamerV1's: one),
`block_product` for all products of the new deter, and `posterior`; every hidden layer more than the usual one is a
kernel more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Categorical
from fastdream.ops.triton.block_product import Normed, block_product, product_tiles
from fastdream.ops.triton.core_forward import CoreForward, core_forward
from fastdream.ops.triton.enter import Entering, enter_first
from fastdream.ops.triton.posterior import PosteriorTiles, posterior, posterior_tiles
from fastdream.ops.triton.scan_model import Model, Sizes, Weights, packed, sizes_of, stacked_tiles
from fastdream.ops.triton.scan_saved import Outputs, Saved, allocate, at


def forward_scan(
    model: Model,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor | None,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> tuple[Outputs, Saved]:
    """Inputs as of `observe`, contiguous, floats of deter's dtype but for action and noise, which have any.

    embed: None where the net sees deter alone, as the prior does.
    """
    sizes = sizes_of(model, len(deter), deter.itemsize)
    outputs, saved = allocate(model, sizes, deter, action)
    if reset.numel():
        weights = packed(model, sizes, deter.dtype)
        core = core_forward(model, sizes, weights, action, reset, saved)
        arriving = _entering(model, sizes, core, reset, saved)
        arrived = _enter(model, sizes, weights, deter, stoch, reset, saved, arriving[0])
        seen = _seen(model, sizes, weights, reset, embed)
        _steps(model, sizes, weights, core, deter, seen, noise, index, arriving, arrived, outputs, saved)
    return outputs, saved


def _seen(
    model: Model, sizes: Sizes, weights: Weights, reset: Tensor, embed: Tensor | None
) -> Sequence[Tensor | None]:
    """The embeddings' part of the posterior's first layer, and its bias: [B, U] of every step, None for zero."""
    bias = weights.post_bias
    if embed is None:
        return [None if bias is None else bias.expand(len(reset), -1)] * reset.shape[1]
    of_embed = weights.post[0][:, 0 if model.absolute else sizes.deter :].t()
    flat = embed.flatten(0, 1)
    seen = flat @ of_embed if bias is None else torch.addmm(bias, flat, of_embed)
    return seen.unflatten(0, reset.shape).unbind(1)


def _enter(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    deter: Tensor,
    stoch: Tensor,
    reset: Tensor,
    saved: Saved,
    first: Entering,
) -> Tensor:
    """x of the first step. Returns the counters of `posterior`."""
    rows, itemsize = len(deter), deter.itemsize
    if isinstance(model.core, BlockGRU):
        own, tiles = weights.stacked.t()[None], stacked_tiles(rows, sizes.width, itemsize)
        block_product(deter, reset[:, 0], own, None, None, None, saved.stacked[:, 0], None, "none", tiles)
    cut = _cut(model, sizes, rows, itemsize)
    arrived = deter.new_empty(-(-rows // cut.rows), dtype=torch.int32)
    enter_first(stoch.flatten(1) @ weights.stoch.t(), arrived, first, cut.rows, *model.stoch[4:])
    return arrived


def _cut(model: Model, sizes: Sizes, rows: int, itemsize: int) -> PosteriorTiles:
    return posterior_tiles(rows, model.post[-1].weight.shape[1], sizes.units, model.latent, itemsize)


def _entering(model: Model, sizes: Sizes, core: CoreForward, reset: Tensor, saved: Saved) -> list[Entering]:
    """What `enter` reads and writes for each step."""
    own, stoch = model.core.deter if isinstance(model.core, BlockGRU) else None, model.stoch
    vectors = own[1:4] if own else (None,) * 3
    steps = zip(reset.unbind(1), core.base().unbind(1), saved.stoch.unbind(1), saved.x.unbind(1), strict=True)
    return [
        Entering(
            b_reset,
            saved.stacked[:, t, sizes.own :] if own else None,
            *vectors,
            at(saved.own_sums, t) if own else None,
            base,
            pre,
            stoch.scale,
            stoch.shift,
            at(saved.stoch_sums, t),
            x,
        )
        for t, (b_reset, base, pre, x) in enumerate(steps)
    ]


def _steps(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    core: CoreForward,
    deter: Tensor,
    seen: Sequence[Tensor | None],
    noise: Tensor | None,
    index: Tensor | None,
    arriving: list[Entering],
    arrived: Tensor,
    outputs: Outputs,
    saved: Saved,
) -> None:
    batch, length = outputs.deter.shape[:2]
    own = weights.stacked.t()[None]
    tiles = stacked_tiles(batch, sizes.width, deter.itemsize)._replace(n=sizes.tile)
    cut = _cut(model, sizes, batch, deter.itemsize)
    steps = zip(
        outputs.deter.unbind(1),
        outputs.stoch.flatten(2).unbind(1),
        outputs.logit.flatten(2).unbind(1),
        outputs.index.unbind(1),
        saved.stacked.unbind(1)[1:],
        seen,
        strict=True,
    )
    for t, (b_deter, b_stoch, b_logit, b_index, b_stacked, b_seen) in enumerate(steps):
        core.step(t, deter, b_deter)
        deter, sums = b_deter, at(saved.post_sums, t)
        block_product(deter, None, own, None, None, b_seen, b_stacked, sums, model.post[0].norm, tiles)
        pre, normed = b_stacked[:, : sizes.hidden], Normed(model.post[0], sums, sizes.tile)
        for layer, weight, later, later_sums in zip(
            model.post[1:-1], weights.post[1:-1], saved.later, saved.later_sums, strict=True
        ):
            before, pre, sums = pre, later[:, t], at(later_sums, t)
            base = None if layer.bias is None else layer.bias.expand(batch, -1)
            later_cut = product_tiles(batch, len(weight), len(weight), deter.itemsize)
            block_product(
                before, None, weight.t()[None], None, None, base, pre, sums, layer.norm, later_cut, normed
            )
            normed = Normed(layer, sums, later_cut.n)
        posterior(
            pre,
            normed,
            model.post[-1],
            weights.post[-1],
            model.latent,
            None if noise is None else noise[:, t],
            None if index is None else index[:, t],
            b_logit,
            b_stoch,
            b_index if isinstance(model.latent, Categorical) else None,
            arrived,
            weights.of_stoch if t + 1 < length else None,
            arriving[min(t + 1, length - 1)],
            model.stoch,
            cut,
        )
