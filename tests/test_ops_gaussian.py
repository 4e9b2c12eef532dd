"""Gaussian latents against NumPy and torch.distributions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.latents import Gaussian
from fastdream.ops import reference as ops

from .ops_tools import Maker, arrays, worst

Pair = tuple[Tensor, Tensor]


def gaussians(seed: int, *shape: int) -> tuple[Pair, Pair]:
    """Two (mean, std) pairs, all four leaves."""
    make = Maker(seed)
    stds = [(make.normal(*shape).detach().exp() * 0.7).requires_grad_() for _ in range(2)]
    return (make.normal(*shape), stds[0]), (make.normal(*shape), stds[1])


def kl(post: Pair, prior: Pair) -> np.ndarray:
    (m, s), (n, r) = arrays(post), arrays(prior)
    return (np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5).sum(-1)


@pytest.mark.parametrize("form", ["softplus", "sigmoid2"])
def test_std_matches_numpy_and_stays_above_its_floor(form: str) -> None:
    raw = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    x = arrays(raw)
    want = np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) if form == "softplus" else 2 / (1 + np.exp(-x / 2))
    out = ops.gaussian_std(raw, 0.1, form)
    np.testing.assert_allclose(arrays(out), want + 0.1, rtol=1e-8)  # torch's softplus is linear above 20
    assert out.min() >= 0.1
    assert torch.autograd.gradcheck(
        lambda r: ops.gaussian_std(r, 0.1, form), raw[::7].detach().requires_grad_()
    )


def test_std_of_half_precision_is_float32_and_an_unknown_form_is_named() -> None:
    assert ops.gaussian_std(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ValueError, match="exp.*softplus or sigmoid2"):
        ops.gaussian_std(torch.zeros(2), form="exp")


def test_sample_is_reparameterised() -> None:
    (mean, std), _ = gaussians(0, 2, 3)
    noise = Maker(1).normal(2, 3).detach()
    assert worst(ops.gaussian_sample(mean, std, noise), arrays(mean) + arrays(std) * arrays(noise)) < 1e-15
    assert torch.autograd.gradcheck(lambda m, s: ops.gaussian_sample(m, s, noise), (mean, std))


@pytest.mark.parametrize("clamp", ["step", "mean", "none"])
@pytest.mark.parametrize("free", [0.0, 3.0])
def test_kl_matches_numpy(clamp: str, free: float) -> None:
    post, prior = gaussians(2, 4, 3, 2)
    want = kl(post, prior)
    assert want.min() < 3.0 < want.max()
    want = {"step": np.maximum(want, free), "mean": np.maximum(want.mean(), free), "none": want}[clamp]
    for got in ops.gaussian_kl(post, prior, free, clamp):
        assert worst(got, want) < 1e-14


def test_entropy_of_a_latent_matches_torch_distributions() -> None:
    latent = Gaussian(fd.load("reference"), 5, min_std=0.3)
    logit = Maker(4, torch.float32).normal(3, 2, 10).detach()
    mean, std = latent.stats(logit)
    torch.testing.assert_close(latent.entropy(logit), torch.distributions.Normal(mean, std).entropy().sum(-1))


def test_kl_matches_torch_distributions() -> None:
    post, prior = gaussians(3, 5, 4)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(*post), normal(*prior)).sum(-1)
    assert worst(ops.gaussian_kl(post, prior, 0.0, "none")[0], want) < 1e-13


@pytest.mark.parametrize("clamp", ["step", "mean", "none"])
def test_kl_gradients_reach_one_side_each(clamp: str) -> None:
    post, prior = gaussians(4, 3, 2)
    fixed_post, fixed_prior = ((x[0].detach(), x[1].detach()) for x in (post, prior))
    assert torch.autograd.gradcheck(lambda m, s: ops.gaussian_kl(fixed_post, (m, s), 1.0, clamp)[0], prior)
    assert torch.autograd.gradcheck(lambda m, s: ops.gaussian_kl((m, s), fixed_prior, 1.0, clamp)[1], post)
    dyn, rep = ops.gaussian_kl(post, prior, 1.0, clamp)
    assert torch.autograd.grad(dyn.sum(), post, allow_unused=True) == (None, None)
    assert torch.autograd.grad(rep.sum(), prior, allow_unused=True) == (None, None)


def test_kl_of_half_precision_is_computed_in_float32() -> None:
    post, prior = gaussians(5, 64, 4)
    half = [tuple(x.detach().to(torch.bfloat16) for x in pair) for pair in (post, prior)]
    dyn, rep = ops.gaussian_kl(*half, 0.0, "none")
    assert dyn.dtype == rep.dtype == torch.float32
    assert worst(dyn, kl(*half)) < 1e-6
