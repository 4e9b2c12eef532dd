"""The policy as one function of features: outputs of every head, and a flat action from given noise."""

import math
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from fastdream.ops.params import ActionHead, ActionKind, Actor, Feat, Layer, Layers
from fastdream.ops.reference.categorical import categorical_sample, score_sample
from fastdream.ops.reference.gaussian import gaussian_sample, gaussian_std, trunc_normal_sample
from fastdream.ops.reference.layers import branches, cast, mlps, trunk, upcast


def action_width(actor: Actor) -> int:
    """Width A of the flat action: elements * classes of categorical heads, elements of continuous ones."""
    return sum(head.elements * max(1, head.classes) for head in actor.heads)


def bind_actor(actor: Actor, dtype: torch.dtype) -> Actor:
    """The actor with its weights in `dtype`, so that a scan casts them once."""
    heads = (head._replace(out=tuple(cast(layer, dtype) for layer in head.out)) for head in actor.heads)
    return actor._replace(layers=tuple(cast(layer, dtype) for layer in actor.layers), heads=tuple(heads))


def bounded_normal(
    mean: Tensor, std: Tensor, min_std: float = 0.1, max_std: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Raw outputs [...] -> tanh(mean), (max_std - min_std) * sigmoid(std + 2) + min_std, in float32 at least.

    Source: DreamerV3 `heads.py`.
    """
    std = (max_std - min_std) * torch.sigmoid(std + 2.0) + min_std
    return upcast(torch.tanh(mean)), upcast(std)


def _head_outputs(
    head: ActionHead, outs: Sequence[Tensor], bounded: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    if head.kind in ("categorical", "score"):
        (logit,) = outs
        return (logit.reshape(*logit.shape[:-1], head.elements, head.classes),)
    mean, std = outs
    if head.kind == "bounded_normal":
        return bounded(mean, std, head.min_std, head.max_std)
    mean = upcast(mean)
    if head.kind == "trunc_normal":
        return torch.tanh(mean), gaussian_std(std, head.min_std, "sigmoid2")
    if head.kind == "tanh_normal":
        offset = head.init_std + math.log(-math.expm1(-head.init_std))  # softplus of it is init_std
        return 5 * torch.tanh(mean / 5), gaussian_std(upcast(std) + offset, head.min_std)
    raise ValueError(
        f"unknown kind {head.kind!r} of action head; choose one of {', '.join(get_args(ActionKind))}"
    )


def _outs(actor: Actor) -> list[Layer]:
    return [out for head in actor.heads for out in head.out]


def actor_trunk(actor: Actor) -> Layers:
    """The layers that all heads have in common."""
    return trunk(actor.layers, _outs(actor))


def actor_outputs(
    actor: Actor,
    feat: Tensor | Feat,
    mlps: Callable[..., tuple[Tensor, ...]] = mlps,
    bounded: Callable[..., tuple[Tensor, Tensor]] = bounded_normal,
) -> tuple[tuple[Tensor, ...], ...]:
    """Distribution parameters of every head at feat [..., F]; `mlps` computes the layers, `bounded` bounded normals.

    discrete ones: (logit [..., elements, classes] before unimix, in feat.dtype); the others: (mean [..., elements],
    std [..., elements]) in float32 at least, of the normal before it is cut off or squashed.
    """
    feat = feat.detach() if actor.detach else feat
    return actor_branches(actor, mlps(feat, (actor_trunk(actor),))[0], mlps, bounded)


def actor_branches(
    actor: Actor,
    x: Tensor,
    mlps: Callable[..., tuple[Tensor, ...]] = mlps,
    bounded: Callable[..., tuple[Tensor, Tensor]] = bounded_normal,
) -> tuple[tuple[Tensor, ...], ...]:
    """As `actor_outputs`, from what `actor_trunk` gave."""
    outs = iter(branches(x, _outs(actor), mlps))
    return tuple(_head_outputs(head, [next(outs) for _ in head.out], bounded) for head in actor.heads)


def check_mode(actor: Actor) -> None:
    """ValueError if a most likely action has no closed form."""
    if any(head.kind == "tanh_normal" for head in actor.heads):
        raise ValueError(
            "the most likely action of a tanh_normal has no closed form; draw some and compare them"
        )


def actor_mode(outputs: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Most likely flat action [..., A] of `actor_outputs`: one-hots of the largest logits and means.

    For all kinds but tanh_normal, whose most likely action has no closed form.
    """
    parts = []
    for head in outputs:
        if len(head) == 1:
            logit = upcast(head[0])
            likely = logit.argmax(-1, keepdim=True)
            parts.append(torch.zeros_like(logit).scatter(-1, likely, 1.0).flatten(-2))
        else:
            parts.append(head[0])
    return torch.cat(parts, -1)


def actor(
    actor: Actor,
    feat: Tensor | Feat,
    noise: Tensor | None,
    action: Tensor | None = None,
    mlps: Callable[..., tuple[Tensor, ...]] = mlps,
) -> Tensor:
    """The policy's action at feat [..., F]: flat one-hots and continuous samples [..., A], float32 at least.

    noise [..., M], M = sum of the heads' elements: one uniform in [0, 1) for a discrete element (inverse CDF, with the
    gradient of `categorical_sample` or of `score_sample`) and for a trunc_normal one (`trunc_normal_sample`), one
    standard normal for the other continuous ones (mean + std * noise, not clipped; its tanh if tanh_normal). A given
    action [..., A] is returned as it is, without gradient. `mlps` computes the layers.
    Raises ValueError when noise and action are both None.
    Source: DreamerV3 `heads.py`; DreamerV2 `TruncNormalDist`; DreamerV1 `ActionDecoder`.
    """
    if action is not None:
        return upcast(action.detach())
    if noise is None:
        raise ValueError("actor needs noise to draw with, or the action that it should replay")
    return _joined(actor, feat, noise, [None] * len(actor.heads), mlps)


def redrawn(
    actor: Actor,
    feat: Tensor | Feat,
    noise: Tensor,
    action: Tensor,
    mlps: Callable[..., tuple[Tensor, ...]] = mlps,
) -> Tensor:
    """The action [..., A] that `actor` drew at feat with this noise, itself, with the gradient that it has there."""
    widths = [head.elements * max(1, head.classes) for head in actor.heads]
    return _joined(actor, feat, noise, action.split(widths, -1), mlps)


def _joined(
    actor: Actor,
    feat: Tensor | Feat,
    noise: Tensor,
    known: Sequence[Tensor | None],
    mlps: Callable[..., tuple[Tensor, ...]],
) -> Tensor:
    noises = noise.split([head.elements for head in actor.heads], -1)
    flat = [
        _sample(*each)
        for each in zip(actor.heads, actor_outputs(actor, feat, mlps), noises, known, strict=True)
    ]
    return flat[0] if len(flat) == 1 else torch.cat(flat, -1)


def _sample(head: ActionHead, outputs: tuple[Tensor, ...], noise: Tensor, known: Tensor | None) -> Tensor:
    """A head's part of the action; known: what it is, where only its gradient is wanted."""
    if len(outputs) == 1:
        index = None if known is None else known.unflatten(-1, (head.elements, head.classes)).argmax(-1)
        sample = score_sample if head.kind == "score" else categorical_sample
        return sample(upcast(outputs[0]), noise, head.unimix, index)[0].flatten(-2)
    mean, std = outputs
    if head.kind == "trunc_normal":
        drawn = trunc_normal_sample(mean, std, noise)
    else:
        drawn = gaussian_sample(mean, std, noise)
        drawn = torch.tanh(drawn) if head.kind == "tanh_normal" else drawn
    return drawn if known is None else known + (drawn - drawn.detach())
