"""Weights in the dtype of products: cast once an update, for everything that multiplies by them in it."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastdream.nets import Dense

ALIGNED = 64  # elements: every cast begins at a cache line


class Casts:
    """Stands in for the weights of a module's dense layers, and for the biases that products add, while entered.

        with casts:
            loss = ...          # made of the casts, which are leaves: gradients come to them, in their dtype
        loss.backward()
        casts.leaf(parameter)   # what has the gradient of a parameter

    All are cast in one go where they are entered, since parameters change in place between two updates. Without
    them every op casts what it multiplies by, in the forward and in the backward pass, and its gradients back. What
    is in `dtype` already has no cast.

    joined   weights that are multiplied by the same input, which lie directly one after the other if they fit.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, joined: Iterable[Tensor] = ()) -> None:
        owners: list[tuple[dict[str, Any], str]] = []
        for part in module.modules():
            if isinstance(part, Dense):
                owners += [(part._parameters, name) for name in _multiplied(part)]
        cast = [(owner, name) for owner, name in owners if owner[name].dtype != dtype]
        found = {id(owner[name]): owner[name] for owner, name in cast}
        order = [x for x in joined if id(x) in found]
        # Weights that follow one another are those of one head, or of several on the same layer.
        for others in (lambda x: x.dim() > 1, lambda x: x.dim() == 1):
            order += [x for i, x in found.items() if others(x) and all(i != id(y) for y in order)]
        self._params: list[Tensor] = [x.detach() for x in order]
        self._casts = _allocate(order, dtype)
        self._leaves = dict(zip(map(id, order), self._casts, strict=True))
        self._places = [(owner, name, owner[name], self._leaves[id(owner[name])]) for owner, name in cast]

    def leaf(self, parameter: Tensor) -> Tensor:
        """The cast of a parameter, or itself if it has none."""
        return self._leaves.get(id(parameter), parameter)

    def __enter__(self) -> Self:
        if self._casts:
            with torch.no_grad():
                torch._foreach_copy_(self._casts, self._params)
        for owner, name, _, cast in self._places:
            owner[name] = cast
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, parameter, _ in self._places:
            owner[name] = parameter


def _multiplied(dense: Dense) -> list[str]:
    """Names of the parameters of which a product makes use."""
    linear = dense.norm == "none" and dense.act == "none" and not dense.blocks
    return ["weight", "bias"] if linear and dense.bias is not None else ["weight"]


def _allocate(params: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Memory for the casts of all, in their order, as leaves that want a gradient where the parameters do."""
    if not params:
        return []
    starts, size = [], 0
    for x in params:
        starts.append(size)
        size += -(-x.numel() // ALIGNED) * ALIGNED
    flat = torch.zeros(size, dtype=dtype, device=params[0].device)
    views = [flat[start : start + x.numel()].view(x.shape) for start, x in zip(starts, params, strict=True)]
    return [view.detach().requires_grad_(x.requires_grad) for view, x in zip(views, params, strict=True)]
