"""One step of acting: from an observation's features to the next state and the action to take."""

import math

import torch
from torch import Tensor

from fastdream.ops.params import RSSM, Actor, Layers, Step
from fastdream.ops.reference.actor import actor as act
from fastdream.ops.reference.actor import actor_mode, actor_outputs, check_mode
from fastdream.ops.reference.layers import match, mlp
from fastdream.ops.reference.scan import observe_step
from fastdream.ops.reference.state import flat
from fastdream.ops.reference.twohot import symlog


def policy_step(
    encoder: Layers,
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    features: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    action_noise: Tensor | None,
    index: Tensor | None = None,
    vectors: tuple[int, ...] = (),
) -> tuple[Step, Tensor]:
    """`observe_step` on the encoded features, then the actor at the new state, without gradient.

    encoder: dense layers from the features [n, F] to the embedding, or () if they are the embedding. deter,
    stoch, action, reset [n, ...]; noise, index [n, S] as in `observe_step`. action_noise [n, M] as in
    `ops.actor`; None takes the most likely class and the mean instead of a draw.
    vectors: widths of the observations side by side that features are, where these come as the environment shows
    them: each goes through symlog, and one that holds -infinity anywhere is missing, so zero.
    Returns (Step, action [n, A] float32 at least). Raises ValueError without noise or index, and for the most likely
    action of a tanh_normal, which has no closed form.
    """
    if action_noise is None:
        check_mode(actor)
    with torch.no_grad():
        features = squish(features, vectors) if vectors else features
        embed = mlp(match(features, deter.dtype), encoder)
        step = observe_step(rssm, deter, stoch, action, embed, reset, noise, index)
        feat = torch.cat([step.deter, flat(rssm.latent, step.stoch)], -1)
        if action_noise is None:
            return step, actor_mode(actor_outputs(actor, feat))
        return step, act(actor, feat, action_noise)


def squish(features: Tensor, vectors: tuple[int, ...]) -> Tensor:
    """Observations [n, F] side by side, of these widths: their symlog, and zeros for each that holds -infinity."""
    if sum(vectors) != features.shape[-1]:
        raise ValueError(
            f"policy_step: vectors of {list(vectors)} are not features of shape {list(features.shape)}"
        )
    parts = features.split(list(vectors), -1)
    missing = [(part == -math.inf).any(-1, keepdim=True) for part in parts]
    return torch.cat([symlog(x.masked_fill(gone, 0)) for x, gone in zip(parts, missing, strict=True)], -1)
