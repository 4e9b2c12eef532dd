"""Several chains of dense layers on the same rows: products are torch's, what lies between them `dense_kernels`'.

The first layers of all nets are one product: their weights lie below one another, their pre-activations side by side.

Floor of the bytes moved, for M rows and a layer of N outputs in b bytes a number, besides the products' own: forward
reads the pre-activations and writes what they become, 2 M N b; backward reads the pre-activations and the gradient and
writes another, 3 M N b. What the pre-activations became is kept for the weights' gradients: the forward pass wrote it
anyway, computing it again would read and write M N b each.

Outputs of a layer, and rows of its weight, are as many as `padding.padded` makes of them. Those too many are copies of
the first, whose gradients are 0: products of odd widths are several times as slow.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import Layer, Layers
from fastdream.ops.triton.dense_kernels import dense_act
from fastdream.ops.triton.padding import padded

Optional = Tensor | None
Parts = Sequence[Tensor]  # [M, K] each, side by side the input of the first layers


class Kept(NamedTuple):
    """What gradients of the nets that learn need of the forward pass, beside its inputs."""

    weight: Tensor  # [W, K], of their first layers, as the product took it
    first: Tensor  # [M, V] pre-activations of the first layers of all nets; none if `alone`
    later: list[
        Tensor
    ]  # of each later layer of each net: weight, input, and unless linear pre-activations, padded


def linear(layer: Layer) -> bool:
    """Whether a product, which may add a bias, is all of the layer."""
    return layer.norm == "none" and layer.act == "none"


def alone(nets: Sequence[Layers]) -> bool:
    """Whether the product of the first layers is all of them."""
    return len(nets) == 1 and linear(nets[0][0])


def columns(nets: Sequence[Layers]) -> list[slice]:
    """Which of the outputs of all first layers are each net's, padding included."""
    ends = accumulate((padded(len(net[0].weight)) for net in nets), initial=0)
    return [slice(begin, end) for begin, end in pairwise(ends)]


def kept_shapes(rows: int, nets: Sequence[Layers], learned: int) -> list[tuple[int, int]]:
    """Of all tensors of `Kept`."""
    ends = [part.stop for part in columns(nets)]
    first = (0, 0) if alone(nets) else (rows, ends[-1])
    shapes = [(ends[learned - 1], nets[0][0].weight.shape[1]), first]
    for layer in (layer for net in nets[:learned] for layer in net[1:]):
        inp, wide = layer.weight.shape[1], padded(len(layer.weight))
        shapes += [(wide, inp), (rows, padded(inp))] + [(rows, wide)] * (not linear(layer))
    return shapes


class _Packed:
    """Weights, and the biases that products add, in the dtype of products, cast in one launch."""

    def __init__(self, nets: Sequence[Layers], like: Tensor) -> None:
        inputs, places = nets[0][0].weight.shape[1], columns(nets)
        self.first = like.new_empty(places[-1].stop, inputs)
        pairs: list[tuple[Tensor, Tensor]] = []
        for place, net in zip(places, nets, strict=True):
            pairs += _repeated(self.first[place], net[0].weight)
        self.later, self.bias = {}, {}
        for j, net in enumerate(nets):
            for i, layer in enumerate(net):
                wide = padded(len(layer.weight))
                if i > 0:
                    self.later[j, i] = like.new_empty(wide, layer.weight.shape[1])
                    pairs += _repeated(self.later[j, i], layer.weight)
                if linear(layer) and layer.bias is not None:
                    self.bias[j, i] = like.new_empty(wide)
                    pairs += _repeated(self.bias[j, i], layer.bias)
        torch._foreach_copy_([y for y, _ in pairs], [x for _, x in pairs])


def _repeated(y: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Copies, from right to left, that fill y with x and then with the first rows of x again: finite as x is."""
    return [(part, x[: len(part)]) for part in y.split(len(x))]


def forward(parts: Parts, nets: Sequence[Layers], learned: int) -> tuple[list[Tensor], Kept]:
    """What each net gives, [M, padded(out)]; and what gradients of the first `learned` nets need."""
    packed, places = _Packed(nets, parts[0]), columns(nets)
    first = _product(parts, packed.first, packed.bias.get((0, 0)) if alone(nets) else None)
    outputs, later = [], []
    for j, net in enumerate(nets):
        x = first if alone(nets) else _activated(first[:, places[j]], net[0])
        for i, layer in enumerate(net[1:], start=1):
            weight = packed.later[j, i]
            pre = _product([x[:, : weight.shape[1]]], weight, packed.bias.get((j, i)))
            if j < learned:
                later += [weight, x] if linear(layer) else [weight, x, pre]
            x = pre if linear(layer) else _activated(pre, layer)
        outputs.append(x)
    # What an op returns shares no memory.
    weight = packed.first[: places[learned - 1].stop] if learned else packed.first
    return outputs, Kept(weight, first.new_empty(0, 0) if alone(nets) else first, later)


def _product(parts: Parts, weight: Tensor, bias: Optional) -> Tensor:
    """The parts side by side, [M, K], through a weight [N, K] -> [M, N]."""
    first, *others = parts
    end = first.shape[1]
    w = weight[:, :end].t()
    y = torch.mm(first, w) if bias is None else torch.addmm(bias, first, w)
    for x in others:
        y.addmm_(x, weight[:, end : end + x.shape[1]].t())
        end += x.shape[1]
    return y


def _activated(pre: Tensor, layer: Layer) -> Tensor:
    y = pre.new_empty(pre.shape)
    dense_act(pre, layer, y)
    return y
