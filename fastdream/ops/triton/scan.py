"""observe and its single step."""

import torch
from torch import Tensor

from fastdream.ops.native.actor import add_latent_net
from fastdream.ops.native.params import Flat, add_core, latent_shape
from fastdream.ops.params import RSSM, Step
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
    return Step(*(None if x is None else x.squeeze(1) for x in step))  # type: ignore[arg-type]


def roll(
    op: str,
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> Step:
    """As `fastdream.ops.reference.rollout`, with its gradients; otherwise see `observe`: it is one of the prior."""
    rssm, reset = (
        rssm._replace(post=rssm.prior, absolute=False),
        action.new_zeros(action.shape[:2], dtype=torch.bool),
    )
    return _observe(op, rssm, deter, stoch, action, None, reset, noise, index)


def _observe(
    op: str,
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor | None,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> Step:
    """Of the posterior; without embeddings, of a net of deter alone in its place."""
    if why := problem(rssm):
        raise ValueError(f"{op}: triton does not compute {why}; use the reference")
    latent = latent_shape(op, rssm.latent)
    noise, index = latent.draws(op, noise, index)
    flat = Flat([], [], [])
    width = add_core(flat, op, rssm.core, latent.width, action.shape[-1])
    name = "prior" if embed is None else "post"
    seen = width if embed is None else embed.shape[-1] + (0 if rssm.absolute else width)
    add_latent_net(flat, op, name, rssm.post, seen, rssm.latent)
    params, filled = flat.present()
    layout, scalars = [*latent[:3], int(rssm.absolute)], [*flat.scalars, *latent[3:]]
    index = None if index is None else match(index, torch.int64)
    noise = None if noise is None else noise.detach()
    dtype = deter.dtype
    embed = None if embed is None else match(embed, dtype)
    inputs = deter, match(stoch, dtype), action, embed, reset, noise, index
    model = params, filled, flat.sizes, scalars, layout
    deter, stoch, logit, index, _ = torch.ops.fastdream.triton_observe(*model, *inputs)
    return Step(deter, stoch, logit, index if latent.classes else None)
