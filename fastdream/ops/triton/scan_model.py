"""What the kernels of a scan read of a model: its layers, its widths, its weights in the dtype of products."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import GRU, BlockGRU, Categorical, Core, Latent, Layer, Layers
from fastdream.ops.triton.block_product import Tiles, product_tiles
from fastdream.ops.triton.unflatten import Reader, latent_of


class Model(NamedTuple):
    """A core and a posterior of at least one hidden layer."""

    core: Core
    post: Layers
    latent: Latent
    absolute: bool

    @property
    def stoch(self) -> Layer:
        """The layer that reads stoch, and in all cores but DreamerV3's the action with it."""
        return self.core.stoch if isinstance(self.core, BlockGRU) else self.core.inputs

    @property
    def hidden(self) -> Layers:
        """The layers between those that read the state and the new deter, all with a norm of their own."""
        if isinstance(self.core, GRU):
            return ()
        return self.core.hidden if isinstance(self.core, BlockGRU) else (self.core.gates,)

    @property
    def kept(self) -> int:
        """How many gates are kept, each as wide as deter: none where they are the hidden layer. See `gru` of four."""
        return 3 if isinstance(self.core, BlockGRU) else 4 if isinstance(self.core, GRU) else 0

    @property
    def returned(self) -> int:
        """How many of them have gradients of their own: of `planet`'s all but h."""
        return 3 if isinstance(self.core, GRU) and not self.core.reset_after else self.kept

    @property
    def state(self) -> tuple[int, ...]:
        """Shape of a stoch."""
        latent = self.latent
        return (latent.stoch, latent.classes) if isinstance(latent, Categorical) else (latent.stoch,)

    @property
    def logits(self) -> tuple[int, ...]:
        """Shape of what it is drawn from."""
        return self.state if isinstance(self.latent, Categorical) else (2 * self.latent.stoch,)


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

    hidden: tuple[
        Tensor, ...
    ]  # [g, P + 3H, P], then [g, P, P]; or [3D, H + D]; or [3D, H] and [3D, D], see `gru`
    gates: Tensor | None  # [g, P, 3P]
    stacked: Tensor  # [width, D]: the posterior's first layer, a gap of zeros, the core's own layer
    of_stoch: Tensor  # [S*C, H] or [S, H]
    stoch: Tensor  # [H, S*C] or [H, S], rows may be apart
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
    deter = core.weight_hh.shape[1] if isinstance(core, GRU) else core.gates.weight.shape[0] // 3
    return Sizes(1, deter, units, 1, hidden, hidden, tile, hidden)


def stacked_tiles(rows: int, width: int, itemsize: int) -> Tiles:
    """Tiles of the product with the stacked weights."""
    return product_tiles(rows, width, width, itemsize)


def packed(model: Model, sizes: Sizes, dtype: torch.dtype) -> Weights:
    """The weights, cast in one launch; two more lay those together that are multiplied together."""
    core, post = model.core, model.post
    given = [layer.weight.detach() for layer in (*model.hidden, *post, model.stoch)]
    if isinstance(core, BlockGRU):
        given += [core.gates.weight.detach(), core.action.weight.detach()]
    if isinstance(core, GRU):
        given.append(core.weight_hh.detach())
    if post[0].bias is not None:
        given.append(post[0].bias.detach())
    pairs = [(_in(dtype, x), x) for x in given]
    stacked = given[0].new_empty(sizes.width, sizes.deter, dtype=dtype)
    moved = [(y, x) for y, x in pairs if y is not x]
    if isinstance(core, BlockGRU):
        moved.append((stacked[sizes.own :], core.deter.weight.detach()))
    if isinstance(core, GRU):
        of_x, cut = given[0].new_empty(core.weight_ih.shape, dtype=dtype), (2 * sizes.deter, sizes.deter)
        moved += zip(of_x.split(cut[::-1]), core.weight_ih.detach().split(cut)[::-1], strict=True)
    if moved:
        torch._foreach_copy_([y for y, _ in moved], [x for _, x in moved])

    cast = iter([y for y, _ in pairs])
    hidden = tuple(next(cast) for _ in model.hidden)
    layers = tuple(next(cast) for _ in post)
    stoch = next(cast)
    gates = next(cast) if isinstance(core, BlockGRU) else None
    if isinstance(core, GRU):
        hidden = of_x, next(cast)
    count = prod(model.state)
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
    """What `native.params.Flat` collected of a model.

    layout: S, C or 0 for normals, the form of their std, absolute; the last two of scalars are unimix and min_std.
    """
    read = Reader(params, filled, sizes, scalars)
    core, post, unimix, min_std = read.core(), read.layers(), read.scalar(), read.scalar()
    stoch, classes, form, absolute = layout
    return Model(core, post, latent_of(stoch, classes, form, unimix, min_std), absolute == 1)
