"""Reading sequences out of ring storage."""

import torch
from torch import Tensor


def gather_sequences(storage: Tensor, start: Tensor, length: int) -> Tensor:
    """Windows of a ring: out[b, l] = storage[(start[b] + l) % N].

    storage [N, ...] of any dtype, start [B] int64 -> [B, length, ...], freshly allocated.
    """
    offset = torch.arange(length, device=start.device)
    return storage[(start[:, None] + offset) % storage.shape[0]]
