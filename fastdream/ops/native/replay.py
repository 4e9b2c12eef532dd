"""Reading sequences out of ring storage."""

from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.library import run
from fastdream.ops.native.registry import LIBRARY, call, register


def gather_sequences(storage: Tensor, start: Tensor, length: int) -> Tensor:
    """As `fastdream.ops.reference.gather_sequences`, for storage of any dtype."""
    return call("gather_sequences", storage, start, length)


def check_gather(storage: Tensor, start: Tensor, length: int) -> Tensor:
    """A fresh tensor for the result; ValueError names what does not fit."""
    if storage.dim() < 1 or storage.shape[0] < 1:
        raise ValueError(f"gather_sequences: storage has shape {list(storage.shape)}, expected [N, ...]")
    if start.dim() != 1 or start.dtype != torch.int64:
        raise ValueError(
            f"gather_sequences: start is {start.dtype} {list(start.shape)}, expected torch.int64 [B]"
        )
    if start.device != storage.device:
        raise ValueError(
            f"gather_sequences: start has device {start.device}, expected {storage.device} like storage"
        )
    if length < 0:
        raise ValueError(f"gather_sequences: length={length} is negative")
    return storage.new_empty((start.shape[0], length, *storage.shape[1:]))


def _kernel(storage: Tensor, start: Tensor, length: int) -> Tensor:
    out = check_gather(storage, start, length)
    row = storage[0].numel() * storage.element_size()
    run(
        "gather_sequences",
        (start.contiguous(), storage.contiguous(), out),
        (*out.shape[:2], len(storage), row),
    )
    return out


def save_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.shape, ctx.length = inputs[0].shape, inputs[2]


def gather_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (start,) = ctx.saved_tensors
    row = (start[:, None] + torch.arange(ctx.length, device=start.device)) % ctx.shape[0]
    return grad.new_zeros(ctx.shape).index_add(0, row.flatten(), grad.flatten(0, 1)), None, None


torch.library.register_autograd(
    register("gather_sequences(Tensor storage, Tensor start, int length) -> Tensor", _kernel, check_gather),
    gather_gradient,
    setup_context=save_gather,
    lib=LIBRARY,
)
