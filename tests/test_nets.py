"""Layers, flat inputs and actions."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from fastdream import ops as fd
from fastdream.cores import BlockGRU
from fastdream.nets import (
    MANY,
    MLP,
    ActionDecoder,
    Children,
    Dense,
    NormAct,
    flatten_inputs,
    trunc_normal_in_,
)
from fastdream.spaces import Space, Spaces

OPS = fd.load("reference")
ACT: Spaces = {
    "turn": Space("vector", (2,)),
    "button": Space("discrete", (3,), 4),
    "jump": Space("discrete", (), 2),
    "grip": Space("vector", ()),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fan_in, outscale", [(16, 1.0), (400, 0.01), (16, 0.0)])
@pytest.mark.parametrize("rows", [200, MANY // 400 + 1])
def test_initial_weights_have_their_variance_and_bound(rows: int, fan_in: int, outscale: float) -> None:
    weight = torch.empty(rows, 400)
    trunc_normal_in_(weight, fan_in, outscale, seeded())
    sigma = outscale / math.sqrt(fan_in)
    assert float(weight.std()) == pytest.approx(sigma, rel=0.02)
    assert float(weight.abs().max()) <= 2 * 1.1368 * sigma + 1e-7
    if sigma:  # a normal truncated at two sigma has 71.5 % of its numbers within one, which is here 1.1368
        within = (weight.abs() < 1.1368 * sigma).double().mean()
        assert float(within) == pytest.approx(math.erf(0.5**0.5) / math.erf(2**0.5), rel=0.01)


def test_block_weights_count_the_whole_input() -> None:
    block = Dense(OPS, 256, 512, blocks=8, generator=seeded())
    assert float(block.weight.detach().std()) == pytest.approx(1 / math.sqrt(256), rel=0.05)


def test_one_generator_makes_the_same_network_twice() -> None:
    first, second, other = (MLP(OPS, 3, 4, 2, generator=seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("norm, names", [("none", 2), ("rms", 3), ("layer", 4)])
def test_norms_have_the_parameters_they_need(norm: fd.Norm, names: int) -> None:
    assert len(dict(Dense(OPS, 2, 3, norm=norm).named_parameters())) == names


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_dense_computes_what_its_layer_says(norm: fd.Norm, blocks: int) -> None:
    layer = Dense(OPS, 6, 4, norm=norm, act="gelu", blocks=blocks, eps=1e-2, generator=seeded())
    with torch.no_grad():
        for param in layer.parameters():
            param.add_(torch.rand(param.shape))
    x = torch.randn(5, 2, 6)
    assert layer(x).shape == (5, 2, 4)
    torch.testing.assert_close(layer(x), fd.dense(x, layer.layer))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_blocks_see_only_their_own_inputs() -> None:
    layer = Dense(OPS, 8, 12, blocks=4)
    x = torch.randn(8, requires_grad=True)
    layer(x)[3:6].sum().backward()
    assert x.grad is not None and (x.grad != 0).nonzero().flatten().tolist() == [2, 3]


def test_blocks_must_divide_both_widths() -> None:
    with pytest.raises(ValueError, match="from 6 to 9 features does not divide into 4 blocks"):
        Dense(OPS, 6, 9, blocks=4)


@pytest.mark.parametrize(("inp", "out", "blocks"), [(0, 4, 0), (4, 0, 0), (4, -4, 0), (4, 4, -1)])
def test_a_map_of_nothing_is_refused(inp: int, out: int, blocks: int) -> None:
    with pytest.raises(ValueError, match=f"from {inp} to {out} features, in {blocks} blocks"):
        Dense(OPS, inp, out, blocks=blocks)


def test_a_core_of_no_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks=0"):
        BlockGRU(OPS, 8, 4, 2, hidden=4, blocks=0)


def test_mlp_is_its_layers_one_after_the_other() -> None:
    mlp = MLP(OPS, 3, 5, 2, "layer", "elu")
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), fd.mlp(x, mlp.layers))
    assert mlp.width == 5 and list(mlp.state_dict()) == [
        f"{i}.{name}" for i in (0, 1) for name in ("scale", "shift", "weight", "bias")
    ]


def test_what_no_op_would_call_is_refused() -> None:
    mlp = MLP(OPS, 3, 3, 2)
    prune.random_unstructured(mlp[1], "weight", 0.5)
    with pytest.raises(RuntimeError, match="forward pre-hooks.*would not run"):
        mlp(torch.randn(2, 3))
    mlp[1] = nn.Sequential(Dense(OPS, 3, 3))
    with pytest.raises(TypeError, match="Sequential stands where a Dense has to be"):
        mlp(torch.randn(2, 3))


def test_mlp_without_layers_changes_nothing() -> None:
    mlp, x = MLP(OPS, 3, 5, 0), torch.randn(2, 3)
    assert mlp.width == 3 and mlp.layers == () and torch.equal(mlp(x), x)


def test_norm_without_norm_and_activation_changes_nothing() -> None:
    x = torch.randn(2, 3)
    assert NormAct(OPS, 3, "none", "none")(x) is x


def test_children_take_any_name() -> None:
    names = ["type", "half", "a.b", "keys", "cam/left", "forward"]
    children = Children({name: nn.Linear(1, 1) for name in names})
    assert list(children) == names
    copied = copy.deepcopy(children)
    with torch.no_grad():
        children["a.b"].weight.fill_(3.0)
    copied.load_state_dict(children.state_dict())
    assert copied["a.b"].weight.tolist() == [[3.0]] and len(list(copied.parameters())) == 12


def test_flat_inputs_follow_the_sorted_keys() -> None:
    spaces = {"b": Space("vector", (2,)), "a": Space("discrete", (2,), 3)}
    obs = {
        "b": torch.tensor([[-1.5, 2.0]]),
        "a": torch.tensor([[2, 0]], dtype=torch.int32),
        "other": torch.ones(1),
    }
    flat = flatten_inputs(spaces, obs)
    assert flat.tolist() == [[0, 0, 1, 1, 0, 0, -1.5, 2]]
    assert torch.equal(flatten_inputs(spaces, obs, squish=True)[:, 6:], OPS.symlog(obs["b"]))
    assert flatten_inputs(spaces, obs, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_missing_entries_become_zeros_as_a_whole() -> None:
    spaces = {"v": Space("vector", (2, 1)), "d": Space("discrete", (2,), 3), "w": Space("vector", ())}
    obs = {
        "v": torch.tensor([[[1.0], [-math.inf]], [[1.0], [2.0]]], requires_grad=True),
        "d": torch.tensor([[1, 2], [-1, 2]]),
        "w": torch.tensor([-1.0, -math.inf]),
    }
    flat = flatten_inputs(spaces, obs, squish=True)
    assert flat[0].tolist()[:8] == [0, 1, 0, 0, 0, 1, 0, 0]
    assert float(flat[0, 8].detach()) == pytest.approx(-math.log(2))
    assert flat[1].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, math.log(2), math.log(3), 0])
    flat.sum().backward()
    assert obs["v"].grad is not None and bool(obs["v"].grad.isfinite().all())


@pytest.mark.parametrize("dtype, values", [(torch.uint8, [0, 255, 7]), (torch.int8, [0, -128, 127])])
def test_integers_of_any_width_are_the_numbers_that_they_are(dtype: torch.dtype, values: list[int]) -> None:
    x = torch.tensor([values]).to(dtype)
    for squish in (False, True):
        flat = flatten_inputs({"v": Space("vector", (3,))}, {"v": x}, squish)
        assert torch.equal(flat, flatten_inputs({"v": Space("vector", (3,))}, {"v": x.float()}, squish))


def test_entries_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"'v' has shape \(4, 3\), which does not end in \(2,\)"):
        flatten_inputs({"v": Space("vector", (2,))}, {"v": torch.zeros(4, 3)})


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(1, 3), max_size=2))
def test_actions_survive_encoding(seed: int, batch: list[int]) -> None:
    rng = np.random.default_rng(seed)
    action = {
        key: torch.as_tensor(rng.integers(0, space.classes, (*batch, *space.shape), dtype=np.int32))
        if space.kind == "discrete"
        else torch.as_tensor(rng.normal(size=(*batch, *space.shape)).astype(np.float32))
        for key, space in ACT.items()
    }
    flat = flatten_inputs(ACT, action)
    assert flat.shape == (*batch, sum(space.width for space in ACT.values()))
    decoded = ActionDecoder(ACT)(flat.numpy())
    assert list(decoded) == sorted(ACT)
    for key, space in ACT.items():
        np.testing.assert_array_equal(decoded[key], action[key].numpy())
        assert decoded[key].dtype == space.dtype
