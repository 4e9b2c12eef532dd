"""Categorical sampling, straight-through gradients, entropy and KL."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdream.ops import reference as ops

from . import ops_oracles as oracle
from .ops_tools import Maker, arrays, worst

LAST = 1 - 2**-24  # the largest float32 below 1
INF = float("inf")
Sample = Callable[..., tuple[Tensor, Tensor]]
UNIMIX = [0.0, 0.01, 0.5]


def chi_square(index: Tensor, probs: np.ndarray) -> float:
    count = np.bincount(index.numpy(), minlength=len(probs))
    expected = probs * len(index)
    assert (count[probs == 0] == 0).all()
    return float(((count - expected)[probs > 0] ** 2 / expected[probs > 0]).sum())


def test_index_counts_the_classes_whose_cumulative_probability_is_passed() -> None:
    logit = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(8, 4)
    noise = torch.tensor([0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, LAST])
    _, index = ops.categorical_sample(logit, noise)
    assert index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert index.dtype == torch.int64


def test_noise_on_a_boundary_draws_the_class_above_it() -> None:
    logit = torch.zeros(4, 4)  # cumulative 1/4, 1/2, 3/4, 1: all exact
    _, index = ops.categorical_sample(logit, torch.tensor([0.25, 0.5, 0.75, 0.0]))
    assert index.tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("unimix", UNIMIX)
@pytest.mark.parametrize("sample", [ops.categorical_sample, ops.gumbel_sample])
def test_draws_follow_the_mixed_probabilities(sample: Sample, unimix: float) -> None:
    make = Maker(0)
    logit = make.normal(5, scale=2.0).detach()
    noise = make.uniform(20_000) if sample is ops.categorical_sample else make.uniform(20_000, 5)
    _, index = sample(logit.expand(20_000, 5), noise, unimix)
    assert (
        chi_square(index, oracle.mixed(arrays(logit), unimix)) < 23.5
    )  # 1 in 10,000 at 4 degrees of freedom


@pytest.mark.parametrize("noise", [0.0, 0.5, LAST])
@pytest.mark.parametrize("sample", [ops.categorical_sample, ops.gumbel_sample])
@pytest.mark.parametrize(
    "logit", [[-INF, 0, 1, -INF], [0, -INF, -INF, 1], [-300.0, -300, 0, -300], [2, 1, 0, -INF]]
)
def test_classes_of_zero_probability_are_never_drawn(
    sample: Sample, logit: list[float], noise: float
) -> None:
    x = torch.tensor(logit)
    draw = torch.tensor(noise) if sample is ops.categorical_sample else torch.full((4,), noise)
    onehot, index = sample(x, draw)
    assert x[index] > -300
    assert onehot.sum() == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-120, 40, width=32, allow_subnormal=False), min_size=1, max_size=40),
    st.one_of(st.sampled_from([0.0, LAST]), st.floats(0, LAST, width=32, allow_subnormal=False)),
)
def test_any_draw_lies_inside_the_cumulative_interval_of_its_class(logit: list[float], noise: float) -> None:
    x = torch.tensor(logit, dtype=torch.float32)
    _, index = ops.categorical_sample(x, torch.tensor(noise))
    probs = torch.softmax(x, -1)
    cdf = probs.cumsum(-1)
    assert probs[index] > 0
    assert index == 0 or cdf[index - 1] <= noise
    assert noise < cdf[index] or cdf[index] == cdf[-1]


@pytest.mark.parametrize("unimix", UNIMIX)
def test_value_is_the_one_hot_and_gradient_that_of_the_mixed_probabilities(unimix: float) -> None:
    make = Maker(1)
    logit, cot = make.normal(2, 3, 5), make.normal(2, 3, 5).detach()
    onehot, index = ops.categorical_sample(logit, make.uniform(2, 3), unimix)
    assert torch.equal(onehot, torch.eye(5, dtype=torch.float64)[index])
    (grad,) = torch.autograd.grad((onehot * cot).sum(), logit)
    probs, weight = oracle.softmax(arrays(logit)), arrays(cot)
    want = (1 - unimix) * probs * (weight - (probs * weight).sum(-1, keepdims=True))
    assert worst(grad, want) < 1e-14


@pytest.mark.parametrize("sample", [ops.categorical_sample, ops.gumbel_sample])
def test_replaying_an_index_gives_the_same_value_and_gradient(sample: Sample) -> None:
    make = Maker(2)
    logit, cot = make.normal(4, 5), make.normal(4, 5).detach()
    discrete = sample is ops.categorical_sample
    noise = make.uniform(4) if discrete else make.uniform(4, 5)
    onehot, index = sample(logit, noise, 0.01)
    again, same = sample(logit, None if discrete else noise, 0.01, index.to(torch.uint8))
    assert torch.equal(onehot, again)
    assert torch.equal(index, same)
    grads = [torch.autograd.grad((value * cot).sum(), logit)[0] for value in (onehot, again)]
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_gumbel_gradient_is_that_of_the_tempered_softmax(tau: float) -> None:
    make = Maker(3)
    logit, noise, cot = make.normal(4, 5), make.uniform(4, 5), make.normal(4, 5).detach()
    onehot, _ = ops.gumbel_sample(logit, noise, 0.1, tau=tau)
    (grad,) = torch.autograd.grad((onehot * cot).sum(), logit)
    perturbed = np.log(oracle.mixed(arrays(logit), 0.1)) - np.log(-np.log(arrays(noise)))
    soft, weight = oracle.softmax(perturbed / tau), arrays(cot)
    outer = soft * (weight - (soft * weight).sum(-1, keepdims=True)) / tau  # with respect to log probs
    probs = oracle.softmax(arrays(logit))
    slope = outer * 0.9 * probs / oracle.mixed(arrays(logit), 0.1)
    assert worst(grad, slope - probs * slope.sum(-1, keepdims=True)) < 1e-13
    assert torch.equal(onehot.argmax(-1), torch.from_numpy(perturbed.argmax(-1)))


def test_samples_are_plain_one_hots_without_gradients_and_in_half_precision() -> None:
    make = Maker(4, torch.bfloat16)
    logit, noise = make.normal(64, 5), make.uniform(64)
    soft, index = ops.categorical_sample(logit, noise, 0.01)
    with torch.no_grad():
        hard, same = ops.categorical_sample(logit, noise, 0.01)
    assert soft.dtype == hard.dtype == torch.bfloat16
    assert soft.requires_grad and not hard.requires_grad
    assert torch.equal(soft, hard) and torch.equal(index, same)
    assert torch.equal(hard.sum(-1), torch.ones(64, dtype=torch.bfloat16))


def test_a_draw_without_noise_or_index_is_an_error() -> None:
    with pytest.raises(ValueError, match="noise"):
        ops.categorical_sample(torch.zeros(3), None)


@pytest.mark.parametrize("unimix", UNIMIX)
def test_entropy_and_log_prob_match_numpy(unimix: float) -> None:
    make = Maker(5)
    logit, index = make.normal(2, 3, 5, scale=3.0), make.index(2, 3)
    probs = oracle.mixed(arrays(logit), unimix)
    entropy = -(probs * np.log(probs)).sum(-1)
    assert worst(ops.categorical_entropy(logit, unimix), entropy) < 1e-14
    assert worst(ops.categorical_entropy(logit.movedim(-1, 1), unimix, 1), entropy) < 1e-14
    picked = np.take_along_axis(np.log(probs), index.numpy()[..., None], -1)[..., 0]
    assert worst(ops.categorical_log_prob(logit, index, unimix), picked) < 1e-14
    assert worst(ops.unimix_log_probs(logit, unimix).exp().sum(-1), np.ones((2, 3))) < 1e-14
    assert torch.autograd.gradcheck(lambda x: ops.categorical_entropy(x, unimix), logit)
    assert torch.autograd.gradcheck(lambda x: ops.categorical_log_prob(x, index, unimix), logit)


@pytest.mark.parametrize("unimix", UNIMIX)
@pytest.mark.parametrize("clamp", ["step", "mean", "none"])
@pytest.mark.parametrize("clamped", [False, True])
def test_kl_matches_numpy(unimix: float, clamp: str, clamped: bool) -> None:
    make = Maker(6)
    post, prior = make.normal(4, 3, 2, 5, scale=2.0), make.normal(4, 3, 2, 5)
    p, q = (oracle.mixed(arrays(x), unimix) for x in (post, prior))
    want = (p * np.log(p / q)).sum(-1).sum(-1)
    free = float(np.median(want)) + 0.1 if clamped else 0.0
    want = {"step": np.maximum(want, free), "mean": np.maximum(want.mean(), free), "none": want}[clamp]
    dyn, rep = ops.categorical_kl(post, prior, unimix, free, clamp)
    assert worst(dyn, want) < 1e-14 and worst(rep, want) < 1e-14


@pytest.mark.parametrize("clamp", ["step", "mean", "none"])
def test_kl_gradients_reach_one_side_each(clamp: str) -> None:
    make = Maker(7)
    post, prior = make.normal(3, 2, 5, scale=2.0), make.normal(3, 2, 5)

    def kl(post: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        return ops.categorical_kl(post, prior, 0.01, 1.0, clamp)

    assert torch.autograd.gradcheck(lambda x: kl(post.detach(), x)[0], prior)
    assert torch.autograd.gradcheck(lambda x: kl(x, prior.detach())[1], post)
    dyn, rep = kl(post, prior)
    assert torch.autograd.grad(dyn.sum(), post, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(rep.sum(), prior, allow_unused=True) == (None,)


def test_free_nats_cut_the_gradient_of_each_step_alone() -> None:
    post = torch.tensor(
        [[[3.0, 0.0]], [[0.1, 0.0]]], requires_grad=True
    )  # one step above 0.5 nats, one below
    dyn, rep = ops.categorical_kl(post, torch.zeros(2, 1, 2), 0.0, 0.5, "step")
    assert dyn.tolist() == rep.tolist() and rep[1] == 0.5 < rep[0]
    (grad,) = torch.autograd.grad(rep.sum(), post)
    assert grad[0].abs().min() > 0 and grad[1].abs().max() == 0


def test_kl_of_half_precision_logits_is_computed_in_float32() -> None:
    make = Maker(8, torch.bfloat16)
    post, prior = make.normal(64, 4, 5), make.normal(64, 4, 5)
    p, q = (oracle.mixed(arrays(x), 0.01) for x in (post, prior))
    dyn, _ = ops.categorical_kl(post, prior, 0.01, 1.0, "none")
    assert dyn.dtype == torch.float32
    assert worst(dyn, (p * np.log(p / q)).sum(-1).sum(-1)) < 1e-6


def test_an_unknown_clamp_is_named() -> None:
    with pytest.raises(ValueError, match="batch.*step, mean or none"):
        ops.categorical_kl(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), clamp="batch")
