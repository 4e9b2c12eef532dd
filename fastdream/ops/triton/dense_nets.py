"""Several chains of dense layers on the same rows: products are torch's, what lies between them `dense_kernels`'.

The first layers of all nets are one product: their weights lie below one another, their pre-activations side by side.

Floor of the bytes moved, for M rows and a layer of N outputs in b bytes a number, besides the products' own: forward
reads the pre-activations and writes what they become, 2 M N b; backward reads the pre-activations and the gradient and
writes another, 3 M N b. What the pre-activations became is kept for the weights' gradients: the forward pass wrote it
anyway, computing it again would read and write M N b each.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import Layer, Layers
from fastdream.ops.triton.dense_kernels import dense_act

Optional = Tensor | None
Parts = Sequence[Tensor]  # [M, K] each, side by side the input of the first layers


class Kept(NamedTuple):
    """What gradients of the nets that learn need of the forward pass, beside its inputs."""

    first: Tensor  # [M, V] pre-activations of the first layers of all nets; none if `alone`
    later: list[Tensor]  # of each later layer of each net: input, and unless linear pre-activations


def linear(layer: Layer) -> bool:
    """Whether a product, which may add a bias, is all of the layer."""
    return layer.norm == "none" and layer.act == "none"


def alone(nets: Sequence[Layers]) -> bool:
    """Whether the product of the first layers is all of them."""
    return len(nets) == 1 and linear(nets[0][0])


def columns(nets: Sequence[Layers]) -> list[slice]:
    """Which of the outputs of all first layers are each net's."""
    ends = accumulate((len(net[0].weight) for net in nets), initial=0)
    return [slice(begin, end) for begin, end in pairwise(ends)]


def kept_shapes(rows: int, nets: Sequence[Layers], learned: int) -> list[tuple[int, int]]:
    """Of all tensors of `Kept`."""
    ends = [part.stop for part in columns(nets)]
    first = (0, 0) if alone(nets) else (rows, ends[-1])
    shapes = [first]
    for layer in (layer for net in nets[:learned] for layer in net[1:]):
        out, inp = layer.weight.shape
        shapes += [(rows, inp)] + [(rows, out)] * (not linear(layer))
    return shapes


class Packed:
    """Weights, and the biases that products add, in the dtype of products.

    As they are where they are in it and those of the first layers lie one after the other; the others are copied, in
    one launch.
    """

    def __init__(self, nets: Sequence[Layers], like: Tensor, biases: bool = True) -> None:
        self.later, self.bias = {}, {}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self.first = self._joined([net[0].weight for net in nets], like)
        for j, net in enumerate(nets):
            for i, layer in enumerate(net):
                if i > 0:
                    self.later[j, i] = self._taken(layer.weight, like)
                if biases and linear(layer) and layer.bias is not None:
                    self.bias[j, i] = self._taken(layer.bias, like)
        if self._pairs:
            torch._foreach_copy_([y for y, _ in self._pairs], [x for _, x in self._pairs])

    def _taken(self, x: Tensor, like: Tensor) -> Tensor:
        if x.dtype == like.dtype:
            return x
        self._pairs.append((like.new_empty(x.shape), x))
        return self._pairs[-1][0]

    def _joined(self, weights: list[Tensor], like: Tensor) -> Tensor:
        if len(weights) == 1:
            return self._taken(weights[0], like)
        joined = in_one_piece(weights) if weights[0].dtype == like.dtype else None
        if joined is None:
            joined = like.new_empty(sum(map(len, weights)), weights[0].shape[1])
            self._pairs += zip(joined.split([len(x) for x in weights]), weights, strict=True)
        return joined


def in_one_piece(tensors: Sequence[Tensor]) -> Optional:
    """Tensors [n, ...] as one, if they are parts of one piece of memory without gaps."""
    first, end = tensors[0], tensors[0].data_ptr()
    for x in tensors:
        same = x.dtype == first.dtype and x.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not x.is_contiguous() or x.data_ptr() != end:
            return None
        end += x.numel() * x.element_size()
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


def forward(parts: Parts, nets: Sequence[Layers], learned: int) -> tuple[list[Tensor], Kept]:
    """What each net gives [M, out]; and what gradients of the first `learned` nets need."""
    packed, places = Packed(nets, parts[0]), columns(nets)
    first = _product(parts, packed.first, packed.bias.get((0, 0)) if alone(nets) else None)
    outputs, later = [], []
    for j, net in enumerate(nets):
        x = first if alone(nets) else _activated(first[:, places[j]], net[0])
        for i, layer in enumerate(net[1:], start=1):
            weight = packed.later[j, i]
            pre = _product([x], weight, packed.bias.get((j, i)))
            if j < learned:
                later += [x] if linear(layer) else [x, pre]
            x = pre if linear(layer) else _activated(pre, layer)
        outputs.append(x)
    return outputs, Kept(first.new_empty(0, 0) if alone(nets) else first, later)


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
