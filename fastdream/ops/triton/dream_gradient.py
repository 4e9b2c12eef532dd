"""Imagination with gradients through samples and actions, of actors that see states without gradient.

Their actions then lead back to the actor alone, and not through its later actions to earlier states. So states and
actions are dreamt without gradient, in few launches a step. What the actor learns of its actions is that of one batch
of all states; what actions, start and model learn of the states is the gradient of one scan along the actions. A step
of DreamerV1 is three launches of the dream, three of the scan and four back: see `step` and `scan_forward` for others.
"""

import torch
from torch import Tensor

from fastdream.ops.params import RSSM, Actor, Categorical, Dream, Feat, any_gradient
from fastdream.ops.reference.actor import redrawn
from fastdream.ops.reference.layers import match, upcast
from fastdream.ops.triton import dream
from fastdream.ops.triton.dense import mlps
from fastdream.ops.triton.limits import check_served, unserved_learned
from fastdream.ops.triton.scan import roll


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
    """As `fastdream.ops.reference.imagine`, for what `limits` serves.

    Computes in deter's dtype, float32 or half precision, whatever that of the parameters. Differentiable once where
    gradients are wanted, with respect to parameters, deter and stoch, and there only of actors that detach features,
    or along given actions; elsewhere it is `dream.imagine`. Raises ValueError naming what does not fit. An index that
    is no class draws nothing.
    """
    inputs = rssm, actor, deter, stoch, noise, action_noise, action
    given = noise, action_noise, index, action
    if not torch.is_grad_enabled() or not any_gradient(*inputs):
        return dream.imagine(rssm, actor, deter, stoch, length, *given)
    check_served("imagine", unserved_learned(rssm, actor))
    if action is None:
        with torch.no_grad():
            known = dream.imagine(rssm, actor, deter, stoch, length, *given)
        assert action_noise is not None, "an actor that draws needed it"
        action = redrawn(actor, Feat(known.deter, known.stoch.flatten(2)), action_noise, known.action, mlps)
        if index is None and isinstance(rssm.latent, Categorical):
            index = known.stoch[:, 1:].argmax(-1)  # a scan's logits may differ in their last bits
    else:
        action = upcast(action.detach())
    step = roll("imagine", rssm, deter, stoch, action[:, :length], noise, index)
    start = deter, match(stoch, deter.dtype)
    deters, stochs = (torch.cat([x.unsqueeze(1), later], 1) for x, later in zip(start, step[:2], strict=True))
    return Dream(deters, stochs, step.logit, action)
