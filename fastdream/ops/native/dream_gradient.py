"""Imagination with gradients through samples and actions: every step of the prior is one op with its own gradient."""

import torch
from torch import Tensor

from fastdream.ops.native import dream
from fastdream.ops.native.actor import check_net
from fastdream.ops.native.dense import mlps
from fastdream.ops.native.params import latent_shape
from fastdream.ops.native.registry import call
from fastdream.ops.native.scan import flatten
from fastdream.ops.params import RSSM, Actor, Dream, Feat, any_gradient, need_steps
from fastdream.ops.reference.actor import action_width
from fastdream.ops.reference.actor import actor as act
from fastdream.ops.reference.layers import match


def imagine(
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    length: int,
    noise: Tensor | None,
    action_noise: Tensor | None,
    index: Tensor | None = None,
    action: Tensor | None = None,
) -> Dream:
    """As `fastdream.ops.reference.imagine`, in float32 or float64.

    Parameters have deter's dtype; the other floats are cast to it. Differentiable once where gradients are wanted;
    elsewhere it is `dream.imagine`, which is faster.
    Raises ValueError naming what does not fit.
    """
    need_steps("imagine", length)
    if action is None and action_noise is None:
        raise ValueError("actor needs noise to draw with, or the action that it should replay")
    width = action_width(actor)
    if action is not None and action.shape[-1] != width:
        raise ValueError(
            f"imagine: action has {action.shape[-1]} features, expected {width} like the actor's"
        )
    inputs = rssm, actor, deter, stoch, noise, action_noise, action
    if not torch.is_grad_enabled() or not any_gradient(*inputs):
        return dream.imagine(rssm, actor, deter, stoch, length, noise, action_noise, index, action)
    dtype, latent = deter.dtype, latent_shape("imagine", rssm.latent)
    noise, index = latent.draws("imagine", noise, index)
    index = None if index is None else match(index, torch.int64)
    noise = None if noise is None else match(noise.detach(), dtype)
    model = flatten("imagine", rssm.core, rssm.prior, latent, False, deter, width)
    check_net("imagine", "prior", rssm.prior, deter.shape[-1], rssm.latent)
    start = stoch = match(stoch, dtype)
    deters, stochs = [deter], [start]
    logits: list[Tensor] = []
    actions: list[Tensor] = []
    for time in range(length + 1):
        feat = Feat(deter, stoch.flatten(1))
        features = feat if latent.classes else torch.cat(feat, -1)  # one-hots are multiplied entry by entry
        eps, given = (None if x is None else x[:, time] for x in (action_noise, action))
        actions.append(act(actor, features, eps, given, mlps))
        if time == length:
            break
        led = match(actions[-1], dtype).unsqueeze(1)
        draws = (None if x is None else x[:, time : time + 1] for x in (noise, index))
        step = call("observe", *model, deter, stoch, led, None, None, *draws)
        deter, stoch, logit = (x.squeeze(1) for x in step[:3])
        for states, x in zip((deters, stochs, logits), (deter, stoch, logit), strict=True):
            states.append(x)
    return Dream(*(torch.stack(x, 1) for x in (deters, stochs, logits, actions)))
