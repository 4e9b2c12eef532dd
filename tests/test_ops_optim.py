"""LaProp with adaptive gradient clipping against NumPy over several steps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.ops import reference as ops

from .ops_tools import Maker, worst

SHAPES = [(3, 4), (5,), (2, 3, 2), (), (4,)]
Lists = tuple[list[Tensor], list[Tensor], list[Tensor]]


def start(dtype: torch.dtype = torch.float64) -> Lists:
    """params (the last one all zero, like an output head), nu, mu."""
    make = Maker(0, dtype)
    params = [make.normal(*shape).detach() for shape in SHAPES]
    params[-1].zero_()
    return params, [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of very different sizes, so that clipping acts on some tensors; one entry is 0 throughout."""
    make = Maker(100 + step, dtype)
    grads = [make.normal(*shape, scale=10.0**-i).detach() for i, shape in enumerate(SHAPES)]
    grads[1][0] = 0
    return grads


def laprop(
    p: np.ndarray,
    g: np.ndarray,
    nu: np.ndarray,
    mu: np.ndarray,
    t: int,
    lr: float,
    *,
    decayed: bool = True,
    agc: float = 0.3,
    pmin: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-20,
    decay: float = 0.0,
    momentum: bool = True,
    nesterov: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Specification 4 for one tensor: new p, nu, mu."""
    if agc:
        upper = agc * max(pmin, np.sqrt((p**2).sum()))
        g = g / max(1.0, np.sqrt((g**2).sum()) / upper)
    nu = beta2 * nu + (1 - beta2) * g**2
    update = g / (np.sqrt(nu / (1 - beta2**t)) + eps)
    if momentum:
        mu = beta1 * mu + (1 - beta1) * update
        mean = beta1 * mu + (1 - beta1) * update if nesterov else mu
        update = mean / (1 - beta1**t)
    if decay and decayed:
        update = update + decay * p
    return p - lr * update, nu, mu


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"agc": 0.0},
        {"agc": 0.01, "pmin": 0.1},
        {"momentum": False},
        {"nesterov": True},
        {"decay": 0.1},
        {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3},
    ],
)
def test_five_steps_match_numpy(options: dict[str, Any]) -> None:
    state = start()
    want = [[x.numpy().copy() for x in tensors] for tensors in zip(*state, strict=True)]
    for t in range(1, 6):
        lr, grads = (
            (t - 1) / 256,
            gradients(t),
        )  # exact in float32; a warm-up: the first step moves no parameter
        ops.laprop_(state[0], grads, *state[1:], torch.tensor(t), torch.tensor(lr).double(), **options)
        for i, g in enumerate(grads):
            want[i] = list(laprop(want[i][0], g.numpy(), *want[i][1:], t, lr, **options))
        for got, expected in zip(zip(*state, strict=True), want, strict=True):
            assert all(worst(a, b) < 1e-12 for a, b in zip(got, expected, strict=True))


def test_a_learning_rate_of_zero_moves_the_statistics_alone() -> None:
    params, nu, mu = start()
    before = [p.clone() for p in params]
    ops.laprop_(params, gradients(0), nu, mu, torch.tensor(1), torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    assert all(x.abs().max() > 0 for x in (*nu, *mu))


def test_decay_reaches_the_masked_tensors_alone() -> None:
    mask = [True, False, True, False, False]
    plain, masked = start(), start()
    ops.laprop_(plain[0], gradients(0), *plain[1:], torch.tensor(1), 0.1)
    ops.laprop_(masked[0], gradients(0), *masked[1:], torch.tensor(1), 0.1, decay=0.5, decay_mask=mask)
    first = start()[0]
    for a, b, p, decayed in zip(plain[0], masked[0], first, mask, strict=True):
        assert worst(b, a - 0.1 * 0.5 * p if decayed else a) < 1e-14


def test_norms_over_all_tensors_are_returned() -> None:
    params, nu, mu = start()
    before = [p.clone() for p in params]
    norms = ops.laprop_(params, gradients(0), nu, mu, torch.tensor(1), 0.1, decay=0.5)
    moved = [p - old for p, old in zip(params, before, strict=True)]
    for norm, tensors in zip(norms, (moved, gradients(0), params), strict=True):
        assert norm.shape == () and worst(norm, torch.cat([x.flatten() for x in tensors]).norm()) < 1e-13


def test_the_first_step_of_an_unclipped_gradient_is_its_sign() -> None:
    params, nu, mu = start()
    before = [p.clone() for p in params]
    ops.laprop_(params, gradients(0), nu, mu, torch.tensor(1), 0.01)
    for p, old, g in zip(params, before, gradients(0), strict=True):
        assert worst(old - p, 0.01 * g.sign()) < 1e-12


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_only_the_state_is_written(momentum: bool, nesterov: bool) -> None:
    params, nu, mu = start(torch.float32)
    grads, step, lr = gradients(1, torch.float32), torch.tensor(1), torch.tensor(0.1)
    before = [g.clone() for g in grads]
    old = [p.clone() for p in params]
    for agc in (0.0, 0.3):
        ops.laprop_(params, grads, nu, mu, step, lr, agc, decay=0.1, momentum=momentum, nesterov=nesterov)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
    assert step.item() == 1 and lr.item() == torch.tensor(0.1).item()
    assert all((m.abs().max() > 0) == momentum for m in mu)
    assert not any(torch.equal(a, b) for a, b in zip(params, old, strict=True))


def test_float32_follows_float64_and_a_float_rate_the_tensor() -> None:
    exact, single, plain = start(), start(torch.float32), start(torch.float32)
    for t in range(1, 4):
        grads = [g.float() for g in gradients(t)]
        step = torch.tensor(t)
        ops.laprop_(exact[0], [g.double() for g in grads], *exact[1:], step, torch.tensor(0.01).double())
        ops.laprop_(single[0], grads, *single[1:], step, torch.tensor(0.01))
        ops.laprop_(plain[0], grads, *plain[1:], step, 0.01)
    for a, b, c in zip(exact[0], single[0], plain[0], strict=True):
        assert b.dtype == torch.float32
        assert worst(b, a) < 1e-6 and torch.equal(b, c)


def test_parameters_that_need_gradients_are_updated_outside_the_graph() -> None:
    params, nu, mu = start()
    for p in params:
        p.requires_grad_()
    ops.laprop_(params, gradients(0), nu, mu, torch.tensor(1), 0.1)
    assert all(p.is_leaf and p.requires_grad for p in params)
