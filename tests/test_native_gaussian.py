"""Compiled acting and dreaming with Gaussian latents and plain GRUs, beyond what the parity matrix compares."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.params import Gaussian

from .native_tools import recorded
from .ops_tools import Maker, S, Sizes, leaves, mapped
from .parity_cases import CASES, GRUS, policy_step
from .parity_tools import arguments, changed, check

DRAWN = [
    ("policy_step", "gru-softplus-tanh_normal-False"),
    ("policy_step", "gru_block_cell-sigmoid2-mixed-True"),
    ("policy_step", "layernorm-softplus-trunc_normal-False"),
    ("policy_step", "block-softplus-mixed-False"),
    ("imagine", "gru-softplus-tanh_normal"),
    ("imagine", "gru_block_cell-sigmoid2-mixed"),
    ("imagine", "layernorm-softplus-bare"),
    ("rollout", "gru-softplus"),
    ("imagine_step", "gru_block_cell-sigmoid2"),
]
pytestmark = pytest.mark.usefixtures("native")


def given(op: str, name: str, rows: int, dtype: torch.dtype = torch.float32) -> tuple:
    """Arguments without gradient."""
    return mapped(Tensor.detach, arguments(CASES[op][name], "ragged", rows, dtype))


@pytest.mark.parametrize(("op", "name"), DRAWN)
def test_every_instruction_set_agrees(native: ModuleType, isa: str, op: str, name: str):
    """With few rows, whose weights are used as they lie, and with many, which pack them."""
    for rows in (5, 150):
        args = arguments(CASES[op][name], "ragged", rows, torch.float32)
        check(getattr(native, op), op, CASES[op][name], args, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_rollouts_stay_with_the_reference(native: ModuleType, dtype: torch.dtype):
    """Of a model that forgets, where roundings are not magnified."""
    make = Maker(3, dtype)
    rssm = make.rssm("gru", Gaussian(S))
    rssm = rssm._replace(core=rssm.core._replace(weight_hh=0.2 * rssm.core.weight_hh))
    args = rssm, *make.state(7, rssm.latent), make.normal(7, 50, 3), make.normal(7, 50, S)
    args = mapped(Tensor.detach, args)
    ours, theirs = (ops.rollout(*args) for ops in (native, reference))
    assert ours.index is None and theirs.index is None
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for our, their in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("kind", ["mixed", "bare"])
@pytest.mark.parametrize("core", GRUS)
def test_threads_share_columns_or_rows(native: ModuleType, core: Any, kind: Any, n: int):
    """A GRU so wide that two threads share even a single row's products, and rows where there are enough."""
    make = Maker(n, torch.float32, Sizes(512, 24, 5, 3, 21, 2, 35))
    args = policy_step(core, "softplus", kind, False, make, n)
    fixed = mapped(Tensor.detach, args)
    assert args[1].core.weight_hh.numel() >= 2**19
    alone = list(leaves(native.policy_step(*fixed)))
    torch.set_num_threads(2)
    try:
        together = list(leaves(native.policy_step(*fixed)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    case = CASES["policy_step"]["gru-softplus-bare-False"]  # for what is compared: no gradients
    check(native.policy_step, "policy_step", case, changed(lambda x: x, args), torch.float32)


@pytest.mark.parametrize("name", [name for op, name in DRAWN if op == "policy_step"])
def test_what_is_reset_is_not_looked_at(native: ModuleType, name: str):
    args = given("policy_step", name, 6)
    reset = torch.arange(6) % 2 == 0
    spoilt = [x.masked_fill(reset.view(-1, *[1] * (x.dim() - 1)), torch.nan) for x in args[3:6]]
    clean = [x.nan_to_num(0.0) for x in spoilt]
    ours, theirs = (
        leaves(ops.policy_step(*args[:3], *state, args[6], reset, *args[8:]))
        for ops, state in ((native, spoilt), (reference, clean))
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "name"), DRAWN[:8])
def test_compiles_as_one_graph_and_tells_torch_the_truth(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch, op: str, name: str
):
    args = given(op, name, 3, torch.float64)
    function = getattr(native, op)
    compiled = torch.compile(lambda *xs: list(leaves(function(*xs))), fullgraph=True, backend="aot_eager")
    for our, their in zip(compiled(*args), leaves(getattr(reference, op)(*args)), strict=True):
        torch.testing.assert_close(our, their)
    registered = "policy_step" if op == "policy_step" else "imagine"
    original = getattr(torch.ops.fastdream, registered)
    with monkeypatch.context() as patched:
        calls = recorded(patched, registered)
        patched.setattr(native.policy, "TENSORS_SHARED", False)
        function(*args)
    assert set(torch.library.opcheck(original.default, calls[0]).values()) == {"SUCCESS"}


def test_an_index_replays_nothing(native: ModuleType):
    """Normals are drawn from their noise, whatever index is given."""
    args = given("policy_step", "gru-softplus-tanh_normal-False", 4)
    index = torch.zeros_like(args[8], dtype=torch.int64)
    pair = native.policy_step(*args[:10], index), native.policy_step(*args[:10])
    assert pair[0][0].index is None and all(torch.equal(*xs) for xs in zip(*map(leaves, pair), strict=True))
    with pytest.raises(ValueError, match="policy_step: a Gaussian latent needs noise"):
        native.policy_step(*args[:8], None, args[9], index)
    model, *inputs, _ = given("rollout", "gru-softplus", 4)[:5]
    with pytest.raises(ValueError, match="rollout: a Gaussian latent needs noise"):
        native.rollout(model, *inputs, None, index)


def test_models_take_turns(native: ModuleType):
    """One with classes and one with normals, each with what it keeps from call to call."""
    models = [
        given("policy_step", name, 4) for name in ("gru-softplus-mixed-False", "gru-classes-mixed-False")
    ]
    for args in models * 3:
        (ours, our_action), (theirs, their_action) = (ops.policy_step(*args) for ops in (native, reference))
        assert (ours.index is None) == (theirs.index is None)
        torch.testing.assert_close(ours.stoch, theirs.stoch, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(our_action, their_action, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (1, lambda x: x._replace(latent=Gaussian(S)), "core.inputs maps 8 to 37, expected 6 to 37"),
        (1, lambda x: x._replace(latent=Gaussian(5, std="exp")), "std is 'exp'; choose softplus, sigmoid2"),
        (1, lambda x: x._replace(post=x.post[:-1]), r"post has 2 layers that give 37, expected 2 \* 5"),
        (4, lambda x: x[..., None], r"stoch has shape \[3, 5, 1\], expected \[3, 5\]"),
        (8, lambda x: x[:, 1:], r"noise has shape \[3, 4\], expected \[3, 5\]"),
        (9, lambda x: x[:, 1:], r"action_noise has shape \[3, 2\], expected \[3, 3\]"),
    ],
)
def test_bad_input_is_named(native: ModuleType, position: int, change: Any, message: str):
    args = list(given("policy_step", "gru-softplus-tanh_normal-False", 3))
    args[position] = change(args[position])
    with pytest.raises(ValueError, match=message):
        native.policy_step(*args)
