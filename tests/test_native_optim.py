"""The compiled optimiser step and replay gather against the reference: results, layouts, threads, bad input."""

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference, triton

from .ops_tools import Maker

SHAPES = [(3, 4), (5,), (2, 3, 2), (), (1,), (0, 3), (33,), (70, 33), (300, 257), (4,)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"agc": 0.0},
    {"agc": 0.01, "pmin": 0.1},
    {"momentum": False},
    {"nesterov": True},
    {"decay": 0.1},
    {"decay": 0.1, "decay_mask": [i % 2 == 0 for i in range(len(SHAPES))], "nesterov": True},
    {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3},
]
State = tuple[list[Tensor], list[Tensor], list[Tensor]]


def start(dtype: torch.dtype) -> State:
    """params (the last one all zero, like an output head), nu, mu."""
    make = Maker(0, dtype)
    params = [make.normal(*shape).detach() for shape in SHAPES]
    params[-1].zero_()
    return params, [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]


def gradients(step: int, dtype: torch.dtype) -> list[Tensor]:
    """Of very different sizes, so that clipping acts on some tensors; one entry is 0 throughout."""
    make = Maker(100 + step, dtype)
    grads = [make.normal(*shape, scale=10.0 ** (i % 4 - 2)).detach() for i, shape in enumerate(SHAPES)]
    grads[1][0] = 0
    return grads


def steps(op, state: State, count: int = 3, lr: float = 0.01, **options: Any) -> list[Tensor]:
    """Everything that some steps leave behind, and the norms that they return."""
    norms = []
    for t in range(1, count + 1):
        grads = gradients(t, torch.float32)
        rate = torch.tensor(lr * t)
        norms.extend(
            op(
                state[0],
                [g.to(state[0][0].dtype) for g in grads],
                *state[1:],
                torch.tensor(t),
                rate,
                **options,
            )
        )
    return [*norms, *(x for tensors in state for x in tensors)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_agree(native: ModuleType, isa: str, dtype: torch.dtype, options: dict[str, Any]):
    truth = steps(reference.laprop_, start(torch.float64), **options)
    ours = steps(native.laprop_, start(dtype), **options)
    theirs = steps(reference.laprop_, start(dtype), **options)
    # In float64 the reference is its own truth, up to the rounding of 1 - beta^step.
    floor = (8 if dtype == torch.float32 else 1e4) * torch.finfo(dtype).eps
    for true, our, their in zip(truth, ours, theirs, strict=True):
        assert our.shape == true.shape and our.dtype == dtype
        if our.numel():
            error, allowed = ((x.double() - true).abs().max() for x in (our, their))
            assert error <= 2 * allowed + floor * (1 + true.abs().max())


def test_a_float_rate_is_a_tensor_rate(native: ModuleType):
    states = start(torch.float32), start(torch.float32)
    for state, lr in zip(states, (0.3, torch.tensor(0.3)), strict=True):
        native.laprop_(state[0], gradients(1, torch.float32), *state[1:], torch.tensor(1), lr)
    assert all(torch.equal(a, b) for x, y in zip(*states, strict=True) for a, b in zip(x, y, strict=True))


def test_only_the_state_is_written_and_autograd_knows(native: ModuleType):
    (params, nu, mu), grads = start(torch.float32), gradients(1, torch.float32)
    params = [p.requires_grad_() for p in params]
    step, lr, before = torch.tensor(1), torch.tensor(0.1), [g.clone() for g in grads]
    saved = (params[0] ** 2).sum()  # keeps params[0] for its gradient
    old = [x._version for x in (*params, *nu, *mu)]
    norms = native.laprop_(params, grads, nu, mu, step, lr)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
    assert step.item() == 1 and not any(norm.requires_grad for norm in norms)
    assert [x._version for x in (*params, *nu, *mu)] == [version + 1 for version in old]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_any_strides_are_written_in_place(native: ModuleType):
    make = Maker(0, torch.float32)
    base, grad = make.normal(3, 8, 5).detach(), make.normal(5, 3).detach()
    state = [x.permute(1, 2, 0)[::2] for x in (base, torch.zeros_like(base), torch.zeros_like(base))]
    plain = [x.contiguous() for x in state]
    wide = grad.t()[None].expand(4, 3, 5).transpose(1, 2)
    for p, nu, mu in (state, plain):
        native.laprop_([p], [wide], [nu], [mu], torch.tensor(1), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(state, plain, strict=True))
    assert torch.equal(base.permute(1, 2, 0)[1::2], make_again(base.shape).permute(1, 2, 0)[1::2])


def make_again(shape: torch.Size) -> Tensor:
    """The first numbers of `Maker(0)`."""
    return Maker(0, torch.float32).normal(*shape).detach()


def test_two_threads_agree_with_one_and_with_themselves(native: ModuleType, two_threads: None):
    two = steps(native.laprop_, start(torch.float32), decay=0.1)
    again = steps(native.laprop_, start(torch.float32), decay=0.1)
    torch.set_num_threads(1)
    one = steps(native.laprop_, start(torch.float32), decay=0.1)
    assert all(torch.equal(a, b) for a, b in zip(two, again, strict=True))
    for a, b in zip(two, one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_broken_gradient_shows(native: ModuleType):
    for value in (torch.nan, torch.inf):
        (params, nu, mu), grads = start(torch.float32), gradients(1, torch.float32)
        grads[0][1, 1] = value
        norms = native.laprop_(params, grads, nu, mu, torch.tensor(1), 0.1)
        assert not any(norm.isfinite() for norm in norms)
        assert params[0].isnan().any() and params[1].isfinite().all()


def test_laprop_opcheck(native: ModuleType):
    (params, nu, mu), grads = start(torch.float32), gradients(1, torch.float32)
    options = 0.3, 1e-3, 0.9, 0.999, 1e-20, 0.1, [True] * len(params), True, False
    args = params, grads, nu, mu, torch.tensor(1), torch.tensor(0.1), *options
    checks = torch.library.opcheck(torch.ops.fastdream.laprop_.default, args)
    assert set(checks.values()) == {"SUCCESS"}


def test_laprop_compiles_as_one_graph(native: ModuleType):
    states, grads = (start(torch.float32), start(torch.float32)), gradients(1, torch.float32)

    def step(params: list[Tensor], nu: list[Tensor], mu: list[Tensor]) -> Tensor:
        return torch.stack(native.laprop_(params, grads, nu, mu, torch.tensor(1), 0.1, decay=0.1))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*states[0]), step(*states[1]))
    assert all(torch.equal(a, b) for x, y in zip(*states, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": []}, "grads has 0 tensors, expected 10 like params"),
        ({"params": []}, "params is empty"),
        ({"mu": [torch.zeros(2)] * 10}, r"mu\[0\] has shape \[2\], expected \[3, 4\]"),
        (
            {"nu": [torch.zeros(3, 4).double()] * 10},
            r"nu\[0\] has dtype torch.float64, expected torch.float32",
        ),
        ({"step": torch.tensor(1.0)}, "step is torch.float32, expected torch.int64"),
        ({"lr": torch.ones(2)}, r"lr has shape \[2\], expected \[\]"),
        ({"decay_mask": [True]}, "decay_mask has 1 entries, expected 10 like params"),
    ],
)
def test_bad_state_is_named(native: ModuleType, change: dict[str, Any], message: str):
    params, nu, mu = start(torch.float32)
    given = {"params": params, "grads": gradients(1, torch.float32), "nu": nu, "mu": mu}
    given |= {"step": torch.tensor(1), "lr": 0.1} | change
    with pytest.raises(ValueError, match=message):
        native.laprop_(**given)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bool, torch.int32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0,)])
