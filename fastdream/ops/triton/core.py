"""One step of a core without gradient: from deter, and the features of the core's other inputs, to the new deter."""

from typing import NamedTuple, Self

from torch import Tensor

from fastdream.ops.params import Layer, Layers
from fastdream.ops.triton.block_product import Normed, Tiles, block_product, product_sums, product_tiles
from fastdream.ops.triton.dense_gates import dense_gates
from fastdream.ops.triton.gates import block_gates, gates_tiles
from fastdream.ops.triton.gru_step import gru
from fastdream.ops.triton.planet_step import planet


class BlockStep(NamedTuple):
    """DreamerV3's core: a launch for every hidden layer, and one for the gates."""

    hidden: Layers
    gates: Layer
    tiles: Tiles
    gates_tiles: Tiles
    pre: tuple[Tensor, ...]  # [M, D] each, of the hidden layers
    sums: tuple[Tensor | None, ...]

    @classmethod
    def bind(cls, hidden: Layers, gates: Layer, rows: int) -> Self:
        """Layers in the dtype of products, for so many rows."""
        blocks, block, _ = gates.weight.shape
        width, itemsize = blocks * block, gates.weight.element_size()
        tiles = product_tiles(rows, width, block, itemsize)
        pre = tuple(gates.weight.new_empty(rows, width) for _ in hidden)
        sums = tuple(product_sums(y, blocks, tiles, layer.norm) for y, layer in zip(pre, hidden, strict=True))
        return cls(hidden, gates, tiles, gates_tiles(rows, width, block, itemsize), pre, sums)

    def __call__(self, deter: Tensor, x: Tensor, out: Tensor, reset: Tensor | None = None) -> None:
        """deter [M, D], zero where reset [M], and x [M, 3H], features of deter, stoch and action, to out [M, D]."""
        block, (layer, *later) = self.gates.weight.shape[1], self.hidden
        own, shared = layer.weight[:, :block], layer.weight[:, block:]
        y, sums, base = self.pre[0], self.sums[0], bias_rows(layer, len(x))
        block_product(deter, reset, own, x, shared, base, y, sums, layer.norm, self.tiles)
        for i, following in enumerate(later, 1):
            before, normed, layer = y, Normed(layer, sums, self.tiles.n), following
            y, sums, base = self.pre[i], self.sums[i], bias_rows(layer, len(x))
            products = before, None, layer.weight, None, None
            block_product(*products, base, y, sums, layer.norm, self.tiles, normed)
        weight, bias = self.gates.weight, self.gates.bias
        inputs = y, sums, layer.scale, layer.shift, weight, bias, deter, reset, out, None
        block_gates(*inputs, layer.norm, layer.act, layer.eps, self.tiles.n, self.gates_tiles)


class DenseStep(NamedTuple):
    """DreamerV2's core: two launches."""

    gates: Layer
    tiles: Tiles
    pre: Tensor  # [M, 3D]
    sums: Tensor | None

    @classmethod
    def bind(cls, gates: Layer, rows: int) -> Self:
        """Layers in the dtype of products, for so many rows."""
        width = len(gates.weight)
        tiles = product_tiles(rows, width, width, gates.weight.element_size())
        pre = gates.weight.new_empty(rows, width)
        return cls(gates, tiles, pre, product_sums(pre, 1, tiles, gates.norm))

    def __call__(self, deter: Tensor, x: Tensor, out: Tensor, reset: Tensor | None = None) -> None:
        """deter [M, D], zero where reset [M], and x [M, H], the features of stoch and action, to out [M, D]."""
        layer, width = self.gates, x.shape[1]
        weight = layer.weight.t().unsqueeze(0)
        products = deter, reset, weight[:, width:], x, weight[:, :width], bias_rows(layer, len(x))
        block_product(*products, self.pre, self.sums, layer.norm, self.tiles)
        dense_gates(self.pre, self.sums, layer, deter, reset, out, self.tiles.n)


class PlainStep(NamedTuple):
    """DreamerV1's core: one launch. Of each layer the rows lie as `gru` wants them, the biases as PyTorch has them."""

    of_x: Layer
    of_deter: Layer

    def __call__(self, deter: Tensor, x: Tensor, out: Tensor, reset: Tensor | None = None) -> None:
        """deter [M, D], zero where reset [M], and x [M, H], the features of stoch and action, to out [M, D]."""
        (of_x, bias_x), (of_deter, bias_h) = self.of_x[:2], self.of_deter[:2]
        assert bias_x is not None and bias_h is not None
        gru(deter, reset, x, of_x, of_deter, bias_x, bias_h, out, None)


class PlanetStep(NamedTuple):
    """PlaNet's core: two launches. Layers as of `PlainStep`."""

    of_x: Layer
    of_deter: Layer
    passed: Tensor  # [M, 2D]

    @classmethod
    def bind(cls, of_x: Layer, of_deter: Layer, rows: int) -> Self:
        """Layers in the dtype of products, for so many rows."""
        weight = of_deter.weight
        return cls(of_x, of_deter, weight.new_empty(rows, 2 * weight.shape[1]))

    def __call__(self, deter: Tensor, x: Tensor, out: Tensor, reset: Tensor | None = None) -> None:
        """deter [M, D], zero where reset [M], and x [M, H], the features of stoch and action, to out [M, D]."""
        (of_x, bias_x), (of_deter, bias_h) = self.of_x[:2], self.of_deter[:2]
        assert bias_x is not None and bias_h is not None
        planet(deter, reset, x, of_x, of_deter, bias_x, bias_h, self.passed, None, out)


Step = BlockStep | DenseStep | PlainStep | PlanetStep


def bias_rows(layer: Layer, rows: int) -> Tensor | None:
    """The layer's bias for every row."""
    return None if layer.bias is None else layer.bias.expand(rows, -1)
