"""norm_act, linear, dense and mlp against NumPy and their own derivatives."""

import numpy as np
import pytest
import torch

from fastdream.ops import reference as ops

from . import ops_oracles as oracle
from .ops_tools import Maker, arrays, gradcheck, worst

ACTS = ["none", "silu", "gelu", "elu", "relu", "tanh"]


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("act", ACTS)
def test_dense_matches_numpy(norm: str, act: str) -> None:
    make = Maker()
    layer, x = make.layer(6, 8, norm, act), make.normal(2, 3, 6)
    assert worst(ops.dense(x, layer), oracle.dense(arrays(x), arrays(layer))) < 1e-14


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (0, 6)])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_linear_takes_any_leading_axes_and_blocks(shape: tuple[int, ...], blocks: int) -> None:
    make = Maker(1)
    layer, x = make.layer(6, 9, "none", "none", blocks), make.normal(*shape)
    out = ops.linear(x, layer.weight, layer.bias)
    assert out.shape == (*shape[:-1], 9)
    np.testing.assert_allclose(arrays(out), oracle.dense(arrays(x), arrays(layer)), atol=1e-14)
    bare = ops.linear(x, layer.weight, None)
    np.testing.assert_allclose(arrays(bare), arrays(out) - arrays(layer.bias), atol=1e-14)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("act", ["silu", "gelu", "elu", "tanh"])
def test_norm_act_gradients(norm: str, act: str) -> None:
    make = Maker(2)
    layer, x = make.layer(1, 5, norm, act), make.normal(2, 5)

    def fn(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return ops.norm_act(x, scale, shift, norm, act, 1e-2)

    assert gradcheck(fn, x, layer.scale, layer.shift)


@pytest.mark.parametrize("blocks", [0, 2])
def test_mlp_gradients(blocks: int) -> None:
    make = Maker(3)
    layers = (make.layer(4, 6, "rms", "silu", blocks), make.layer(6, 2, "layer", "none", blocks))
    assert gradcheck(ops.mlp, make.normal(3, 4), layers)


def test_norm_of_a_missing_scale_and_shift_is_that_of_ones_and_zeros() -> None:
    x = Maker(4).normal(3, 7)
    one, zero = torch.ones(7, dtype=x.dtype), torch.zeros(7, dtype=x.dtype)
    for norm in ("rms", "layer"):
        bare = ops.norm_act(x, None, None, norm, "none")
        assert torch.equal(bare, ops.norm_act(x, one, zero, norm, "none"))


def test_norm_floors_the_variance_of_constant_rows() -> None:
    x = torch.full((2, 64), 1e4)
    assert ops.norm_act(x, None, None, "layer", "none").abs().max() < 1e-2
    zeros = ops.norm_act(torch.zeros(2, 64), None, None, "rms", "silu")
    assert torch.equal(zeros, torch.zeros(2, 64))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_bfloat16_norm_works_in_float32(norm: str) -> None:
    make = Maker(5, torch.bfloat16)
    x = make.normal(4, 96, scale=30.0)
    scale, shift = Maker(6, torch.float32).normal(96), Maker(7, torch.float32).normal(96)
    out = ops.norm_act(x, scale, shift if norm == "layer" else None, norm, "none")
    want = oracle.norm(arrays(x), arrays(scale), arrays(shift), norm, 1e-4)
    assert out.dtype == torch.bfloat16
    np.testing.assert_allclose(arrays(out), want, rtol=2**-8 * 1.01, atol=1e-6)


def test_bfloat16_layer_errs_at_most_twice_as_much_as_pytorch() -> None:
    make, half = Maker(8, torch.float32), torch.bfloat16
    layer, x = make.layer(64, 48, "rms", "silu", 4), make.normal(32, 64).to(half)
    rounded = layer._replace(weight=layer.weight.to(half), bias=layer.bias.to(half))
    exact = oracle.dense(arrays(x), arrays(rounded))
    plain = torch.einsum("ngi,gio->ngo", x.view(32, 4, 16), rounded.weight).flatten(1) + rounded.bias
    plain = torch.nn.functional.rms_norm(plain.float(), (48,), layer.scale, 1e-4).to(half)
    plain = plain * torch.sigmoid(plain)
    assert worst(ops.dense(x, layer), exact) <= 2 * worst(plain, exact) + 1e-3


def test_inputs_are_left_alone() -> None:
    make = Maker(9)
    layer, x = make.layer(4, 4, "layer", "elu"), make.normal(3, 4)
    before = [t.detach().clone() for t in (x, layer.weight, layer.scale)]
    ops.dense(x, layer).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, layer.weight, layer.scale), strict=True))


def test_unknown_choices_are_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="batch.*none, rms or layer"):
        ops.norm_act(x, None, None, "batch")
    with pytest.raises(ValueError, match="swish.*silu"):
        ops.norm_act(x, None, None, "rms", "swish")
