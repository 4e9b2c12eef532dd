"""Truncated and squashed normals: density, entropy, samples and gradients, against integrals in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.distributions import BoundedNormal, TanhNormal, TruncNormal, unit_normal_loss
from fastdream.ops import reference
from fastdream.policy import ActorHeads, PolicyConfig
from fastdream.spaces import Space

MEANS, STDS = (-0.99, -0.3, 0.0, 0.6, 0.95), (0.1, 0.4, 1.1, 2.1)
PAIRS = [(mean, std) for mean in MEANS for std in STDS]
GRID = np.linspace(-1, 1, 200_001)


def normal_density(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def integral(values: np.ndarray) -> float:
    return float(np.trapezoid(values, GRID))


def tensors(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


@pytest.mark.parametrize(("mean", "std"), PAIRS)
def test_truncated_normal_density_and_entropy(mean: float, std: float) -> None:
    density = normal_density(GRID, mean, std)
    density /= integral(density)
    family, (m, s) = TruncNormal(), tensors(mean, std)
    got = family.log_prob(torch.from_numpy(GRID), m, s).exp().numpy()
    np.testing.assert_allclose(got, density, rtol=1e-8)
    entropy = -integral(density * np.log(density.clip(1e-300)))
    assert float(family.entropy(m, s)) == pytest.approx(entropy, abs=1e-7)


def test_truncated_normal_is_a_uniform_at_its_widest() -> None:
    for least in (0.1, 0.8):  # of which an end cuts off a half, and both together more
        low, high = TruncNormal(least).entropy_range()
        assert high == math.log(2)
        assert low == pytest.approx(float(TruncNormal().entropy(*tensors(1.0, least))))
    assert float(TruncNormal().entropy(*tensors(0.0, 2.1))) < high


@pytest.mark.parametrize(("mean", "std"), PAIRS)
def test_truncated_normal_samples_invert_the_distribution_function(mean: float, std: float) -> None:
    noise = torch.linspace(0, 1, 1002, dtype=torch.float64)[:-1]
    m, s = tensors(mean, std)
    sample = reference.trunc_normal_sample(m, s, noise)
    density = normal_density(GRID, mean, std)
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    got = np.interp(sample.numpy(), GRID, cdf / cdf[-1])
    np.testing.assert_allclose(got, noise.numpy(), atol=2e-5)
    assert float(sample.min()) == -1 + 1e-6  # where the noise is 0: cut off, and then clipped
    assert sample.diff().min() >= 0


def test_gradients_of_truncated_samples_are_those_of_a_normal() -> None:
    """As TensorFlow has them: at clipped ends too, where nothing moves the sample."""
    m, s = (x.requires_grad_() for x in tensors(0.4, 0.7))
    noise = torch.tensor([0.0, 0.01, 0.3, 0.77, 0.98], dtype=torch.float64)
    for sample in reference.trunc_normal_sample(m, s, noise):
        grads = torch.autograd.grad(sample, (m, s), retain_graph=True)
        assert float(grads[0]) == 1
        assert float(grads[1]) == pytest.approx((float(sample.detach()) - 0.4) / 0.7, rel=1e-12)


@pytest.mark.parametrize("mean", [-1.0, -0.999, 0.0, 1.0])
@pytest.mark.parametrize("std", [0.1, 0.3, 2.1])
def test_truncated_normal_in_float32_is_finite_everywhere(mean: float, std: float) -> None:
    noise = torch.cat([torch.tensor([0.0, 2**-24, 1 - 2**-24]), torch.rand(500)])
    m, s = torch.full((503,), mean, requires_grad=True), torch.full((503,), std, requires_grad=True)
    sample = reference.trunc_normal_sample(m, s, noise)
    assert (sample.abs() <= 1 - 1e-6 + 6e-8).all()
    log_prob, entropy = TruncNormal().log_prob(sample, m, s), TruncNormal().entropy(m, s)
    grads = torch.autograd.grad((sample + log_prob + entropy).sum(), (m, s))
    assert all(x.isfinite().all() for x in (log_prob, entropy, *grads))


@pytest.mark.parametrize(("mean", "std"), [(-2.0, 0.3), (0.5, 1.0), (0.0, 0.05), (4.0, 0.5)])
def test_tanh_normal_density(mean: float, std: float) -> None:
    inside = GRID[1:-1]
    raw = np.arctanh(inside)
    density = normal_density(raw, mean, std) / (1 - inside**2)
    m, s = tensors(mean, std)
    got = TanhNormal().log_prob(torch.from_numpy(inside), m, s).numpy()
    keep = density > 1e-200
    np.testing.assert_allclose(got[keep], np.log(density[keep]), rtol=1e-7, atol=1e-7)


def test_tanh_normal_at_the_ends_is_finite_in_float32() -> None:
    events = torch.tensor([-1.0, 1.0])
    log_prob = TanhNormal().log_prob(events, torch.zeros(2), torch.full((2,), 5.0))
    assert log_prob.isfinite().all() and torch.equal(log_prob[0], log_prob[1])


def test_the_likeliest_of_many_draws() -> None:
    mean, std = torch.zeros(3, 2), torch.full((3, 2), 0.2)
    noise = torch.randn(3, 100, 2, generator=torch.Generator().manual_seed(0))
    best = TanhNormal().likeliest(mean, std, noise)
    draws = torch.tanh(0.2 * noise)
    scores = torch.stack([TanhNormal().log_prob(draws[:, k], mean, std).sum(-1) for k in range(100)])
    expected = draws[torch.arange(3), scores.argmax(0)]
    assert torch.equal(best, expected) and best.abs().max() < 0.1


def actor(kind: BoundedNormal | TruncNormal | TanhNormal, detach: bool = False) -> ActorHeads:
    space = {"turn": Space("vector", (2,)), "fire": Space("discrete", (), 3)}
    config = PolicyConfig(layers=1, units=8, outscale=3.0)
    generator = torch.Generator().manual_seed(0)
    return ActorHeads(fd.load("reference"), 5, space, config, generator, kind, detach)


def test_a_policy_of_each_family_draws_by_its_own_rule() -> None:
    feat, generator = torch.randn(4, 5), torch.Generator().manual_seed(1)
    for kind in (TruncNormal(0.2), TanhNormal(2.0, 1e-3)):
        pol = actor(kind)
        noise = pol.noise(4, generator=generator)
        (_, (mean, std)) = outs = pol(feat)
        x = pol.mlp(feat)
        raw_mean, raw_std = (pol.head["turn"]._modules[name](x) for name in ("mean", "stddev"))
        action = fd.actor(pol.params, feat, noise)
        if isinstance(kind, TruncNormal):
            torch.testing.assert_close(mean, raw_mean.tanh())
            torch.testing.assert_close(std, 2 * (raw_std / 2).sigmoid() + 0.2)
            assert (noise >= 0).all() and (noise < 1).all()
            expected = reference.trunc_normal_sample(mean, std, noise[:, 1:])
            assert torch.equal(fd.actor_mode(outs)[:, 3:], mean)
            low, high = pol.entropy_range()["turn"]
            assert (low < pol.entropy(outs)["turn"]).all() and (pol.entropy(outs)["turn"] < high).all()
        else:
            torch.testing.assert_close(mean, 5 * (raw_mean / 5).tanh())
            torch.testing.assert_close(std, torch.log1p((raw_std + math.log(math.e**2 - 1)).exp()) + 1e-3)
            expected = torch.tanh(mean + std * noise[:, 1:])
            best = pol.likeliest(outs, pol.noise(4, 50, generator=generator))
            assert torch.equal(best[:, :3].argmax(-1), outs[0][0][:, 0].argmax(-1))
        assert torch.equal(action[:, 3:], expected) and action.abs().max() <= 1
        logs = kind.log_prob(action[:, 3:], mean, std).sum(-1)
        chosen = outs[0][0].log_softmax(-1)[:, 0].gather(-1, action[:, :3].argmax(-1, keepdim=True))[:, 0]
        torch.testing.assert_close(pol.log_prob(outs, action), logs + chosen)


def test_a_detached_policy_passes_no_gradient_to_its_features() -> None:
    for detach in (False, True):
        pol, feat = actor(TruncNormal(), detach), torch.randn(4, 5, requires_grad=True)
        noise = pol.noise(4, generator=torch.Generator().manual_seed(2))
        fd.actor(pol.params, feat, noise).sum().backward()
        assert (feat.grad is None) == detach
        assert all(p.grad is not None and p.grad.any() for p in pol.mlp.parameters())


def test_a_squashed_normal_has_no_mode_that_one_call_could_give() -> None:
    with pytest.raises(ValueError, match="no closed form"):
        reference.policy_step((), None, actor(TanhNormal()).params, *[None] * 6, None)  # type: ignore[arg-type]


def test_loss_of_a_normal_of_variance_one() -> None:
    mean, event = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    expected = -torch.distributions.Normal(mean, 1.0).log_prob(event)
    torch.testing.assert_close(unit_normal_loss(mean, event, 2), expected.sum((-2, -1)))
    torch.testing.assert_close(unit_normal_loss(mean, event, 0), expected)
