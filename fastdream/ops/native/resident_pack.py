"""Weights as csrc/common/resident takes them: cut into what each CTA keeps, in the order in which its lanes read it.

A CTA (block, rank) owns D / blocks / ranks columns of deter, H / ranks of every hidden layer, S / ranks variables.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """A `Shape` of csrc/common/resident/plan.h."""

    blocks: int
    deter: int
    hidden: int
    stoch: int
    classes: int
    ranks: int

    @property
    def team(self) -> int:
        return self.blocks * self.ranks


class Params(NamedTuple):
    """What the recurrent part of observing reads. Weights and biases have the products' dtype, scales are float32."""

    deter: Tensor  # [H, D]
    deter_bias: Tensor
    deter_scale: Tensor
    stoch: Tensor  # [H, S*C]
    stoch_bias: Tensor
    stoch_scale: Tensor
    of_deter: Tensor  # [g, D / g, D / g], of the core's hidden layer
    of_state: Tensor  # [D, 2H], of the same
    hidden_scale: Tensor
    gates: Tensor  # [g, D / g, 3D / g]
    gates_bias: Tensor
    post: Tensor  # [H, D]
    post_scale: Tensor
    logits: Tensor  # [S*C, H]
    logits_bias: Tensor


Cut = Callable[[Params, Shape], Tensor]