def test_windows_agree(native: ModuleType, poison: list[str], shape: tuple[int, ...], dtype: torch.dtype):
    for rows in (1, 5, 9):
        storage = torch.randint(100, (rows, *shape)).to(dtype)
        for length in (0, 1, 4, 12):
            for start in (
                torch.randint(rows, (3,)),
                torch.tensor([0, -1, 3 * rows]),
                torch.tensor([], dtype=torch.int64),
            ):
                out = native.gather_sequences(storage, start, length)
                assert torch.equal(out, reference.gather_sequences(storage, start, length))
    assert "new_empty" in poison


def test_windows_of_any_strides(native: ModuleType):
    storage, start = torch.randn(4, 7, 2).permute(1, 0, 2), torch.randint(7, (6, 2))[:, 1]
    assert torch.equal(
        native.gather_sequences(storage, start, 9), reference.gather_sequences(storage, start, 9)
    )


def test_large_windows_are_shared_by_threads(native: ModuleType, two_threads: None):
    storage, start = torch.randint(256, (50, 4000)).to(torch.uint8), torch.randint(50, (7,))
    assert torch.equal(
        native.gather_sequences(storage, start, 33), reference.gather_sequences(storage, start, 33)
    )


def test_gather_has_gradients_and_compiles(native: ModuleType):
    storage, start = torch.randn(4, 2, dtype=torch.float64, requires_grad=True), torch.tensor([1, 2])
    assert torch.autograd.gradcheck(lambda x: native.gather_sequences(x, start, 3), storage)
    checks = torch.library.opcheck(torch.ops.fastdream.gather_sequences.default, (storage, start, 3))
    assert set(checks.values()) == {"SUCCESS"}
    compiled = torch.compile(native.gather_sequences, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(storage, start, 5), native.gather_sequences(storage, start, 5))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(()), torch.zeros(2).long(), 3), r"storage has shape \[\], expected \[N, ...\]"),
        ((torch.zeros(0, 3), torch.zeros(2).long(), 3), r"storage has shape \[0, 3\]"),
        ((torch.zeros(4), torch.zeros(2), 3), r"start is torch.float32 \[2\], expected torch.int64 \[B\]"),
        ((torch.zeros(4), torch.zeros(2).long(), -1), "length=-1 is negative"),
        ((torch.zeros(4), torch.zeros(2, device="meta").long(), 3), "start has device meta, expected cpu"),
    ],
)
def test_bad_windows_are_named(native: ModuleType, args: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        native.gather_sequences(*args)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_gradients_of_half_precision_count_as_they_are(native: ModuleType, backend: str):
    op, dtype = import_module(f"fastdream.ops.{backend}").laprop_, torch.float16
    given = [g.to(dtype) if i % 3 else g for i, g in enumerate(gradients(1, torch.float32))]
    found = []
    for grads in (given, [g.float() for g in given]):
        state = start(torch.float32)
        norms = op(state[0], grads, *state[1:], torch.tensor(1), 0.01, decay=0.1)
        found.append([*norms, *(x for tensors in state for x in tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradients_of_two_kinds_of_half_precision_are_refused():
    (params, nu, mu), grads = start(torch.float32), gradients(1, torch.float32)
    grads[0], grads[1] = grads[0].half(), grads[1].bfloat16()
    with pytest.raises(ValueError, match="grads are of both types of half precision"):
        triton.laprop_(params, grads, nu, mu, torch.tensor(1), 0.1)
