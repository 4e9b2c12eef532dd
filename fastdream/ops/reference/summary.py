"""Single numbers of whole tensors: means of losses, and what a log shows of what an update computed."""

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from fastdream.ops.params import Kind
from fastdream.ops.reference.layers import upcast

KINDS: tuple[str, ...] = get_args(Kind)

_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "std": lambda x: x.std(correction=0),
    "min": torch.amin,
    "max": torch.amax,
    "size": lambda x: x.abs().mean(),
    "large": lambda x: (x.abs() >= 1).float().mean(),
}


def summarize(tensors: Sequence[Tensor], kinds: Sequence[Kind]) -> Tensor:
    """One number of each tensor, of any shapes with an element at least: [len(tensors)], in float32 at least.

    kinds, of each: "mean"; "std" of the elements, without correction; "min"; "max"; "size", the mean magnitude;
    "large", the share of elements whose magnitude is 1 or more. Gradients flow through means alone. Raises ValueError
    for another kind, or not one for each tensor.
    """
    check_kinds(tensors, kinds)
    pairs = ((upcast(x), kind) for x, kind in zip(tensors, kinds, strict=True))
    return torch.stack([x.mean() if kind == "mean" else _OF[kind](x.detach()) for x, kind in pairs])


def check_kinds(tensors: Sequence[Tensor], kinds: Sequence[str]) -> None:
    """ValueError unless each tensor has a kind that there is."""
    if len(tensors) != len(kinds) or not tensors:
        raise ValueError(
            f"summarize: {len(tensors)} tensors with {len(kinds)} kinds; give as many, one at least"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"summarize: unknown kind {kind!r}; choose {', '.join(KINDS)}")
