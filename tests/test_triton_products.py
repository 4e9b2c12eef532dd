"""The products of a posterior or prior step, each launched alone, against plain PyTorch in float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdream.ops.reference import norm_act
from fastdream.ops.triton.block_product import Tiles, block_product, product_sums
from fastdream.ops.triton.gates import block_gates

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Shape(NamedTuple):
    """Rows, blocks, width of a block's input and output, width of what all blocks read; how it is cut."""

    rows: int
    blocks: int
    depth: int
    width: int
    shared: int
    tiles: Tiles


FEW, MANY = Tiles(16, 16, 16, 4, 2), Tiles(32, 32, 32, 4, 2)
SHAPES = Shape(5, 8, 24, 24, 40, FEW), Shape(16, 3, 16, 48, 0, FEW), Shape(37, 2, 19, 7, 33, MANY)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def nan(*shape: int) -> Tensor:
    """One time step of three in poisoned memory."""
    return torch.full((shape[0], 3, *shape[1:]), torch.nan, device=DEVICE)[:, 1]


def step(*shape: int) -> Tensor:
    return normal(shape[0], 3, *shape[1:])[:, 1]


def reset(rows: int) -> Tensor:
    return (torch.rand(rows, 3, device=DEVICE) < 0.4)[:, 1]


def check_near(ours: Tensor, true: Tensor) -> None:
    torch.testing.assert_close(ours.double(), true, rtol=2e-5, atol=2e-5)


def blockwise(deter: Tensor, weight: Tensor) -> Tensor:
    grouped = deter.double().unflatten(-1, (weight.shape[0], -1))
    return torch.einsum("mgk,gkn->mgn", grouped, weight.double()).flatten(1)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("shape", SHAPES)
def test_block_product(shape: Shape, norm: str):
    rows, blocks, depth, width, wide, tiles = shape
    deter, zero = step(rows, blocks * depth), reset(rows)
    weight, base = normal(blocks, depth + wide, width), step(rows, blocks * width)
    x = step(rows, wide) if wide else None
    out = nan(rows, blocks * width)
    sums = product_sums(out, blocks, tiles, norm)
    shared = weight[:, depth:] if wide else None
    block_product(deter, zero, weight[:, :depth], x, shared, base, out, sums, norm, tiles)
    true = base.double() + blockwise(deter.masked_fill(zero[:, None], 0.0), weight[:, :depth])
    if x is not None:
        true += torch.einsum("mk,gkn->mgn", x.double(), weight[:, depth:].double()).flatten(1)
    check_near(out, true)
    if norm == "rms":
        check_near(sums.sum((0, 1)), out.double().square().sum(1))
    if norm == "layer":
        check_near(sums[:, 0].sum(0), out.double().sum(1))


@pytest.mark.parametrize("tiles", [FEW, MANY])
def test_dense_product_in_place(tiles: Tiles):
    """One block is a dense layer, whose weight lies [out, in]; what is added to may be the output itself."""
    deter, weight, base = step(6, 50), normal(70, 50), step(6, 70)
    true = base.double() + deter.double() @ weight.t().double()
    block_product(deter, None, weight.t()[None], None, None, base, base, None, "none", tiles)
    check_near(base, true)


@pytest.mark.parametrize(("norm", "act"), [("rms", "silu"), ("layer", "elu"), ("none", "gelu")])
@pytest.mark.parametrize(
    ("rows", "blocks", "width", "tiles"), [(5, 8, 24, FEW), (21, 2, 7, FEW), (37, 2, 40, MANY)]
)
def test_gates_after_a_product(
    rows: int, blocks: int, width: int, tiles: Tiles, norm: str, act: str, poison: list[str]
):
    """The norm over all of deter takes the sums that the product before it stored."""
    total = blocks * width
    x, bias = step(rows, 9), normal(total).expand(rows, -1)
    hidden, zero, deter = nan(rows, total), reset(rows), step(rows, total)
    into, weight = normal(blocks, width + 9, width), normal(blocks, width, 3 * width)
    weight *= width**-0.5
    sums = product_sums(hidden, blocks, tiles, norm)
    block_product(deter, zero, into[:, :width], x, into[:, width:], bias, hidden, sums, norm, tiles)
    scale = None if norm == "none" else normal(total)
    shift = normal(total) if norm == "layer" else None
    offset, out, gates = normal(3 * total), nan(rows, total), nan(rows, 3 * total)
    arguments = hidden, sums, scale, shift, weight, offset, deter, zero
    block_gates(*arguments, out, gates, norm, act, 1e-3, tiles.n, tiles)
    wide = [None if x is None else x.double() for x in (hidden, scale, shift)]
    check_near(gates, blockwise(norm_act(*wide, norm, act, 1e-3), weight) + offset.double())
    check_near(out, new_deter(blocks, gates, deter.masked_fill(zero[:, None], 0.0)))
    bare = nan(rows, total)
    block_gates(*arguments, bare, None, norm, act, 1e-3, tiles.n, tiles)
    assert torch.equal(bare, out) and poison


def new_deter(blocks: int, gates: Tensor, deter: Tensor) -> Tensor:
    r, c, u = gates.double().unflatten(-1, (blocks, 3, -1)).unbind(-2)
    old, u = deter.double().unflatten(-1, (blocks, -1)), torch.sigmoid(u - 1)
    return (u * torch.tanh(torch.sigmoid(r) * c) + (1 - u) * old).flatten(1)


def test_sums_have_the_same_bits_at_every_run():
    def run() -> Tensor:
        out = nan(16, 40)
        sums = product_sums(out, 1, FEW, "rms")
        block_product(deter, None, weight.t()[None], None, None, base, out, sums, "rms", FEW)
        return sums

    deter, weight, base = normal(16, 300), normal(40, 300), normal(40).expand(16, -1)
    assert torch.equal(run(), run())
