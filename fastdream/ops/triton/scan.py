"""observe and its single step."""

import torch
from torch import Tensor

from fastdream.ops.native.params import Flat, add_core, add_layers
from fastdream.ops.native.scan import check_post
from fastdream.ops.params import RSSM, Categorical, Step
from fastdream.ops.reference.layers import match
from fastdream.ops.triton import scan_op as _registered  # noqa: F401
from fastdream.ops.triton.scan_limits import problem


def observe(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """As `fastdream.ops.reference.observe`, float32 or half precision, for what `scan_limits` serves.

    Weights are cast to deter's dtype, and products are summed up in float32. Differentiable once, with respect to
    parameters, deter, stoch, action and embed. An index out of its range draws no class. Raises ValueError naming what
    does not fit.
    """
    return _observe("observe", rssm, deter, stoch, action, embed, reset, noise, index)


def observe_step(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """As `fastdream.ops.reference.observe_step`; see `observe`."""
    action, embed, reset = action.unsqueeze(1), embed.unsqueeze(1), reset.unsqueeze(1)
    noise, index = (None if x is None else x.unsqueeze(1) for x in (noise, index))
    step = _observe("observe_step", rssm, deter, stoch, action, embed, reset, noise, index)
    return Step(*(x.squeeze(1) for x in step))  # type: ignore[union-attr]


def _observe(
    op: str,
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> Step:
    if why := problem(rssm):
        raise ValueError(f"{op}: triton does not compute {why}; use the reference")
    if noise is None and index is None:
        raise ValueError(f"{op} needs noise to draw with, or the index of an earlier draw")
    assert isinstance(rssm.latent, Categorical)
    count, classes, unimix = rssm.latent.stoch, rssm.latent.classes, rssm.latent.unimix
    flat = Flat([], [], [])
    width = add_core(flat, op, rssm.core, count * classes, action.shape[-1])
    add_layers(flat, op, "post", rssm.post)
    check_post(op, rssm, width, embed.shape[-1])
    params, filled = flat.present()
    layout, scalars = [count, classes, int(rssm.absolute)], [*flat.scalars, unimix]
    noise = None if index is not None or noise is None else noise.detach()
    index = None if index is None else match(index, torch.int64)
    dtype = deter.dtype
    inputs = deter, match(stoch, dtype), action, match(embed, dtype), reset, noise, index
    return Step(*torch.ops.fastdream.triton_observe(params, filled, flat.sizes, scalars, layout, *inputs)[:4])
