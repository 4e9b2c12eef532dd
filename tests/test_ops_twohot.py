"""Symlog and two-hot regression against a NumPy form that builds the targets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdream.ops import reference as ops

from . import ops_oracles as oracle
from .ops_tools import Maker, arrays, worst

FORMS = ["symexp", "symlog"]
SIZES = [2, 5, 8, 40, 41, 255]


def np_symlog(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(np.abs(x))


def np_symexp(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.expm1(np.abs(x))


def np_twohot(target: float, bins: np.ndarray) -> np.ndarray:
    """Specification 2.3, one target at a time."""
    below = max((bins <= target).sum() - 1, 0)
    above = min(len(bins) - (bins > target).sum(), len(bins) - 1)
    weight = np.zeros(len(bins))
    down, up = (1, 1) if below == above else (abs(bins[below] - target), abs(bins[above] - target))
    weight[below] += up / (down + up)
    weight[above] += down / (down + up)
    return weight


def np_loss(logit: np.ndarray, target: np.ndarray, bins: np.ndarray) -> np.ndarray:
    log_probs = np.log(oracle.softmax(logit))
    pairs = zip(log_probs, target, strict=True)
    return np.array([-(np_twohot(y, bins) * row).sum() for row, y in pairs])


def test_symlog_and_symexp_match_numpy_and_invert_each_other() -> None:
    x = torch.tensor([-1e6, -20.0, -1.0, -1e-9, 0.0, 1e-12, 0.3, 7.0, 1e5], dtype=torch.float64)
    np.testing.assert_allclose(ops.symlog(x).numpy(), np_symlog(x.numpy()), rtol=1e-15)
    small = x[1:-1]
    np.testing.assert_allclose(ops.symexp(small).numpy(), np_symexp(small.numpy()), rtol=1e-15)
    np.testing.assert_allclose(ops.symexp(ops.symlog(x)).numpy(), x.numpy(), rtol=1e-13)


@pytest.mark.parametrize("fn", [ops.symlog, ops.symexp])
def test_symlog_and_symexp_gradients_also_at_zero(fn: object) -> None:
    x = torch.tensor([-3.0, -0.2, 0.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fn, x)
    assert torch.autograd.grad(fn(x).sum(), x)[0][2] == 1
    assert fn(torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", SIZES)
def test_bins_are_the_published_ones_and_exactly_mirrored(form: str, n: int) -> None:
    bins = ops.twohot_bins(n, form, dtype=torch.float64).numpy()
    if form == "symlog":
        want = np.linspace(-20, 20, n)
    else:
        half = np_symexp(np.linspace(-20, 0, n // 2 + n % 2))
        want = np.concatenate([half, -half[: n // 2][::-1]])
    np.testing.assert_allclose(bins, want, rtol=1e-12, atol=1e-12)
    assert (bins == -bins[::-1]).all() and (np.diff(bins) >= 0).all()
    assert ops.twohot_bins(n, form).dtype == torch.float32


def test_default_bins_have_the_values_of_the_specification() -> None:
    bins = ops.twohot_bins(255)
    assert bins[127] == 0 and len(bins) == 255
    np.testing.assert_allclose([bins[0], bins[126], bins[128]], [-4.852e8, -0.17056, 0.17056], rtol=1e-4)


def test_wrong_bins_are_named() -> None:
    with pytest.raises(ValueError, match="n=1"):
        ops.twohot_bins(1)
    with pytest.raises(ValueError, match="hi=5"):
        ops.twohot_bins(8, hi=5.0)
    with pytest.raises(ValueError, match="cube.*symexp or symlog"):
        ops.twohot_bins(8, "cube")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_decode_to_exactly_zero(form: str, n: int, dtype: torch.dtype) -> None:
    logit = torch.tensor([0.0, -3.7, 11.1], dtype=dtype)[:, None].expand(3, n)
    assert (ops.twohot_mean(logit, ops.twohot_bins(n, form), form) == 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", SIZES)
def test_mean_matches_numpy(form: str, n: int) -> None:
    logit, bins = Maker(0).normal(2, 3, n), ops.twohot_bins(n, form, lo=-4, hi=4, dtype=torch.float64)
    want = (oracle.softmax(arrays(logit)) * bins.numpy()).sum(-1)
    want = np_symexp(want) if form == "symlog" else want
    assert worst(ops.twohot_mean(logit, bins, form), want) < 1e-13


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", SIZES)
def test_loss_matches_numpy_inside_outside_and_on_the_bins(form: str, n: int) -> None:
    bins = ops.twohot_bins(n, form, lo=-4, hi=4, dtype=torch.float64)
    raw = bins if form == "symexp" else ops.symexp(bins)
    outside = torch.tensor([-1e9, -60.0, 60.0, 1e9, float("inf"), -float("inf")], dtype=torch.float64)
    inside = torch.tensor([-7.3, -0.01, 0.0, 1e-7, 0.4, 12.0], dtype=torch.float64)
    target = torch.cat([inside, outside, raw])
    logit = Maker(1).normal(len(target), n, scale=2.0)
    squashed = target if form == "symexp" else ops.symlog(target)
    want = np_loss(arrays(logit), squashed.numpy(), bins.numpy())
    # Symlog of symexp(bin) is the bin up to rounding, which the interpolation passes on.
    assert worst(ops.twohot_loss(logit, target, bins, form), want) < 1e-12


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e9, 1e9, width=32, allow_subnormal=False), st.integers(2, 64))
def test_the_two_hot_target_decodes_to_the_target(target: float, n: int) -> None:
    """The loss is linear in the weights: probing it with unit vectors reads the target distribution."""
    bins = ops.twohot_bins(n, dtype=torch.float64)
    log_norm = np.log(n - 1 + np.e)
    weights = log_norm - ops.twohot_loss(torch.eye(n, dtype=torch.float64), torch.full((n,), target), bins)
    low, high = bins[0].item(), bins[-1].item()
    assert abs(weights.sum() - 1) < 1e-9 and weights.min() > -1e-9
    mean = float((weights * bins).sum())
    assert abs(mean - min(max(target, low), high)) <= 1e-9 * max(1.0, high)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [6, 7])
def test_gradients(form: str, n: int) -> None:
    bins = ops.twohot_bins(n, form, lo=-3, hi=3, dtype=torch.float64)
    logit = Maker(2).normal(5, n)
    target = torch.tensor([-50.0, -1.3, 0.0, 2.2, 90.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.twohot_mean(x, bins, form), logit)
    assert torch.autograd.gradcheck(lambda x: ops.twohot_loss(x, target.detach(), bins, form), logit)
    loss = ops.twohot_loss(logit, target, bins, form).sum()
    assert torch.autograd.grad(loss, target, allow_unused=True) == (None,)


def test_loss_at_start_is_log_of_the_number_of_bins() -> None:
    loss = ops.twohot_loss(torch.zeros(3, 255), torch.tensor([-5.0, 0.0, 1e12]), ops.twohot_bins(255))
    np.testing.assert_allclose(loss.numpy(), np.log(255), rtol=1e-6)


def test_not_a_number_stays_visible() -> None:
    bins, nan = ops.twohot_bins(7), float("nan")
    assert ops.twohot_loss(torch.zeros(7), torch.tensor(nan), bins).isnan()
    assert ops.twohot_loss(torch.full((7,), nan), torch.tensor(1.0), bins).isnan()
    assert ops.twohot_mean(torch.full((7,), nan), bins).isnan()


def test_half_precision_logits_are_read_in_float32() -> None:
    logit = Maker(3, torch.bfloat16).normal(16, 41)
    bins, target = ops.twohot_bins(41, lo=-4, hi=4), Maker(4, torch.float32).normal(16, scale=9.0)
    loss, mean = ops.twohot_loss(logit, target, bins), ops.twohot_mean(logit, bins)
    assert loss.dtype == mean.dtype == torch.float32
    assert worst(loss, np_loss(arrays(logit), arrays(target), arrays(bins))) < 1e-6
    assert worst(mean, (oracle.softmax(arrays(logit)) * arrays(bins)).sum(-1)) < 1e-6
