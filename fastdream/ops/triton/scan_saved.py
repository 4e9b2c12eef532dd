"""Results of the forward scan: outputs, and what the backward scan reads beside them."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import BlockGRU, Categorical
from fastdream.ops.triton.block_product import product_tiles
from fastdream.ops.triton.rowwise import PLANES, row_tiles
from fastdream.ops.triton.scan_model import Model, Sizes


class Outputs(NamedTuple):
    """Of the scan."""

    deter: Tensor  # [B, T, D]
    stoch: Tensor  # [B, T, S, C] or [B, T, S]
    logit: Tensor  # [B, T, S, C] or [B, T, 2S]
    index: Tensor  # type: ignore[assignment]  # [B, T, S] int64, of normals [B, T, 0]


class Saved(NamedTuple):
    """Pre-activations unless said otherwise, and sums of their rows in the layout of `rowwise`, of every step."""

    clipped: Tensor  # [B, T, A] actions
    action: Tensor  # [B, T, H]
    stoch: Tensor  # [B, T, H]
    x: Tensor  # [B, T, 3H] or [B, T, H]: activations of deter's, stoch's and the action's layer, or of stoch's
    gates: Tensor  # [B, T, 3D] or [B, T, 4D], or nothing where the gates are the hidden layer
    stacked: Tensor  # [B, T + 1, width]: at t + 1 the posterior's first layer of step t, at t the core's own of step t
    own_sums: Tensor  # [T, 1, planes, B]
    stoch_sums: Tensor  # [T, 1, planes, B]
    post_sums: Tensor  # [T, tiles, planes, B]
    hidden: tuple[Tensor, ...]  # [B, T, D] each, or [B, T, 3D], or none
    hidden_sums: tuple[Tensor, ...]  # [T, tiles, planes, B] each
    later: tuple[Tensor, ...]  # [B, T, U] each, the posterior's hidden layers after the first
    later_sums: tuple[Tensor, ...]  # [T, tiles, planes, B] each

    def flat(self) -> list[Tensor]:
        """All tensors in a list."""
        return [*self[:9], *(x for several in self[9:] for x in several)]


def saved_of(model: Model, tensors: list[Tensor]) -> Saved:
    """What `Saved.flat` listed."""
    several, rest = [], tensors[9:]
    for count in (len(model.hidden), len(model.hidden), len(model.post) - 2, len(model.post) - 2):
        several.append(tuple(rest[:count]))
        rest = rest[count:]
    return Saved(*tensors[:9], *several)  # type: ignore[arg-type]


def hidden_tile(sizes: Sizes, width: int, rows: int, itemsize: int) -> int:
    """Columns of a tile of a core's hidden layer of this width."""
    return product_tiles(rows, width, width // sizes.blocks, itemsize).n


def later_tile(width: int, rows: int, itemsize: int) -> int:
    """Columns of a tile of a posterior's later layer of this width."""
    return product_tiles(rows, width, width, itemsize).n


def allocate(model: Model, sizes: Sizes, deter: Tensor, action: Tensor) -> tuple[Outputs, Saved]:
    """Memory of a scan's results."""
    (batch, length, width), itemsize = action.shape, deter.itemsize
    block_core = isinstance(model.core, BlockGRU)

    def new(*shape: int) -> Tensor:
        return deter.new_empty(batch, length, *shape)

    def sums(tiles: int, norm: str) -> Tensor:
        return deter.new_empty(length, tiles, PLANES[norm], batch, dtype=torch.float32)

    drawn = model.latent.stoch if isinstance(model.latent, Categorical) else 0
    outputs = Outputs(
        new(sizes.deter),
        new(*model.state),
        new(*model.logits),
        deter.new_empty(batch, length, drawn, dtype=torch.int64),
    )
    widths = [sizes.deter if block_core else 3 * sizes.deter for _ in model.hidden]
    tiles = [hidden_tile(sizes, n, batch, itemsize) for n in widths]
    later = [layer.weight.shape[0] for layer in model.post[1:-1]]
    own_norm = model.core.deter.norm if isinstance(model.core, BlockGRU) else "none"
    saved = Saved(
        clipped=new(width),
        action=new(sizes.units),
        stoch=new(sizes.units),
        x=new((3 if block_core else 1) * sizes.units),
        gates=new(model.kept * sizes.deter),
        stacked=deter.new_empty(batch, length + 1, sizes.width),
        own_sums=sums(1, own_norm),
        stoch_sums=sums(1, model.stoch.norm),
        post_sums=sums(row_tiles(sizes.width, sizes.width, sizes.tile), model.post[0].norm),
        hidden=tuple(new(n) for n in widths),
        hidden_sums=tuple(
            sums(row_tiles(n, n // sizes.blocks, tile), layer.norm)
            for n, tile, layer in zip(widths, tiles, model.hidden, strict=True)
        ),
        later=tuple(new(n) for n in later),
        later_sums=tuple(
            sums(row_tiles(n, n, later_tile(n, batch, itemsize)), layer.norm)
            for n, layer in zip(later, model.post[1:-1], strict=True)
        ),
    )
    return outputs, saved


def at(sums: Tensor, t: int) -> Tensor | None:
    """The sums of one step, None where no norm needs any."""
    return sums[t] if sums.numel() else None


class Grads(NamedTuple):
    """What the backward scan computes. Of layers with a norm: d_n, see `rowwise_gradient`."""

    logit: Tensor  # [B, T, S*C] or [B, T, 2S]
    gates: Tensor  # [B, T, 3D] or [B, T, 4D], see `Model.returned`, or nothing where the gates are the hidden layer
    x: Tensor  # [B, T, 2H] or [B, T, H], d_n of deter's and stoch's layers, or of stoch's
    deter: Tensor  # [B, D] float32, of the initial deter without what comes through its layer
    hidden: tuple[Tensor, ...]  # like those of Saved, d_n
    post: tuple[Tensor, ...]  # [B, T, U] each, d_n of the posterior's hidden layers


def empty_grads(model: Model, sizes: Sizes, outputs: Outputs, saved: Saved) -> Grads:
    """Memory of the gradients; that of deter is zero."""
    like = outputs.deter
    return Grads(
        torch.empty_like(outputs.logit.flatten(2)),
        like.new_empty(*like.shape[:2], model.returned * sizes.deter),
        like.new_empty(*like.shape[:2], sizes.inputs * sizes.units),
        like.new_zeros(len(like), sizes.deter, dtype=torch.float32),
        tuple(torch.empty_like(x) for x in saved.hidden),
        tuple(like.new_empty(*like.shape[:2], layer.weight.shape[0]) for layer in model.post[:-1]),
    )
