"""The critic's loss: regression over bins to returns, and to what a slower critic says."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.reference.twohot import Form, twohot_loss


def critic_loss(
    logit: Tensor,
    target: Tensor,
    slow: Tensor,
    weight: Tensor,
    slowreg: float,
    bins: Tensor,
    form: Form = "symexp",
    twohot_loss: Callable[..., Tensor] = twohot_loss,
) -> Tensor:
    """weight * (twohot_loss of target + slowreg * twohot_loss of slow) of the first H of S steps -> [N, H].

    logit [N, S, K]; target, slow and weight [N, H], without gradient; bins and form as in `twohot_loss`, which may be
    another backend's. float32 at least. Source: DreamerV3, eq. 10.
    """
    steps = target.shape[1]
    # Logits stay whole because cutting their last step off would copy all of them, forward and backward.
    targets = F.pad(torch.stack([target, slow]).detach(), (0, logit.shape[1] - steps))
    of_target, of_slow = twohot_loss(logit, targets, bins, form)[..., :steps]
    return weight.detach() * (of_target + slowreg * of_slow)
