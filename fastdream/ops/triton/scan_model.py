"""What the kernels of a scan read of a model: its layers, its widths, its weights in the dtype of products."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.params import ACTS, CORES, NORMS, with_gaps
from fastdream.ops.params import BlockGRU, Categorical, Layer, LayerNormGRU, Layers
from fastdream.ops.triton.block_product import Tiles, product_tiles


class Model(NamedTuple):
    """A core and a posterior of at least one hidden layer."""

    core: BlockGRU | LayerNormGRU
    post: Layers
    latent: Categorical
    absolute: bool

    @property
    def stoch(self) -> Layer:
        """The layer that reads stoch, and in DreamerV2's core the action with it."""
        return self.core.stoch if isinstance(self.core, BlockGRU) else self.core.inputs

    @property
    def hidden(self) -> Layers:
        """The layers between those that read the state and the new deter, all with a norm of their own."""
        return self.core.hidden if isinstance(self.core, BlockGRU) else (self.core.gates,)

    @property
    def layers(self) -> Layers:
        """All of them, in the order in which `native.params` lists them."""
        if isinstance(self.core, BlockGRU):
            deter, stoch, action, hidden, gates = self.core
            return (deter, stoch, action, gates, *hidden, *self.post)
        return (*self.core, *self.post)


class Sizes(NamedTuple):
    """Widths of a model, and of the rows in which all products of a new deter lie: posterior's | gap | own layer's."""

    blocks: int
    deter: int
    units: int  # H, of the core's input layers
    inputs: int  # how many of them read the state: deter's and stoch's, or stoch's alone
    hidden: int  # U, of the posterior's first layer
    own: int  # where the products of the core's own layer of deter begin: a multiple of the tile
    tile: int  # of those products
    width: int  # of a row of all products

    @property
    def block(self) -> int:
        return self.deter // self.blocks


class Weights(NamedTuple):
    """All in one dtype."""

    hidden: tuple[Tensor, ...]  # [g, P + 3H, P], then [g, P, P]; or [3D, H + D]
    gates: Tensor | None  # [g, P, 3P]
    stacked: Tensor  # [width, D]: the posterior's first layer, a gap of zeros, the core's own layer
    of_stoch: Tensor  # [S*C, H]
    stoch: Tensor  # [H, S*C], rows may be apart
    action: Tensor  # [H, A], rows may be apart
    post: tuple[Tensor, ...]
    post_bias: Tensor | None  # [U]


def sizes_of(model: Model, rows: int, itemsize: int) -> Sizes:
    """The widths; `rows` of a step decide the tile."""
    core, hidden = model.core, model.post[0].weight.shape[0]
    units = model.stoch.weight.shape[0]
    if isinstance(core, BlockGRU):
        tile = stacked_tiles(rows, hidden + units, itemsize).n
        own = -(-hidden // tile) * tile
        blocks, deter = core.gates.weight.shape[0], core.deter.weight.shape[1]
        return Sizes(blocks, deter, units, 2, hidden, own, tile, own + units)
    tile = stacked_tiles(rows, hidden, itemsize).n
    return Sizes(1, core.gates.weight.shape[0] // 3, units, 1, hidden, hidden, tile, hidden)


def stacked_tiles(rows: int, width: int, itemsize: int) -> Tiles:
    """Tiles of the product with the stacked weights."""
    return product_tiles(rows, width, width, itemsize)


def packed(model: Model, sizes: Sizes, dtype: torch.dtype) -> Weights:
    """The weights, cast in one launch; two more lay those together that are multiplied together."""
    core, post = model.core, model.post
    given = [layer.weight.detach() for layer in (*model.hidden, *post, model.stoch)]
    if isinstance(core, BlockGRU):
        given += [core.gates.weight.detach(), core.action.weight.detach()]
    if post[0].bias is not None:
        given.append(post[0].bias.detach())
    pairs = [(_in(dtype, x), x) for x in given]
    stacked = given[0].new_empty(sizes.width, sizes.deter, dtype=dtype)
    moved = [(y, x) for y, x in pairs if y is not x]
    if isinstance(core, BlockGRU):
        moved.append((stacked[sizes.own :], core.deter.weight.detach()))
    if moved:
        torch._foreach_copy_([y for y, _ in moved], [x for _, x in moved])

    cast = iter([y for y, _ in pairs])
    hidden = tuple(next(cast) for _ in model.hidden)
    layers = tuple(next(cast) for _ in post)
    stoch = next(cast)
    gates = next(cast) if isinstance(core, BlockGRU) else None
    count = model.latent.stoch * model.latent.classes
    action = next(cast) if isinstance(core, BlockGRU) else stoch[:, count:]
    if model.absolute:
        stacked[: sizes.own].zero_()
    else:
        stacked[: sizes.hidden].copy_(layers[0][:, : sizes.deter])
        if sizes.hidden < sizes.own:
            stacked[sizes.hidden : sizes.own].zero_()
    of_stoch = stoch.new_empty(count, sizes.units)
    of_stoch.copy_(model.stoch.weight.detach()[:, :count].t())
    return Weights(hidden, gates, stacked, of_stoch, stoch[:, :count], action, layers, next(cast, None))


def _in(dtype: torch.dtype, x: Tensor) -> Tensor:
    """x itself, or memory for it in this dtype."""
    if x.dtype == dtype and x.is_contiguous():
        return x
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def read_model(
    params: list[Tensor], filled: list[int], sizes: list[int], scalars: list[float], layout: list[int]
) -> Model:
    """What `native.params.Flat` collected of a model. layout: S, C, absolute; the last of scalars is unimix."""
    tensors, numbers, floats = iter(with_gaps(params, filled)), iter(sizes), iter(scalars)

    def layer() -> Layer:
        weight, bias, scale, shift = (next(tensors) for _ in range(4))
        _, _, _, norm, act = (next(numbers) for _ in range(5))
        assert weight is not None
        return Layer(weight, bias, scale, shift, NORMS[norm], ACTS[act], next(floats))  # type: ignore[arg-type]

    def layers() -> Iterator[Layer]:
        return (layer() for _ in range(next(numbers)))

    core: BlockGRU | LayerNormGRU
    if CORES[next(numbers)] == "block_gru":
        deter, stoch, action, gates = (layer() for _ in range(4))
        core = BlockGRU(deter, stoch, action, tuple(layers()), gates)
    else:
        core = LayerNormGRU(layer(), layer())
    post = tuple(layers())
    return Model(core, post, Categorical(layout[0], layout[1], next(floats)), layout[2] == 1)
