"""Adam with clipping and decay, against NumPy in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdream.adam import Adam, AdamConfig

SHAPES = {"weight": (3, 4), "bias": (3,), "scale": (5,)}


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    rng = np.random.default_rng(seed)
    return {k: nn.Parameter(torch.tensor(rng.normal(size=s), dtype=dtype)) for k, s in SHAPES.items()}


def gradients(step: int, scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return {k: rng.normal(size=s) * scale for k, s in SHAPES.items()}


def numpy_adam(params: dict[str, np.ndarray], steps: int, scale: float, config: AdamConfig) -> list[float]:
    """Changes params; returns the gradients' norms. Written from Kingma & Ba's algorithm with epsilon hat."""
    first = {k: np.zeros_like(p) for k, p in params.items()}
    second = {k: np.zeros_like(p) for k, p in params.items()}
    norms = []
    for t in range(1, steps + 1):
        grads = gradients(t, scale)
        norms.append(float(np.sqrt(sum((g**2).sum() for g in grads.values()))))
        for key, grad in grads.items():
            if config.clip and norms[-1] > config.clip:
                grad = grad * config.clip / norms[-1]
            params[key] *= 1 - config.wd
            first[key] = config.beta1 * first[key] + (1 - config.beta1) * grad
            second[key] = config.beta2 * second[key] + (1 - config.beta2) * grad**2
            rate = config.lr * np.sqrt(1 - config.beta2**t) / (1 - config.beta1**t)
            params[key] -= rate * first[key] / (np.sqrt(second[key]) + config.eps)
    return norms


def step(opt: Adam, params: dict[str, nn.Parameter], number: int, scale: float) -> dict[str, Tensor]:
    for key, grad in gradients(number, scale).items():
        params[key].grad = torch.tensor(grad, dtype=params[key].dtype)
    return opt.step()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize(
    "changes", [{}, {"wd": 0.01}, {"clip": 2.0, "wd": 1e-6}, {"clip": 0.0}, {"eps": 1e-2}], ids=str
)
def test_steps_are_those_of_numpy(changes: dict[str, float], scale: float) -> None:
    config = AdamConfig(lr=0.01, **changes)
    params = parameters()
    opt = Adam(params, config)
    want = {k: p.detach().numpy().copy() for k, p in params.items()}
    norms = numpy_adam(want, 5, scale, config)
    for number, norm in enumerate(norms, start=1):
        metrics = step(opt, params, number, scale)
        assert float(metrics["grad_norm"]) == pytest.approx(norm)
    for key, param in params.items():
        np.testing.assert_allclose(param.detach().numpy(), want[key], rtol=1e-12, atol=1e-14)
        assert param.grad is None


def test_decay_is_not_multiplied_by_the_learning_rate() -> None:
    params = parameters()
    before = {k: p.detach().clone() for k, p in params.items()}
    opt = Adam(params, AdamConfig(lr=1e-12, wd=0.1))
    step(opt, params, 1, 1.0)
    for key, param in params.items():
        torch.testing.assert_close(param.detach(), 0.9 * before[key], rtol=1e-9, atol=1e-11)


def test_saved_and_loaded_it_goes_on_alike() -> None:
    results: list[Any] = []
    for reload in (False, True):
        params = parameters(dtype=torch.float32)
        opt = Adam(params, AdamConfig(lr=0.01, wd=1e-3))
        for number in (1, 2):
            step(opt, params, number, 1.0)
        if reload:
            fresh = Adam(params, AdamConfig(lr=0.01, wd=1e-3))
            fresh.load_state_dict({k: v for k, v in opt.state_dict().items()})
            opt = fresh
        step(opt, params, 3, 1.0)
        results.append([p.detach().clone() for p in params.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="lr and eps > 0"):
        AdamConfig(lr=0.0)
    with pytest.raises(ValueError, match="0 <= wd < 1"):
        AdamConfig(wd=1.0)
    for wrong in (dict(beta1=1.0), dict(beta2=-0.1)):
        with pytest.raises(ValueError, match=r"beta1 and beta2 in \[0, 1\)"):
            AdamConfig(**wrong)
    params = parameters()
    opt = Adam(params, AdamConfig())
    with pytest.raises(AssertionError, match="no gradient reached"):
        opt.step()
    other = Adam({"other": params["bias"]}, AdamConfig())
    with pytest.raises(ValueError, match="of other parameters"):
        opt.load_state_dict(other.state_dict())
    state = opt.state_dict()
    short = state | {"mean": state["mean"] | {"bias": torch.zeros(1)}}  # which would be copied to every place
    with pytest.raises(ValueError, match=r"of other parameters: \['bias'\]"):
        opt.load_state_dict(short)
