"""REINFORCE: how good actions were makes them likelier."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdream.ops.reference.categorical import categorical_entropy, categorical_log_prob
from fastdream.ops.reference.layers import upcast


def normal_log_prob(event: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(event; mean, std²), shapes broadcast."""
    z = (event - mean) / std
    return -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy of a normal in nats."""
    return 0.5 * (2 * math.pi * std.square()).log() + 0.5


def reinforce(
    outs: Sequence[tuple[Tensor, ...]],
    action: Tensor,
    adv: Tensor,
    weight: Tensor,
    actent: float,
    unimix: float = 0.0,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """weight * -(log_prob * adv + actent * entropy) of the first H of K steps: loss [N, H], its two terms.

    outs, of every action key: logits [N, K, elements, classes] mixed with `unimix` of the uniform, or mean and std
    [N, K, elements] of a normal. action [N, K, A], flat, keys side by side; adv and weight [N, H].
    Returns (loss, log_prob [N, H], the entropies [N, H] of every key), float32 at least, where log_prob and entropy
    are sums over keys and elements. Gradients flow from the loss alone, into outs. Source: DreamerV3, eq. 11.
    """
    widths = [math.prod(out[0].shape[2:]) for out in outs]
    found = [
        _terms(out, part, unimix) for out, part in zip(outs, action.detach().split(widths, -1), strict=True)
    ]
    steps = adv.shape[1]
    log_prob = torch.stack([log for log, _ in found]).sum(0)[:, :steps]
    entropies = [entropy[:, :steps] for _, entropy in found]
    entropy = torch.stack(entropies).sum(0)
    loss = weight.detach() * -(log_prob * adv.detach() + actent * entropy)
    return loss, log_prob.detach(), tuple(x.detach() for x in entropies)


def _terms(out: tuple[Tensor, ...], action: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """Log probability and entropy of one key's actions, summed over its elements."""
    if len(out) == 1:
        index = action.reshape(out[0].shape).argmax(-1)
        log_prob, entropy = categorical_log_prob(out[0], index, unimix), categorical_entropy(out[0], unimix)
    else:
        mean, std = map(upcast, out)
        log_prob, entropy = normal_log_prob(upcast(action), mean, std), normal_entropy(std)
    return log_prob.sum(-1), entropy.sum(-1)
