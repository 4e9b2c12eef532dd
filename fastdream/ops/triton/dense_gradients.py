"""Gradients of `dense_nets`: of all parameters and of the input."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdream.ops.params import Layer, Layers
from fastdream.ops.triton.dense_kernels import add_rows_into, dense_act_gradient, programs
from fastdream.ops.triton.dense_nets import Kept, Optional, Packed, Parts, alone, columns, linear
from fastdream.ops.triton.padding import padded

Place = tuple[int, int, int]  # of a parameter: its net, its layer there, its field of the layer
Gradients = dict[Place, Tensor]


class _Vectors:
    """Gradients of biases, scales and shifts, which each program of a pass over rows adds up on its own."""

    def __init__(self, width: int, like: Tensor) -> None:
        self._sums = like.new_empty(programs(like), width, dtype=torch.float32)
        self._taken: list[tuple[Place, Tensor]] = []
        self._used = 0

    def columns(self, nets: Sequence[Layers], net: int, i: int, wanted: set[Place]) -> list[Optional]:
        """[P, N] for programs to store, for each vector [N] of layer i of a net whose gradient is wanted."""
        places = [(net, i, field) for field in (1, 2, 3)]
        return [self._column(p, parameter(nets, p)) if p in wanted else None for p in places]

    def _column(self, place: Place, vector: Tensor) -> Tensor:
        self._taken.append((place, vector))
        self._used += len(vector)
        return self._sums[:, self._used - len(vector) : self._used]

    def finish(self) -> Gradients:
        """The gradients, in the dtypes of what they are of."""
        found = {place: torch.empty_like(vector) for place, vector in self._taken}
        if found:
            add_rows_into(self._sums, [*found.values()])
        return found


def backward(
    parts: Parts,
    nets: Sequence[Layers],
    kept: Kept,
    grads: Sequence[Tensor],
    inputs: Sequence[bool],
    wanted: set[Place],
) -> tuple[list[Tensor], Gradients]:
    """Gradients of those parts that `inputs` says, and of the parameters that are wanted, in their dtypes.

    grads: of what the first nets gave, [M, out], rows in one piece each; only these have parameters that are wanted.
    """
    nets, single = nets[: len(grads)], alone(nets)
    width = sum(len(nets[j][i].weight) for j, i, field in wanted if field)
    vectors, weights = _Vectors(width, grads[0]), Packed(nets, grads[0], biases=False)
    places, later = columns(nets), iter(kept.later)
    found: Gradients = {}
    d_first = grads[0].new_empty(len(grads[0]), places[-1].stop)
    for j, (net, grad, place) in enumerate(zip(nets, grads, places, strict=True)):
        saved = [(next(later), None if linear(x) else next(later)) for x in net[1:]]
        for i in range(len(net) - 1, 0, -1):
            x, pre = saved[i - 1]
            d_pre = _through_act(net[i], pre, grad, vectors.columns(nets, j, i, wanted))
            if (j, i, 0) in wanted:
                d_weight = torch.mm(d_pre.t(), x[:, : net[i].weight.shape[1]])
                found[j, i, 0] = d_weight[: len(net[i].weight)]
            grad = d_pre @ weights.later[j, i]
        d_vectors = vectors.columns(nets, j, 0, wanted)
        if single:
            d_first = _through_act(net[0], None, grad, d_vectors)
        else:
            dense_act_gradient(kept.first[:, place], net[0], grad, d_first[:, place], d_vectors)
    if any((j, 0, 0) in wanted for j in range(len(nets))):
        whole = _first_weights(parts, d_first)
        for j, (net, place) in enumerate(zip(nets, places, strict=True)):
            if (j, 0, 0) in wanted:
                found[j, 0, 0] = whole[place][: len(net[0].weight)]
    of_parts = zip(weights.first.split([x.shape[1] for x in parts], 1), inputs, strict=True)
    d_parts = [torch.mm(d_first, weight) for weight, want in of_parts if want]
    return d_parts, _apart(found, nets) | vectors.finish()


def _apart(found: Gradients, nets: Sequence[Layers]) -> Gradients:
    """Gradients in the dtypes of what they are of, which share no memory: those that are not so are copied at once."""
    copies = {}
    for place, g in found.items():
        p = parameter(nets, place)
        if g.dtype != p.dtype or (place[1:] == (0, 0) and len(nets) > 1):
            copies[place] = torch.empty_like(p, memory_format=torch.contiguous_format)
    if copies:
        torch._foreach_copy_([*copies.values()], [found[place] for place in copies])
    return found | copies


def parameter(nets: Sequence[Layers], place: Place) -> Tensor:
    """The parameter at a place."""
    net, i, field = place
    found = nets[net][i][:4][field]
    assert found is not None, place
    return found


def _through_act(layer: Layer, pre: Optional, grad: Tensor, sums: list[Optional]) -> Tensor:
    """Gradient of a layer's product, padded, from that of its output; a linear layer's is the same."""
    rows, width = grad.shape
    if linear(layer) and width == padded(width):
        if sums[0] is not None:
            dense_act_gradient(None, layer, grad, None, sums)
        return grad
    d_pre = grad.new_empty(rows, padded(width))
    dense_act_gradient(None if linear(layer) else pre, layer, grad, d_pre, sums)
    return d_pre


def _first_weights(parts: Parts, d_first: Tensor) -> Tensor:
    """Gradients of the first layers' weights, one below the other: one product for each part of the input."""
    widths = [x.shape[1] for x in parts]
    if len(parts) == 1:
        return torch.mm(d_first.t(), parts[0])
    whole = d_first.new_empty(d_first.shape[1], sum(widths))
    for x, d_weight in zip(parts, whole.split(widths, 1), strict=True):
        torch.mm(d_first.t(), x, out=d_weight)
    return whole
