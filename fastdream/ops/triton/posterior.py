"""The last kernel of a posterior step: hidden layer's norm, logits, sample, and the next step's layers that read it.

    logit = act(norm(hidden)) weight^T + bias
    sample by the inverse CDF of the unimixed probabilities, or mean + std * noise of normals
    next step: x = [act(norm(own)) | act(norm(base + stoch's product))], see `enter`

A program has `tiles.rows` rows and some whole latent variables. The next step's layer needs all latent variables of a
row, so the program that arrives last at its rows' counter goes on with them: a kernel less a step, and as sums
are taken in a fixed order by whoever comes last, the same bits at every run.
"""

from typing import NamedTuple

import triton
from torch import Tensor

from fastdream.ops.params import Categorical, Latent, Layer
from fastdream.ops.triton.block_product import Normed, piece, split_warps
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.enter import Entering
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.posterior_kernel import posterior_kernel
from fastdream.ops.triton.rowwise import row_tiles

BM = 16  # rows of a program's product, the least that tensor cores take
GATHERED = 64  # elements of rows that a thread adds up at a time
MANY = 256  # rows of a step from which the bandwidth of the L2 cache counts, as when dreaming
WHOLE = 8192  # elements of whole rows of a program then


WIDE = 256  # bytes of an input's weights that one warp has registers for


class Split(NamedTuple):
    """A piece of inputs that a program multiplies at a time, the parts it is split into, warps, stages."""

    k: int
    parts: int
    warps: int
    stages: int


class PosteriorTiles(NamedTuple):
    """rows and latent variables of a program, and how the inputs of its product are split."""

    rows: int
    vars: int
    split: Split


def posterior_tiles(batch: int, units: int, width: int, latent: Latent, itemsize: int) -> PosteriorTiles:
    """Of a step of `batch` rows and a layer of `units`, before a layer of stoch of `width`.

    Few rows a program, that the sums of rows are short; more where every row tile reads megabytes of weights, and as
    many as whole rows allow where there are many tiles.
    """
    stoch, classes, columns = _columns(latent)
    rows = 2 if units * stoch * classes <= 2**20 else 4
    if batch >= MANY:
        rows = max(rows, min(BM, WHOLE // power_of_two(width)))
    width = 64 if isinstance(latent, Categorical) else 16  # of normals there are few logits for many programs
    variables = max(1, min(width // columns, power_of_two(stoch)))
    return PosteriorTiles(rows, variables, split_piece(units, variables * columns, itemsize))


def split_piece(inputs: int, columns: int, itemsize: int) -> Split:
    """Of a product of so many columns: a part for each warp, or of wide ones two parts, of several warps each.

    A thread has its columns twice, as sums and as the product that is added to them, besides its weights.
    """
    if columns * itemsize > WIDE:
        return Split(32, 2, columns * itemsize // 64, 5)
    warps = split_warps(inputs, columns, itemsize)
    return Split(piece(512 // itemsize, inputs, columns, itemsize, warps), warps, warps, 3)


def _columns(latent: Latent) -> tuple[int, int, int]:
    """How many variables, how many logits of each, and how many columns for these."""
    classes = latent.classes if isinstance(latent, Categorical) else 2
    return latent.stoch, classes, power_of_two(classes)


def posterior(
    hidden: Tensor,
    normed: Normed,
    layer: Layer,
    weight: Tensor,
    latent: Latent,
    noise: Tensor | None,
    given: Tensor | None,
    logit: Tensor,
    sample: Tensor,
    index: Tensor | None,
    arrived: Tensor,
    of_stoch: Tensor | None,
    entering: Entering,
    core: Layer,
    tiles: PosteriorTiles,
) -> None:
    """One step's logit, sample and index, [M, S*C] twice and [M, S], and x of the next unless of_stoch is None.

    Of normals logit is [M, 2S], sample [M, S], index None. hidden [M, U] are pre-activations that `normed` describes.
    layer: the posterior's last, `weight` its own in the dtype of products. core: the layer whose norm and activation
    `enter` applies. Either noise or given is there.
    """
    rows, units = hidden.shape[0], weight.shape[1]
    first, split = normed.layer, tiles.split
    stoch, classes, columns = _columns(latent)
    width = entering.pre.shape[1]
    wide = power_of_two(width)
    if isinstance(latent, Categorical):
        keep, floor, std = 1 - latent.unimix, latent.unimix / classes, "none"
    else:
        keep, floor, std = 1.0, latent.min_std, latent.std
    launch(
        posterior_kernel,
        (triton.cdiv(stoch, tiles.vars), triton.cdiv(rows, tiles.rows)),
        hidden,
        normed.sums,
        first.scale,
        first.shift,
        weight,
        layer.bias,
        noise,
        given,
        logit,
        sample,
        index,
        arrived,
        of_stoch,
        *entering,
        *entering.strides(),
        rows,
        first.eps,
        core.eps,
        keep,
        floor,
        hidden.stride(0),
        0 if noise is None else noise.stride(0),
        0 if given is None else given.stride(0),
        logit.stride(0),
        sample.stride(0),
        0 if index is None else index.stride(0),
        U=units,
        S=stoch,
        C=classes,
        STD=std,
        H=width,
        HIDDEN_NORM=first.norm,
        HIDDEN_ACT=first.act,
        TILE=normed.tile,
        BT=power_of_two(row_tiles(units, units, normed.tile)),
        NORM=core.norm,
        ACT=core.act,
        BM=BM,
        BR=tiles.rows,
        BV=tiles.vars,
        BC=columns,
        BK=split.k,
        BS=max(1, min(power_of_two(stoch), 32 * split.warps * GATHERED // (tiles.rows * wide))),
        BH=wide,
        KS=split.parts,
        num_warps=split.warps,
        num_stages=split.stages,
    )