def packed(weight: Tensor) -> Tensor:
    """Right operands [..., K, N] in the order of `right_offset` of csrc/common/resident/fragments.h -> [..., K * N]."""
    *lead, rows, columns = weight.shape
    # Pair of tiles, tile, half, two rows of a lane | strip, column of a strip.
    tiles = weight.reshape(*lead, rows // 32, 2, 2, 4, 2, columns // 8, 8)
    n = len(lead)
    return tiles.permute(*range(n), *(n + i for i in (5, 0, 6, 3, 1, 2, 4))).flatten(n)


def _joined(shape: Shape, parts: list[Tensor]) -> Tensor:
    """Parts [blocks or 1, ranks, n] side by side -> [blocks * ranks, sum of n]."""
    return torch.cat([part.expand(shape.blocks, -1, -1) for part in parts], -1).flatten(0, 1)


def forward_weights(p: Params, shape: Shape) -> Tensor:
    """[blocks * ranks, elements]: `ForwardWeights` of csrc/common/resident/plan.h for every CTA."""
    g, ranks = shape.blocks, shape.ranks
    own, own_hidden = shape.deter // g // ranks, shape.hidden // ranks
    of_deter = p.of_deter.unflatten(2, (ranks, own)).transpose(1, 2)
    of_state = p.of_state.view(g, ranks, own, -1).transpose(2, 3)
    gates = p.gates.unflatten(2, (3, ranks, own)).permute(0, 3, 1, 2, 4).flatten(3)
    of_next = (
        torch.stack([p.deter, p.post]).view(2, ranks, own_hidden, g, -1).permute(3, 1, 4, 0, 2).flatten(3)
    )
    logits = p.logits.view(1, ranks, -1, shape.hidden).transpose(2, 3)
    table = p.stoch.view(1, ranks, own_hidden, -1).transpose(2, 3)
    of_features = of_state.split(shape.hidden, 2)
    first = (packed(x) for x in (of_deter, *of_features, gates, of_next))
    return _joined(shape, [*first, table.flatten(2), packed(logits)])


def backward_weights(p: Params, shape: Shape) -> Tensor:
    """[blocks * ranks, elements]: `BackwardWeights` of csrc/common/resident/plan.h for every CTA."""
    g, ranks = shape.blocks, shape.ranks
    own, own_hidden = shape.deter // g // ranks, shape.hidden // ranks
    to_deter = torch.cat([p.post, p.deter]).view(-1, g, ranks, own).permute(1, 2, 0, 3)
    gates = p.gates.unflatten(1, (ranks, own)).transpose(2, 3)
    of_state = p.of_state.view(g, -1, 2, ranks, own_hidden).permute(0, 3, 1, 2, 4).flatten(3)
    of_deter = p.of_deter.unflatten(1, (ranks, own)).transpose(2, 3)
    logits = p.logits.view(1, -1, ranks, own_hidden).transpose(1, 2)
    table = p.stoch.view(1, shape.hidden, ranks, -1).transpose(1, 2)
    return _joined(shape, [packed(x) for x in (to_deter, gates, of_state, of_deter, logits, table)])


def vectors(p: Params, shape: Shape) -> Tensor:
    """[blocks * ranks, elements] float32: `Vectors` of csrc/common/resident/plan.h for every CTA."""
    g, ranks = shape.blocks, shape.ranks
    scales = torch.cat([p.deter_scale, p.stoch_scale, p.post_scale]).float()
    gates = p.gates_bias.view(g, 3, ranks, -1).transpose(1, 2).flatten(2)
    parts = [scales.expand(1, ranks, -1), p.hidden_scale.view(g, ranks, -1), gates]
    parts += [x.view(1, ranks, -1) for x in (p.deter_bias, p.stoch_bias, p.logits_bias)]
    return _joined(shape, [part.float() for part in parts])


def packed_weights(p: Params, shape: Shape, backward: bool) -> list[Tensor]:
    """Those of the forward launch, and of the backward one if it will come: `forward_weights`, `backward_weights`.

    In a few launches: parameters in a row, and each element from its place.
    """
    row = torch.cat([x.flatten() for x in _weights(p)])
    return [_taken(row, cut, p, shape) for cut in (forward_weights, backward_weights)[: 1 + backward]]


def packed_vectors(p: Params, shape: Shape) -> Tensor:
    """`vectors`, likewise."""
    biases = torch.cat([x.flatten() for x in _biases(p)])
    return _taken(torch.cat([biases.float(), *(x.flatten() for x in _scales(p))]), vectors, p, shape)


def _taken(row: Tensor, cut: Cut, p: Params, shape: Shape) -> Tensor:
    places = _places(cut, shape, tuple(x.shape for x in p), row.device)
    return row.index_select(0, places).view(shape.team, -1)


@cache
def _places(cut: Cut, shape: Shape, sizes: tuple[torch.Size, ...], device: torch.device) -> Tensor:
    """[blocks * ranks * elements]: where in the row each lies, found by cutting numbers that count the row's."""
    numbers = Params(*(torch.empty(size, dtype=torch.int32) for size in sizes))
    first = 0
    for x in (*_biases(numbers), *_scales(numbers)) if cut is vectors else _weights(numbers):
        x.copy_(torch.arange(first, first + x.numel(), dtype=torch.int32).view_as(x))
        first += x.numel()
    return cut(numbers, shape).flatten().to(device, torch.int32)


def packed_sizes(p: Params, shape: Shape) -> tuple[int, int]:
    """Elements that a CTA has of the weights of either launch, and of vectors."""
    of_blocks, whole = (p.of_deter, p.of_state, p.gates, p.deter, p.post), (p.stoch, p.logits)
    weights = sum(x.numel() for x in of_blocks) // shape.team + sum(x.numel() for x in whole) // shape.ranks
    others = sum(len(x) for x in (p.deter_scale, p.stoch_scale, p.post_scale))
    others += (len(p.hidden_scale) + len(p.gates_bias)) // shape.team
    others += sum(len(x) for x in (p.deter_bias, p.stoch_bias, p.logits_bias)) // shape.ranks
    return weights, others


def _biases(p: Params) -> list[Tensor]:
    return [p.deter_bias, p.stoch_bias, p.gates_bias, p.logits_bias]


def _scales(p: Params) -> list[Tensor]:
    return [p.deter_scale, p.stoch_scale, p.hidden_scale, p.post_scale]


def _weights(p: Params) -> list[Tensor]:
    return [p.deter, p.stoch, p.of_deter, p.of_state, p.gates, p.post, p.logits]
