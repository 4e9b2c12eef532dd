"""What the kernels of a scan read of a model: its layers, and their weights in the dtype of products."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Layer
from fastdream.ops.triton.block_product import Tiles, product_tiles


class Sizes(NamedTuple):
    """Widths of a model, and of the rows in which the products of a new deter lie: posterior's | gap | own layer's."""

    blocks: int
    deter: int
    units: int  # of the core's input layers
    hidden: int  # of the posterior's first layer
    own: int  # where the products of the core's own layer begin: a multiple of the tile

    @property
    def block(self) -> int:
        return self.deter // self.blocks


class Weights(NamedTuple):
    """All in one dtype."""

    hidden: Tensor  # [g, P + 3H, P]
    gates: Tensor  # [g, P, 3P]
    stacked: Tensor  # [own + H, D]: the posterior's first layer, a gap of zeros, the core's own layer
    of_stoch: Tensor  # [S*C, H]
    stoch: Tensor  # [H, S*C]
    action: Tensor  # [H, A]
    post: Tensor  # [U, D + E]
    post_bias: Tensor | None  # [U]
    logit: Tensor  # [S*C, U]


def sizes_of(core: BlockGRU, first: Layer, rows: int, itemsize: int) -> Sizes:
    """The widths; `rows` of a step decide the tile."""
    units, deter = core.deter.weight.shape
    hidden = first.weight.shape[0]
    tile = stacked_tiles(rows, hidden + units, itemsize).n
    return Sizes(core.gates.weight.shape[0], deter, units, hidden, -(-hidden // tile) * tile)


def stacked_tiles(rows: int, width: int, itemsize: int) -> Tiles:
    """Tiles of the product with the stacked weights."""
    return product_tiles(rows, width, width, itemsize)


def packed(core: BlockGRU, post: tuple[Layer, Layer], sizes: Sizes, dtype: torch.dtype) -> Weights:
    """The weights, cast in one launch; two more lay those together that are multiplied together."""
    first, last = post
    layers = core.hidden[0], core.gates, core.stoch, core.action, first, last
    stacked = first.weight.new_empty(sizes.own + sizes.units, sizes.deter, dtype=dtype)
    given = [x.weight.detach() for x in layers]
    if first.bias is not None:
        given.append(first.bias.detach())
    cast = [x if x.dtype == dtype and x.is_contiguous() else _empty(x, dtype) for x in given]
    pairs = [(y, x) for y, x in zip(cast, given, strict=True) if y is not x]
    pairs.append((stacked[sizes.own :], core.deter.weight.detach()))
    torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
    hidden, gates, stoch, action, wide, logit, *bias = cast
    stacked[: sizes.hidden].copy_(wide[:, : sizes.deter])
    if sizes.hidden < sizes.own:
        stacked[sizes.hidden : sizes.own].zero_()
    of_stoch = stoch.new_empty(stoch.shape[::-1]).copy_(core.stoch.weight.detach().t())
    return Weights(hidden, gates, stacked, of_stoch, stoch, action, wide, bias[0] if bias else None, logit)


def _empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
