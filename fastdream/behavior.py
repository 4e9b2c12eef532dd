"""Learning to act: returns, and the losses of actor and critic, as functions of tensors.

Time indices. An imagined trajectory has H+1 states: index 0 is the start, the reward and continuation at index t
belong to the state reached at t, so the return of the state at t begins with the reward at t+1. In the first two
Dreamers it begins with the reward at t: see `own_return`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.heads import TwoHotHead
from fastdream.ops import Ops


def imagined_return(ops: Ops, rew: Tensor, cont: Tensor, val: Tensor, disc: float, lam: float) -> Tensor:
    """λ-return of imagined states (DreamerV3, eq. 7): [N, H+1] each -> [N, H].

    ret_t = rew_{t+1} + disc * cont_{t+1} * ((1 - lam) * val_{t+1} + lam * ret_{t+1}), ret_H = val_H.
    """
    mix = torch.full_like(rew[:, 1:], lam)
    return ops.lambda_return(rew[:, 1:], disc * cont[:, 1:], mix, val[:, 1:])


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
    return torch.cumprod(disc * cont, 1) / disc


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


def critic_loss(
    head: TwoHotHead, logit: Tensor, target: Tensor, slow: Tensor, weight: Tensor, slowreg: float
) -> Tensor:
    """Cross-entropy to the two-hot return and to the slow critic's prediction (DreamerV3, eq. 10).

    logit [N, H, bins] or of more steps, which are not learned; target, slow and weight [N, H]; gradients flow into
    logit. Logits stay whole because cutting their last step off would copy all of them, forward and backward.
    """
    steps = target.shape[1]
    targets = F.pad(torch.stack([target, slow]).detach(), (0, logit.shape[1] - steps))
    of_target, of_slow = head.loss(logit, targets)[..., :steps]
    return weight.detach() * (of_target + slowreg * of_slow)
