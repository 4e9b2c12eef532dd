"""The backward scan of a posterior: five launches a step, which carry the gradients of deter and stoch alone.

A step, from the last to the first: `logit_gradient`, `layer_gradient` (the posterior's first layer),
`block_gates_gradient` (all gradients of the new deter), `layer_gradient` (the hidden layer), `state_gradient`. Gradients
of parameters are products over all steps at once, after it: `scan_gradients`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Categorical, Layer
from fastdream.ops.triton.block_product import Tiles, product_tiles
from fastdream.ops.triton.gates_gradient import block_gates_gradient
from fastdream.ops.triton.layer_gradient import layer_gradient
from fastdream.ops.triton.logit_gradient import logit_gradient
from fastdream.ops.triton.rowwise_gradient import Later, empty_dots
from fastdream.ops.triton.scan_forward import Outputs, Saved, at
from fastdream.ops.triton.scan_model import Sizes, Weights, stacked_tiles
from fastdream.ops.triton.state_gradient import state_gradient


class Grads(NamedTuple):
    """Of what the scan computes, for all steps; those of layers before their norm's own gradient, see `rowwise`."""

    logit: Tensor  # [B, T, S*C]
    post: Tensor  # [B, T, U], d_n
    gates: Tensor  # [B, T, 3D]
    hidden: Tensor  # [B, T, D], d_n
    x: Tensor  # [B, T, 2H], d_n of deter's and stoch's layers
    deter: Tensor  # [B, D] float32, of the initial deter without what comes through its layer


def gradient_tiles(rows: int, width: int, segment: int, itemsize: int) -> Tiles:
    """Tiles of products whose first operand is made of two tensors while it is loaded."""
    tiles = product_tiles(min(rows, 16), width, segment, itemsize)
    return tiles._replace(k=128 // itemsize, warps=4)


def backward_scan(
    core: BlockGRU,
    post: tuple[Layer, Layer],
    latent: Categorical,
    sizes: Sizes,
    weights: Weights,
    deter: Tensor,
    reset: Tensor,
    outputs: Outputs,
    saved: Saved,
    d_deter: Tensor | None,
    d_stoch: Tensor | None,
    d_logit: Tensor | None,
) -> Grads:
    """Gradients of layers from those of the outputs, contiguous or None."""
    batch, length, width = saved.hidden.shape
    units, itemsize = sizes.units, deter.itemsize
    grads = Grads(
        deter.new_empty(batch, length, latent.stoch * latent.classes),
        deter.new_empty(batch, length, sizes.hidden),
        torch.empty_like(saved.gates),
        torch.empty_like(saved.hidden),
        deter.new_empty(batch, length, 2 * units),
        torch.zeros_like(deter, dtype=torch.float32),
    )
    post_cut = gradient_tiles(batch, sizes.hidden, sizes.hidden, itemsize)
    cut = gradient_tiles(batch, width, sizes.block, itemsize)
    state_cut = gradient_tiles(batch, width + 2 * units, sizes.block, itemsize)
    forward_tile = product_tiles(batch, width, sizes.block, itemsize).n
    stacked_tile = stacked_tiles(batch, sizes.hidden + units, itemsize).n
    hidden = core.hidden[0]
    post_dots = empty_dots(deter, batch, -(-sizes.hidden // post_cut.n), post[0].norm)
    hidden_dots = empty_dots(deter, batch, sizes.blocks * -(-sizes.block // cut.n), hidden.norm)
    x_dots = [empty_dots(deter, batch, -(-units // state_cut.n), core.stoch.norm) for _ in range(2)]
    of_logit, of_gates = weights.logit[None], weights.gates.transpose(1, 2)

    own = stoch = None
    for t in reversed(range(length)):
        b_logit, b_post = grads.logit[:, t], grads.post[:, t]
        given = (None if x is None else x[:, t].flatten(1) for x in (d_stoch, d_logit))
        logit = outputs.logit[:, t].flatten(1)
        logit_gradient(logit, *given, b_logit, weights.stoch, latent, core.stoch, stoch, cut.k)
        pre, sums = saved.stacked[:, t + 1, : sizes.hidden], at(saved.post_sums, t)
        layer_gradient(b_logit, of_logit, pre, sums, post[0], b_post, post_dots, stacked_tile, post_cut)
        before = outputs.deter[:, t - 1] if t else deter
        block_gates_gradient(
            None if d_deter is None else d_deter[:, t],
            grads.deter,
            weights.stacked,
            (post[0], core.deter),
            Later(b_post, pre, sums, post_dots, reset[:, t]),
            own,
            sizes.own,
            saved.gates[:, t],
            before,
            grads.gates[:, t],
            sizes.blocks,
            stacked_tile,
            cut,
        )
        pre, sums, b_hidden = saved.hidden[:, t], at(saved.hidden_sums, t), grads.hidden[:, t]
        layer_gradient(
            grads.gates[:, t], of_gates, pre, sums, hidden, b_hidden, hidden_dots, forward_tile, cut
        )
        own_pre, b_x = saved.stacked[:, t, sizes.own :], grads.x[:, t]
        own = Later(b_x[:, :units], own_pre, at(saved.own_sums, t), x_dots[0], reset[:, t])
        stoch = Later(b_x[:, units:], saved.stoch[:, t], at(saved.stoch_sums, t), x_dots[1], reset[:, t])
        state_gradient(
            weights.hidden,
            hidden,
            Later(b_hidden, pre, sums, hidden_dots, reset[:, t]),
            grads.deter,
            own,
            core.deter,
            stoch,
            core.stoch,
            b_x,
            forward_tile,
            state_cut,
        )
    return grads
