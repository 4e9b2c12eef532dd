"""Learning to act: returns and what they are weighted by, as functions of tensors.

Time indices. An imagined trajectory has H+1 states: index 0 is the start, the reward and continuation at index t
belong to the state reached at t, so the return of the state at t begins with the reward at t+1. In the first two
Dreamers it begins with the reward at t: see `own_return`.
"""

import torch
from torch import Tensor

from fastdream.ops import Ops


def imagined_return(ops: Ops, rew: Tensor, cont: Tensor, val: Tensor, disc: float, lam: float) -> Tensor:
    """λ-return of imagined states (DreamerV3, eq. 7): [N, H+1] each -> [N, H].

    ret_t = rew_{t+1} + disc * cont_{t+1} * ((1 - lam) * val_{t+1} + lam * ret_{t+1}), ret_H = val_H.
    """
    mix = torch.full_like(rew[:, 1:], lam)
    live = cont if disc == 1 else disc * cont
    return ops.lambda_return(rew[:, 1:], live[:, 1:], mix, val[:, 1:])


def replayed_return(
    ops: Ops, reward: Tensor, last: Tensor, terminal: Tensor, boot: Tensor, disc: float, lam: float
) -> Tensor:
    """λ-return of replayed states that bootstraps from `boot`: [B, T] each -> [B, T-1].

    An episode that was cut off (`last` without `terminal`) bootstraps fully from the state where it was cut.
    """
    live = disc * (1 - terminal[:, 1:].float())
    mix = lam * (1 - last[:, 1:].float())
    return ops.lambda_return(reward[:, 1:], live, mix, boot[:, 1:])


def discount_weight(cont: Tensor, disc: float) -> Tensor:
    """Probability that a trajectory is still alive: [N, H+1] continuations -> [N, H+1], product up to each."""
    return torch.cumprod(cont, 1) if disc == 1 else torch.cumprod(disc * cont, 1) / disc


def own_return(ops: Ops, rew: Tensor, disc: Tensor, val: Tensor, lam: float) -> Tensor:
    """λ-return that begins with a state's own reward (DreamerV1, eq. 6; DreamerV2, eq. 4): [N, K] each -> [N, K-1].

    ret_t = rew_t + disc_t * ((1 - lam) * val_{t+1} + lam * ret_{t+1}), and val of the last state at its end.
    """
    mix = torch.full_like(rew[:, :-1], lam)
    return ops.lambda_return(rew[:, :-1], disc[:, :-1], mix, val[:, 1:])


def alive_weight(disc: Tensor) -> Tensor:
    """Discount up to each state without its own, [N, K] -> [N, K]: 1, disc_0, disc_0 disc_1, ..., without gradient."""
    disc = disc.detach()
    return torch.cumprod(torch.cat([torch.ones_like(disc[:, :1]), disc[:, :-1]], 1), 1)
