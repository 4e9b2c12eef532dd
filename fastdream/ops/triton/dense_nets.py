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
from fastdream.ops.triton.padding import padded, padded_rows

Optional = Tensor | None
Parts = Sequence[Tensor]  # [M, K] each, side by side the input of the first layers


class Kept(NamedTuple):
    """What gradients of the nets that learn need of the forward pass, beside its inputs."""

    first: Tensor  # [M, V] pre-activations of the first layers of all nets; none if `alone`
    later: list[Tensor]  # of each later layer of each net: input, and unless linear pre-activations, padded


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
    shapes = [first]
    for layer in (layer for net in nets[:learned] for layer in net[1:]):
        inp, wide = layer.weight.shape[1], padded(len(layer.weight))
        shapes += [(rows, padded(inp))] + [(rows, wide)] * (not linear(layer))
    return shapes


class Packed:
    """Weights, and the biases that products add, in the dtype of products.

    As they are where nothing is to be changed of them; the others are copied in one launch: those in another dtype, of
    odd widths, or first layers that do not lie one after the other.
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
        whole = padded_rows(x) if x.dtype == like.dtype else None
        return self._copied([x], like) if whole is None else whole

    def _joined(self, weights: list[Tensor], like: Tensor) -> Tensor:
        if len(weights) == 1:
            return self._taken(weights[0], like)
        joined = in_one_piece(weights) if weights[0].dtype == like.dtype else None
        return self._copied(weights, like) if joined is None else joined

    def _copied(self, tensors: list[Tensor], like: Tensor) -> Tensor:
        """Memory for all, one after the other, each padded with its first rows, which are finite as it is."""
        sizes = [padded(len(x)) for x in tensors]
        whole = like.new_empty(sum(sizes), *tensors[0].shape[1:])
        for y, x in zip(whole.split(sizes), tensors, strict=True):
            self._pairs += [(part, x[: len(part)]) for part in y.split(len(x))]
        return whole


def in_one_piece(tensors: Sequence[Tensor]) -> Optional:
    """Tensors [n, ...] as one, each padded, if memory of their own holds them like that, one after the other.

    Where none has any padding, others may lie before and behind them there.
    """
    first, rows = tensors[0], 0
    memory, length, begin = first.untyped_storage(), first[:1].numel(), first.storage_offset()
    for x in tensors:
        same = x.dtype == first.dtype and x.untyped_storage()._cdata == memory._cdata
        if not same or not x.is_contiguous() or x.storage_offset() != begin + rows * length:
            return None
        rows += padded(len(x))
    odd = any(len(x) != padded(len(x)) for x in tensors)
    if odd and (begin > 0 or rows * length * first.element_size() != memory.nbytes()):
        return None
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def forward(parts: Parts, nets: Sequence[Layers], learned: int) -> tuple[list[Tensor], Kept]:
    """What each net gives, [M, padded(out)]; and what gradients of the first `learned` nets need."""
    packed, places = Packed(nets, parts[0]), columns(nets)
    first = _product(parts, packed.first, packed.bias.get((0, 0)) if alone(nets) else None)
    outputs, later = [], []
    for j, net in enumerate(nets):
        x = first if alone(nets) else _activated(first[:, places[j]], net[0])
        for i, layer in enumerate(net[1:], start=1):
            weight = packed.later[j, i]
            pre = _product([x[:, : weight.shape[1]]], weight, packed.bias.get((j, i)))
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
