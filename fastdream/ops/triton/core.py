"""One step of a core on the GPU: from deter, and the features of the core's other inputs, to the new deter."""

from typing import NamedTuple, Self

import triton
from torch import Tensor

from fastdream.ops.params import Layer, Layers
from fastdream.ops.triton.block_product import Tiles, block_product, product_sums, product_tiles
from fastdream.ops.triton.config import row_tile
from fastdream.ops.triton.dense_gates import dense_gates
from fastdream.ops.triton.gates import block_gates, gates_tiles
from fastdream.ops.triton.layers import norm_act_fwd_kernel
from fastdream.ops.triton.library import capability, launch


class BlockStep(NamedTuple):
    """DreamerV3's core: two launches, and two more for every hidden layer beyond the first."""

    hidden: Layers
    gates: Layer
    bases: tuple[Tensor | None, ...]  # [M, D] each, the hidden layers' biases
    tiles: Tiles
    gates_tiles: Tiles
    pre: Tensor  # [M, D], of a hidden layer
    features: Tensor  # [M, D], of a hidden layer that another one follows
    sums: Tensor | None

    @classmethod
    def bind(cls, hidden: Layers, gates: Layer, rows: int) -> Self:
        """Layers in the dtype of products, for so many rows."""
        blocks, block, _ = gates.weight.shape
        width, itemsize = blocks * block, gates.weight.element_size()
        tiles = product_tiles(rows, width, block, itemsize)
        pre = gates.weight.new_empty(rows, width)
        sums = product_sums(pre, blocks, tiles, hidden[-1].norm)
        bases = tuple(bias_rows(layer, rows) for layer in hidden)
        features = pre.new_empty(rows if len(hidden) > 1 else 0, width)
        return cls(
            hidden, gates, bases, tiles, gates_tiles(rows, width, block, itemsize), pre, features, sums
        )

    def __call__(self, deter: Tensor, x: Tensor, out: Tensor, reset: Tensor | None = None) -> None:
        """deter [M, D], zero where reset [M], and x [M, 3H], features of deter, stoch and action, to out [M, D]."""
        block, last = self.gates.weight.shape[1], self.hidden[-1]
        for i, layer in enumerate(self.hidden):
            norm, sums = (layer.norm, self.sums) if layer is last else ("none", None)
            if i == 0:
                own, shared = layer.weight.split([block, layer.weight.shape[1] - block], 1)
                block_product(deter, reset, own, x, shared, self.bases[0], self.pre, sums, norm, self.tiles)
            else:
                norm_act(self.pre, self.hidden[i - 1], self.features)
                products = self.features, None, layer.weight, None, None, self.bases[i]
                block_product(*products, self.pre, sums, norm, self.tiles)
        block_gates(
            self.pre,
            self.sums,
            last.scale,
            last.shift,
            self.gates.weight,
            self.gates.bias,
            deter,
            reset,
            out,
            None,
            last.norm,
            last.act,
            last.eps,
            self.tiles.n,
            self.gates_tiles,
        )


class DenseStep(NamedTuple):
    """DreamerV2's core: two launches."""

    gates: Layer
    base: Tensor | None  # [M, 3D], the bias
    tiles: Tiles
    pre: Tensor  # [M, 3D]
    sums: Tensor | None

    @classmethod
    def bind(cls, gates: Layer, rows: int) -> Self:
        """Layers in the dtype of products, for so many rows."""
        width = len(gates.weight)
        tiles = product_tiles(rows, width, width, gates.weight.element_size())
        pre = gates.weight.new_empty(rows, width)
        base = bias_rows(gates, rows)
        return cls(gates, base, tiles, pre, product_sums(pre, 1, tiles, gates.norm))

    def __call__(self, deter: Tensor, x: Tensor, out: Tensor, reset: Tensor | None = None) -> None:
        """deter [M, D], zero where reset [M], and x [M, H], the features of stoch and action, to out [M, D]."""
        weight = self.gates.weight.t().unsqueeze(0)
        shared, own = weight.split([x.shape[1], deter.shape[1]], 1)
        norm = self.gates.norm
        block_product(deter, reset, own, x, shared, self.base, self.pre, self.sums, norm, self.tiles)
        dense_gates(self.pre, self.sums, self.gates, deter, reset, out, self.tiles.n)


def bias_rows(layer: Layer, rows: int) -> Tensor | None:
    """The layer's bias for every row."""
    return None if layer.bias is None else layer.bias.expand(rows, -1)


def norm_act(x: Tensor, layer: Layer, out: Tensor) -> None:
    """Norm and activation of a layer on x [M, N]."""
    tile = row_tile(x.shape[1], capability(x.device))
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    launch(
        norm_act_fwd_kernel,
        (triton.cdiv(len(x), tile.rows),),
        x,
        scale,
        shift,
        out,
        layer.eps,
        len(x),
        N=x.shape[1],
        NORM=layer.norm,
        ACT=layer.act,
        BM=tile.rows,
        BN=tile.cols,
        num_warps=tile.warps,
    )
