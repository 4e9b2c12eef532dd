"""Gradients of `dense_nets`: of all parameters and of the input, into given tensors."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastdream.ops.params import Layer, Layers
from fastdream.ops.triton.dense_kernels import add_rows, dense_act_gradient, programs
from fastdream.ops.triton.dense_nets import Kept, Optional, Packed, Parts, alone, columns, linear

Fields = Sequence[Optional]  # gradients of weight, bias, scale and shift of a layer, None for those unwanted


class _Sums:
    """Gradients of vectors, which each program of a pass over rows adds up on its own."""

    def __init__(self, width: int, like: Tensor) -> None:
        self._sums = like.new_empty(programs(like), width, dtype=torch.float32)
        self._targets: list[Tensor] = []
        self._used = 0

    def columns(self, targets: Fields) -> list[Optional]:
        """[P, N] for programs to store, for every target [N] that is there."""
        return [None if target is None else self._column(target) for target in targets]

    def _column(self, target: Tensor) -> Tensor:
        self._targets.append(target)
        self._used += len(target)
        return self._sums[:, self._used - len(target) : self._used]

    def finish(self) -> None:
        """Fill the targets."""
        if self._targets:
            sums = add_rows(self._sums).split([len(target) for target in self._targets])
            torch._foreach_copy_(self._targets, sums)


class _Casts:
    """Gradients of weights, which products give in their own dtype."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def place(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory in `dtype` for what the target shall hold: its own where it can."""
        if target.dtype == dtype:
            return target
        self.later(target, torch.empty_like(target, dtype=dtype))
        return self._pairs[-1][1]

    def later(self, target: Tensor, source: Tensor) -> None:
        """Copy at the end."""
        self._pairs.append((target, source))

    def finish(self) -> None:
        """Fill the targets, in one launch."""
        if self._pairs:
            torch._foreach_copy_([y for y, _ in self._pairs], [x for _, x in self._pairs])


def backward(
    parts: Parts,
    nets: Sequence[Layers],
    learned: int,
    kept: Kept,
    grads: Sequence[Tensor],
    d_parts: Sequence[Optional],
    d_layers: Sequence[Sequence[Fields]],
) -> None:
    """Fill the gradients of parts, and of each layer of the first `learned` nets, where they are there.

    grads: of what these nets gave, [M, out] contiguous.
    """
    vectors = [p for net in d_layers[:learned] for layer in net for p in layer[1:] if p is not None]
    sums, casts = _Sums(sum(map(len, vectors)), grads[0]), _Casts()
    packed = Packed(nets[:learned], grads[0], biases=False)
    places, later = columns(nets[:learned]), iter(kept.later)
    d_first = grads[0].new_empty(len(grads[0]), places[-1].stop)
    for j, (net, grad, fields, place) in enumerate(
        zip(nets[:learned], grads, d_layers[:learned], places, strict=True)
    ):
        weights = [packed.later[j, i] for i in range(1, len(net))]
        grad = _later(net, weights, grad, fields, later, sums, casts)
        d_vectors = sums.columns(fields[0][1:])
        if alone(nets):
            d_first = _through_act(net[0], None, grad, d_vectors)
        else:
            dense_act_gradient(kept.first[:, place], net[0], grad, d_first[:, place], d_vectors)
    _first_weights(parts, d_first, places, [net[0][0] for net in d_layers[:learned]], casts)
    for d_x, w in zip(d_parts, packed.first.split([x.shape[1] for x in parts], 1), strict=True):
        if d_x is not None:
            torch.mm(d_first, w, out=d_x)
    sums.finish()
    casts.finish()


def _later(
    net: Layers,
    weights: list[Tensor],
    grad: Tensor,
    fields: Sequence[Fields],
    later: Iterator[Tensor],
    sums: _Sums,
    casts: _Casts,
) -> Tensor:
    """Back through all layers but the first, whose output's gradient is returned."""
    found = [
        (w, next(later), None if linear(x) else next(later)) for x, w in zip(net[1:], weights, strict=True)
    ]
    for layer, (weight, x, pre), own in zip(net[:0:-1], found[::-1], fields[:0:-1], strict=True):
        d_pre = _through_act(layer, pre, grad, sums.columns(own[1:]))
        if own[0] is not None:
            torch.mm(d_pre.t(), x, out=casts.place(own[0], d_pre.dtype))
        grad = d_pre @ weight
    return grad


def _through_act(layer: Layer, pre: Optional, grad: Tensor, sums: list[Optional]) -> Tensor:
    """Gradient of a layer's product, from that of its output; a linear layer's is the same."""
    if linear(layer):
        if sums[0] is not None:
            dense_act_gradient(None, layer, grad, None, sums)
        return grad
    d_pre = torch.empty_like(grad)
    dense_act_gradient(pre, layer, grad, d_pre, sums)
    return d_pre


def _first_weights(
    parts: Parts, d_first: Tensor, places: list[slice], targets: list[Optional], casts: _Casts
) -> None:
    """Gradients of the first layers' weights, one product for each part of the input."""
    if all(target is None for target in targets):
        return
    only, widths = targets[0] if len(targets) == 1 else None, [x.shape[1] for x in parts]
    whole = (
        casts.place(only, d_first.dtype)
        if only is not None
        else d_first.new_empty(places[-1].stop, sum(widths))
    )
    for x, d_weight in zip(parts, whole.split(widths, 1), strict=True):
        torch.mm(d_first.t(), x, out=d_weight)
    for target, place in zip(targets, places, strict=True):
        if only is None and target is not None:
            casts.later(target, whole[place])
