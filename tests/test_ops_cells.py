"""The recurrent cores against NumPy, torch.nn.GRUCell, the plain concatenating forms and their derivatives."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.ops import reference as ops
from fastdream.ops.params import BlockGRU

from . import ops_oracles as oracle
from .ops_tools import BLOCKS, A, C, CoreName, D, H, Maker, S, arrays, gradcheck, mapped, plain_form, worst

CORES: list[CoreName] = ["block", "layernorm", "gru", "gru_block_cell"]
STEPS = {"block": ops.block_gru, "layernorm": ops.layernorm_gru, "gru": ops.gru, "gru_block_cell": ops.gru}


def inputs(make: Maker, batch: int = 3, reach: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """deter, stoch and actions within [-reach, reach]."""
    action = (make.normal(batch, A).detach().clamp(-1, 1) * reach).requires_grad_()
    return make.normal(batch, D), make.normal(batch, S * C), action


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("batch", [1, 3])
def test_core_matches_numpy(name: CoreName, batch: int) -> None:
    make = Maker()
    core, args = make.core(name, later=1), inputs(make, batch)
    assert worst(STEPS[name](core, *args), oracle.core_step(arrays(core), *arrays(args))) < 1e-14


@pytest.mark.parametrize("name", CORES)
def test_core_gradients(name: CoreName) -> None:
    make = Maker(1)
    assert gradcheck(STEPS[name], make.core(name, later=1), *inputs(make, 2, reach=0.9))


def test_block_gru_is_the_replicated_form_in_value_and_gradient() -> None:
    make = Maker(2)
    core, args = make.core("block", later=1), inputs(make)
    leaves = [*args, core.hidden[0].weight, core.gates.weight, core.deter.scale]
    results = []
    for form in (ops.block_gru, plain_form):
        out = form(core, *args)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*results, strict=True):
        assert worst(got, want) < 1e-13


def test_block_gru_clips_actions_by_scaling() -> None:
    """An action beyond 1 acts as 1, and keeps the gradient of an action divided by a constant."""
    make = Maker(3)
    core, (deter, stoch, _) = make.core("block"), inputs(make, 1)
    far = torch.tensor([[5.0, -3.0, 0.5]], dtype=torch.float64, requires_grad=True)
    near = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    out, same = ops.block_gru(core, deter, stoch, far), ops.block_gru(core, deter, stoch, near)
    assert worst(out, same) < 1e-15
    (steep,) = torch.autograd.grad(same.sum(), near)
    (flat,) = torch.autograd.grad(out.sum(), far)
    assert worst(flat, steep / torch.tensor([5.0, 3.0, 1.0])) < 1e-14


def test_block_gru_blocks_meet_only_through_features_and_the_norm() -> None:
    """Without the hidden norm and the features of deter, a block of deter moves its own block alone."""
    make = Maker(4)
    core, (deter, stoch, action) = make.core("block"), inputs(make, 1)
    hidden = core.hidden[0]._replace(norm="none", scale=None)
    core = core._replace(
        hidden=(hidden,), deter=core.deter._replace(weight=torch.zeros_like(core.deter.weight))
    )
    moved = deter + torch.nn.functional.pad(torch.ones(1, D // BLOCKS), (0, D - D // BLOCKS))
    change = (ops.block_gru(core, moved, stoch, action) - ops.block_gru(core, deter, stoch, action)).detach()
    assert (change[:, : D // BLOCKS] != 0).all()
    assert (change[:, D // BLOCKS :] == 0).all()


def test_gru_has_the_gates_of_torch() -> None:
    make = Maker(5)
    core, (deter, stoch, action) = make.core("gru"), inputs(make)
    cell = torch.nn.GRUCell(H, D, dtype=torch.float64)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).copy_(getattr(core, name))
    x = ops.dense(torch.cat([stoch, action], -1), core.inputs)
    assert worst(ops.gru(core, deter, stoch, action), cell(x, deter)) < 1e-15


def test_the_two_gru_forms_differ_only_by_where_the_reset_gate_acts() -> None:
    make = Maker(6)
    core, args = make.core("gru"), inputs(make)
    before = core._replace(reset_after=False)
    assert worst(ops.gru(core, *args), ops.gru(before, *args)) > 1e-3
    width = 2 * D  # with no recurrent candidate there is nothing for the reset gate to multiply
    weight = torch.cat([core.weight_hh[:width], torch.zeros(D, D)])
    bias = torch.cat([core.bias_hh[:width], torch.zeros(D)])
    core, before = (c._replace(weight_hh=weight, bias_hh=bias) for c in (core, before))
    assert worst(ops.gru(core, *args), ops.gru(before, *args)) < 1e-15


@pytest.mark.parametrize("name", ["block", "layernorm"])
def test_update_gate_starts_towards_the_old_state(name: CoreName) -> None:
    """With zero gates the new state is (1 - sigmoid(-1)) times the old one."""
    make = Maker(7)
    core, args = make.core(name), inputs(make)
    zero = core.gates._replace(
        **{
            key: torch.zeros_like(value)
            for key, value in core.gates._asdict().items()
            if isinstance(value, Tensor)
        }
    )
    out = STEPS[name](core._replace(gates=zero), *args)
    assert worst(out, args[0] * (1 - 1 / (1 + np.e))) < 1e-15


@pytest.mark.parametrize("name", CORES)
def test_core_takes_strided_inputs_and_leaves_them_alone(name: CoreName) -> None:
    make = Maker(8)
    core, args = make.core(name), inputs(make)
    strided = tuple(torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] for x in args)
    before = [x.detach().clone() for x in args]
    out = STEPS[name](core, *strided)
    out.sum().backward()
    assert torch.equal(out, STEPS[name](core, *args))
    assert all(torch.equal(a, b) for a, b in zip(before, args, strict=True))


@pytest.mark.parametrize("name", CORES)
def test_core_without_biases(name: CoreName) -> None:
    make = Maker(9)
    core, args = make.core(name), inputs(make)
    if isinstance(core, BlockGRU):
        bare = [layer._replace(bias=None) for layer in (core.deter, core.stoch, core.action)]
        hidden = tuple(layer._replace(bias=None) for layer in core.hidden)
        core = BlockGRU(*bare, hidden, core.gates._replace(bias=None))
    else:
        core = core._replace(inputs=core.inputs._replace(bias=None))
    assert worst(STEPS[name](core, *args), oracle.core_step(arrays(core), *arrays(args))) < 1e-14


@pytest.mark.parametrize("name", ["block", "layernorm", "gru"])
def test_bfloat16_core_errs_at_most_twice_as_much_as_the_plain_form(name: CoreName) -> None:
    half = torch.bfloat16
    make = Maker(10, torch.float32)
    core, args = make.core(name), tuple(x.to(half) for x in inputs(make, 256))
    core = mapped(lambda x: x.to(half).float(), core)  # exact in both precisions
    exact = oracle.core_step(arrays(core), *arrays(args))
    out = STEPS[name](core, *args)
    assert out.dtype == half
    assert worst(out, exact) <= 2 * worst(plain_form(core, *args), exact) + 1e-3
