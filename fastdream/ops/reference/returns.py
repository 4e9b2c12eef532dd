"""Lambda-returns: one recursion for every Dreamer."""

import torch
from torch import Tensor

from fastdream.ops.reference.layers import upcast


def lambda_return(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    """ret_t = reward_t + live_t * ((1 - mix_t) * value_t + mix_t * ret_{t+1}), with ret_T = value_{T-1}.

    All [B, T], time last. `value_t` is the bootstrap that belongs to reward_t, i.e. of the state that the
    reward leads to; callers shift their sequences: DreamerV3 passes reward[:, 1:], live = discount *
    (1 - terminal)[:, 1:], mix = lam * (1 - last)[:, 1:], value[:, 1:]; DreamerV2 passes reward[:, :-1],
    discount[:, :-1], value[:, 1:]; DreamerV1 the same over its H states without the start.
    Returns [B, T] in float32 at least, differentiable in all four. Source: DreamerV1 eq. 6, V3 eq. 7.
    """
    reward, live, mix, value = upcast(reward), upcast(live), upcast(mix), upcast(value)
    carried, fresh = live * mix, reward + live * (1 - mix) * value
    if not fresh.shape[-1]:  # of no steps, no returns
        return fresh
    ret = value[..., -1]
    rets = []
    for base, weight in zip(reversed(fresh.unbind(-1)), reversed(carried.unbind(-1)), strict=True):
        ret = torch.addcmul(base, weight, ret)
        rets.append(ret)
    return torch.stack(rets[::-1], -1)
