"""observe and its single step, and single steps of the recurrent cores."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native import observe_op as _registered  # noqa: F401
from fastdream.ops.native import resident
from fastdream.ops.native.actor import check_net
from fastdream.ops.native.library import check_shape
from fastdream.ops.native.params import (
    Flat,
    LatentShape,
    add_core,
    add_layers,
    check_params,
    latent_shape,
    padded,
)
from fastdream.ops.native.registry import call
from fastdream.ops.params import GRU, RSSM, BlockGRU, Core, LayerNormGRU, Layers, Step, need_steps
from fastdream.ops.reference.layers import match


class Model(NamedTuple):
    """A core and a net for the latent as torch.ops.fastdream.observe takes them."""

    params: list[Tensor]
    filled: list[int]  # which tensors of every layer are there, see `Flat.present`
    sizes: list[int]
    scalars: list[float]
    layout: list[int]  # S, C, form of std, absolute, whether there is a posterior, elements saved of a row


def _saved_width(core: Core, width: int, action: int, latent: LatentShape, post: Layers) -> int:
    """Elements that the forward scan keeps of every row and step: `Saved` of csrc/cpu/observe.h, without deter."""
    kept = [action, 3 * width]
    if not latent.classes:
        kept.append(latent.stoch)
    if isinstance(core, BlockGRU):
        units = core.deter.weight.shape[0]
        kept += [2 * units, 2 * units, units, units] + [width, width] * len(core.hidden)
    else:
        units = core.inputs.weight.shape[0]
        kept += [units, units, 3 * width]
        if isinstance(core, GRU) and not core.reset_after:
            kept.append(width)
    for layer in post[:-1]:
        kept += 2 * [layer.weight.shape[0]]
    return sum(padded(n) for n in kept)


def flatten(
    op: str,
    core: Core,
    post: Layers,
    latent: LatentShape,
    absolute: bool,
    deter: Tensor,
    action: int,
) -> Model:
    """A core for actions of that width, and a posterior or what stands in its place, as `Model`; deter is checked."""
    flat = Flat([], [], [])
    width = add_core(flat, op, core, latent.width, action)
    add_layers(flat, op, "post", post)
    params, filled = flat.present()
    check_params(op, params, deter, "deter")
    check_shape(op, "deter", deter, *deter.shape[:-1], width)
    saved = _saved_width(core, width, action, latent, post)
    layout = [*latent[:3], int(absolute), int(post != ()), saved]
    return Model(params, filled, flat.sizes, [*flat.scalars, *latent[3:]], layout)


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
    """As `fastdream.ops.reference.observe`, in float32 or float64.

    Parameters have deter's dtype; the other floats are cast to it. Differentiable once, with respect to
    parameters, deter, stoch, action and embed. Raises ValueError naming what does not fit.
    On CUDA devices it is `resident.observe`.
    """
    if deter.is_cuda:
        return resident.observe(rssm, deter, stoch, action, embed, reset, noise, index)
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
    need_steps(op, action.shape[1])
    dtype, latent = deter.dtype, latent_shape(op, rssm.latent)
    noise, index = latent.draws(op, noise, index)
    model = flatten(op, rssm.core, rssm.post, latent, rssm.absolute, deter, action.shape[-1])
    seen = embed.shape[-1] + (0 if rssm.absolute else deter.shape[-1])
    check_net(op, "post", rssm.post, seen, rssm.latent)
    index = None if index is None else match(index, torch.int64)
    noise = None if noise is None else match(noise.detach(), dtype)
    inputs = (match(x, dtype) for x in (stoch, action, embed))
    deter, stoch, logit, index, _ = call("observe", *model, deter, *inputs, reset, noise, index)
    return Step(deter, stoch, logit, index if latent.classes else None)


def block_gru(core: BlockGRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """As `fastdream.ops.reference.block_gru`, in float32 or float64. Differentiable once."""
    return _single("block_gru", core, deter, stoch, action)


def layernorm_gru(core: LayerNormGRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """As `fastdream.ops.reference.layernorm_gru`, in float32 or float64. Differentiable once."""
    return _single("layernorm_gru", core, deter, stoch, action)


def gru(core: GRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """As `fastdream.ops.reference.gru`, in float32 or float64. Differentiable once."""
    return _single("gru", core, deter, stoch, action)


def _single(op: str, core: Core, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    dtype, latent = deter.dtype, LatentShape(stoch.shape[-1], 0, 0, 0.0, 0.0)
    model = flatten(op, core, (), latent, False, deter, action.shape[-1])
    inputs = match(stoch, dtype), match(action, dtype).unsqueeze(1)
    return call("observe", *model, deter, *inputs, None, None, None, None)[0].squeeze(1)
