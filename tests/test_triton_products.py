"""The products of a posterior or prior step, each launched alone, against plain PyTorch in float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.reference import norm_act
from fastdream.ops.triton.block_core import LINE, block_core
from fastdream.ops.triton.block_product import Tiles, block_product, product_sums
from fastdream.ops.triton.core import BlockStep, JointStep
from fastdream.ops.triton.gates import block_gates

from .ops_tools import Maker, Sizes, mapped

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


@pytest.mark.parametrize(("norm", "act"), [("rms", "silu"), ("layer", "elu"), ("none", "gelu")])
@pytest.mark.parametrize("columns", [16, 32])
def test_core_of_one_launch(norm: str, act: str, columns: int, poison: list[str]):
    """Blocks of more than one tile of columns, the last of which is shorter."""
    rows, blocks, block, wide, tiles = 37, 3, 40, 33, Tiles(32, 32, 16, 4, 2)
    total = blocks * block
    deter, x, weight = step(rows, total), step(rows, wide), normal(blocks, block + wide, block) * block**-0.5
    scale = None if norm == "none" else normal(total)
    shift = normal(total) if norm == "layer" else None
    layer = Layer(weight, normal(total), scale, shift, norm, act, 1e-3)
    gates = Layer(normal(blocks, block, 3 * block) * block**-0.5, normal(3 * total))
    true = torch.einsum("mk,gkn->mgn", x.double(), weight[:, block:].double()).flatten(1)
    true += blockwise(deter, weight[:, :block]) + layer.bias.double()
    wider = [None if v is None else v.double() for v in (scale, shift)]
    true = blockwise(norm_act(true, *wider, norm, act, 1e-3), gates.weight) + gates.bias.double()
    arrived = torch.zeros(-(-rows // tiles.m), LINE.value, dtype=torch.int32, device=DEVICE)
    for together in (False, True) if DEVICE == "cuda" else (False,):
        for _ in range(2):
            hidden, out = torch.full((rows, total), torch.nan, device=DEVICE), nan(rows, total)
            sums = product_sums(hidden, blocks, tiles, norm)
            block_core(deter, x, layer, gates, hidden, sums, arrived, out, tiles, columns, together)
            check_near(out, new_deter(blocks, true, deter))
    assert poison


def test_cores_agree_in_one_launch_and_in_two():
    m, rows = Maker(0, torch.float32, Sizes(deter=48, hidden=20, stoch=3, classes=4, blocks=8)), 37
    core = mapped(lambda x: x.detach().to(DEVICE), m.core("block"))
    deter, x, one, two = normal(rows, 48), normal(rows, 60), nan(rows, 48), nan(rows, 48)
    JointStep.bind(core.hidden[0], core.gates, rows)(deter, x, one)
    BlockStep.bind(core.hidden, core.gates, rows)(deter, x, two)
    check_near(one, two.double())
    assert JointStep.bind(core.hidden[0], core.gates._replace(weight=normal(8, 600, 1800)), 16) is None


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
