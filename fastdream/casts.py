"""Weights in the dtype of products: cast once an update, for everything that multiplies by them in it."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastdream.nets import Dense

EVEN = 8  # rows: memory of a cast, or of several, has as many more as make their number a multiple, all zero


class Casts:
    """Stands in for the weights of a module's dense layers, and for the biases that products add, while entered.

        with casts:
            loss = ...          # made of the casts, which are leaves: gradients come to them, in their dtype
        loss.backward()
        casts.leaf(parameter)   # what has the gradient of a parameter

    All are cast in one go where they are entered, since parameters change in place between two updates. Without
    them every op casts what it multiplies by, in the forward and in the backward pass, and its gradients back. What
    is in `dtype` already has no cast.

    joined   groups of weights that multiply the same input, each of which lies in one piece of memory.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, joined: Iterable[Sequence[Tensor]] = ()
    ) -> None:
        owners: list[tuple[dict[str, Any], str]] = []
        for part in module.modules():
            if isinstance(part, Dense):
                owners += [(part._parameters, name) for name in _multiplied(part)]
        places = [(owner, name, owner[name]) for owner, name in owners if owner[name].dtype != dtype]
        found = {id(x): x for _, _, x in places}
        groups = [[found.pop(id(x)) for x in group if id(x) in found] for group in joined]
        groups = [group for group in groups if group] + [[x] for x in found.values()]
        leaves = {id(x): y for group in groups for x, y in zip(group, _memory(group, dtype), strict=True)}
        self._places = [(owner, name, x, leaves[id(x)]) for owner, name, x in places]
        self._params, self._casts = [x for group in groups for x in group], [*leaves.values()]

    def leaf(self, parameter: Tensor) -> Tensor:
        """The cast of a parameter, or itself if it has none."""
        return next((leaf for *_, x, leaf in self._places if x is parameter), parameter)

    def __enter__(self) -> Self:
        if self._casts:
            with torch.no_grad():
                torch._foreach_copy_(self._casts, self._params)
        for owner, name, _, leaf in self._places:
            owner[name] = leaf
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name, parameter, _ in self._places:
            owner[name] = parameter


def _multiplied(dense: Dense) -> list[str]:
    """Names of the parameters of which a product makes use."""
    linear = dense.norm == "none" and dense.act == "none" and not dense.blocks
    return ["weight", "bias"] if linear and dense.bias is not None else ["weight"]


def _memory(group: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Memory for casts [n, ...] of all, one after the other; each wants a gradient if the parameter does."""
    rows = [-(-len(x) // EVEN) * EVEN for x in group]
    whole = torch.zeros(sum(rows), *group[0].shape[1:], dtype=dtype, device=group[0].device)
    parts = zip(whole.split(rows), group, strict=True)
    return [part[: len(x)].detach().requires_grad_(x.requires_grad) for part, x in parts]
