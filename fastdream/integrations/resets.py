"""observe, with a state of their own for rows that begin an episode, where the op's is zeros."""

from itertools import pairwise

import torch
from torch import Tensor

from fastdream.integrations.patching import table_of
from fastdream.ops import RSSM, Step


def observe(
    model: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    first: Tensor,
    noise: Tensor,
    start: tuple[Tensor, Tensor],
) -> Step:
    """As the op, but rows begin at `start` and without an action where `first` is 1.

    deter [B, D], stoch [B, S, C], action [B, T, A], embed [B, T, E], first [B, T] of 0 and 1, noise [B, T, S]; start
    deter and stoch, which broadcast to a batch.
    One scan goes from one time at which any row begins to the next. When that is, is read on the host: on a GPU that
    waits once for each sequence.
    """
    ops = table_of(deter.device)
    action = action * (1 - first).unsqueeze(-1)
    begins = (first != 0).any(0).tolist()
    never = torch.zeros_like(first, dtype=torch.bool)
    cuts = sorted({0, *(t for t, begin in enumerate(begins) if begin), len(begins)})
    parts: list[Step] = []
    for left, right in pairwise(cuts):
        if begins[left]:
            new = first[:, left, None]
            deter = (1 - new) * deter + new * start[0]
            stoch = (1 - new).unsqueeze(-1) * stoch + new.unsqueeze(-1) * start[1]
        inputs = (x[:, left:right] for x in (action, embed, never, noise))
        parts.append(ops.observe(model, deter, stoch, *inputs))
        deter, stoch = parts[-1].deter[:, -1], parts[-1].stoch[:, -1]
    if len(parts) == 1:
        return parts[0]
    return Step(*(torch.cat(x, 1) for x in zip(*parts, strict=True)))
