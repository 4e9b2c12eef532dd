"""The lambda-return in the conventions of DreamerV1, V2 and V3 against naive loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdream.ops import reference as ops

from .ops_tools import Maker, arrays, worst

LAM = 0.95
Array = np.ndarray


def v1_loop(reward: Array, discount: Array, value: Array) -> Array:
    """Imagined states 1 ... H without the start: G_k for k < H, with G_H = v_H."""
    ret, rets = value[:, -1], []
    for k in reversed(range(reward.shape[1] - 1)):
        ret = reward[:, k] + discount[:, k] * ((1 - LAM) * value[:, k + 1] + LAM * ret)
        rets.append(ret)
    return np.stack(rets[::-1], 1)


def v3_loop(reward: Array, terminal: Array, last: Array, boot: Array, discount: float) -> Array:
    """Specification 3.3, literally; T steps give T - 1 returns."""
    live = (1 - terminal) * discount
    cont = (1 - last) * LAM
    base = reward[:, 1:] + (1 - cont[:, 1:]) * live[:, 1:] * boot[:, 1:]
    rets = [boot[:, -1]]
    for t in reversed(range(base.shape[1])):
        rets.append(base[:, t] + live[:, 1:][:, t] * cont[:, 1:][:, t] * rets[-1])
    return np.stack(rets[1:][::-1], 1)


def sequences(make: Maker, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """reward, live in (0, 1), mix in (0, 1), value; leaves."""
    live, mix = (torch.sigmoid(make.normal(*shape)).detach().requires_grad_() for _ in range(2))
    return make.normal(*shape), live, mix, make.normal(*shape, scale=5.0)


def test_dreamer_v1_convention() -> None:
    reward, discount, _, value = sequences(Maker(0), 3, 7)
    mix = torch.full_like(reward, LAM)
    got = ops.lambda_return(reward[:, :-1], discount[:, :-1], mix[:, :-1], value[:, 1:])
    assert worst(got, v1_loop(arrays(reward), arrays(discount), arrays(value))) < 1e-14


def test_dreamer_v2_convention() -> None:
    """H + 1 states with the start; the same recursion, whose discount of the start is known from data."""
    reward, discount, _, value = sequences(Maker(1), 3, 8)
    discount = torch.cat([torch.tensor([[0.999], [0.0], [0.999]]), discount[:, 1:]], 1)
    mix = torch.full_like(reward, LAM)
    got = ops.lambda_return(reward[:, :-1], discount[:, :-1], mix[:, :-1], value[:, 1:])
    assert worst(got, v1_loop(arrays(reward), arrays(discount), arrays(value))) < 1e-14
    assert worst(got[1, 0], reward[1, 0]) < 1e-14  # nothing counts after a terminal start


def test_dreamer_v3_imagination_convention() -> None:
    reward, con, _, value = sequences(Maker(2), 4, 6)
    mix = torch.full_like(reward, LAM)[:, 1:]
    got = ops.lambda_return(reward[:, 1:], con[:, 1:], mix, value[:, 1:])
    want = v3_loop(arrays(reward), 1 - arrays(con), np.zeros((4, 6)), arrays(value), 1.0)
    assert worst(got, want) < 1e-14


def test_dreamer_v3_replay_convention() -> None:
    make = Maker(3)
    reward, _, _, boot = sequences(make, 4, 9)
    last = make.uniform(4, 9) < 0.3
    terminal = last & (make.uniform(4, 9) < 0.5)
    last, terminal = last.double(), terminal.double()
    discount = 1 - 1 / 333
    live, mix = discount * (1 - terminal[:, 1:]), LAM * (1 - last[:, 1:])
    got = ops.lambda_return(reward[:, 1:], live, mix, boot[:, 1:])
    assert worst(got, v3_loop(arrays(reward), arrays(terminal), arrays(last), arrays(boot), discount)) < 1e-14


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_the_ends_of_mix_are_one_step_and_monte_carlo_returns(length: int, batch: int, seed: int) -> None:
    reward, live, _, value = sequences(Maker(seed), batch, length)
    near = ops.lambda_return(reward, live, torch.zeros_like(live), value)
    assert worst(near, reward + live * value) < 1e-14
    far = ops.lambda_return(reward, torch.ones_like(live), torch.ones_like(live), value)
    assert worst(far, reward.flip(1).cumsum(1).flip(1) + value[:, -1:]) < 1e-12


def test_gradients_reach_all_four_arguments() -> None:
    assert torch.autograd.gradcheck(ops.lambda_return, sequences(Maker(4), 2, 4))


def test_a_dead_step_stops_everything_after_it() -> None:
    reward, live, mix, value = (x.detach() for x in sequences(Maker(5), 1, 5))
    live[:, 2] = 0
    changed = [x.clone() for x in (reward, value)]
    for x in changed:
        x[:, 3:] += 100
    before, after = (
        ops.lambda_return(reward, live, mix, value),
        ops.lambda_return(changed[0], live, mix, changed[1]),
    )
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).all()


def test_half_precision_is_computed_in_float32() -> None:
    args = [x.detach().to(torch.bfloat16) for x in sequences(Maker(6), 8, 16)]
    out = ops.lambda_return(*args)
    assert out.dtype == torch.float32
    assert worst(out, ops.lambda_return(*(x.double() for x in args))) < 1e-6


@pytest.mark.parametrize("poisoned", range(4))
def test_not_a_number_stays_visible(poisoned: int) -> None:
    args = [x.detach() for x in sequences(Maker(7), 2, 3)]
    args[poisoned][0, 1] = float("nan")
    out = ops.lambda_return(*args)
    assert out[0, :2].isnan().all()
    assert out[1].isfinite().all()
