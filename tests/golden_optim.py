"""LaProp with AGC and its learning-rate schedules against the official optimiser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdream.optim import LaProp, OptConfig

from .golden_tools import BACKENDS, EACH_BACKEND, STRICT, Golden, assert_close, files, parse_options

OPTIM = {path: Golden(path) for path in files("optim*.npz")}
VARIANTS = [(path, name) for path, gold in OPTIM.items() for name in gold.config["variants"]]


def optimizer(
    gold: Golden, options: dict[str, Any], dtype: torch.dtype, backend: str
) -> tuple[LaProp, dict[str, nn.Parameter]]:
    """Our optimiser on the parameters of the file; weights are called so, because decay goes by the name."""
    params = {key: nn.Parameter(x.to(dtype)) for key, x in gold.tensors("params0").items()}
    named = {key.replace("/kernel", "/weight"): param for key, param in params.items()}
    return LaProp(BACKENDS[backend], named, parse_options(OptConfig, options)), params


@EACH_BACKEND
@pytest.mark.parametrize("path, variant", VARIANTS, ids=lambda x: x.stem if isinstance(x, Path) else x)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_optimizer_follows_the_official_steps(
    path: Path, variant: str, dtype: torch.dtype, backend: str
) -> None:
    gold = OPTIM[path]
    opt, params = optimizer(gold, gold.config["variants"][variant], dtype, backend)
    for step in range(gold.config["steps"]):
        before = {key: param.detach().clone() for key, param in params.items()}
        for key, grad in gold.tensors(f"grads{step}").items():
            params[key].grad = grad.to(dtype)
        opt.step()
        at = f"{variant}/step{step}"
        assert_close(params, gold.under(f"{at}/params"))
        assert_close(dict(zip(params, opt.nu, strict=True)), gold.under(f"{at}/nu"), floor=1e-12)
        if opt.config.momentum:
            assert_close(dict(zip(params, opt.mu, strict=True)), gold.under(f"{at}/mu"))
        assert int(opt.count) == gold[f"{at}/rms_count"]
        if dtype == torch.float64:
            # Differences of float32 parameters are too coarse to show a small update.
            updates: dict[str, Tensor | np.ndarray] = {key: params[key] - before[key] for key in params}
            assert_close(updates, gold.under(f"{at}/updates"), floor=1e-12)


@EACH_BACKEND
@pytest.mark.parametrize("path", OPTIM, ids=lambda path: path.stem)
def test_gradient_clipping_alone(path: Path, backend: str) -> None:
    gold = OPTIM[path]
    options = next(o for o in gold.config["variants"].values() if o["agc"])
    opt, params = optimizer(gold, {**options, "beta2": 0.0}, torch.float64, backend)
    grads = {key: grad.double() for key, grad in gold.tensors("grads0").items()}
    for key, grad in grads.items():
        params[key].grad = grad.clone()
    opt.step()
    # With beta2 = 0 the mean square is the square of the clipped gradient.
    clipped = {key: nu.sqrt() * grads[key].sign() for key, nu in zip(params, opt.nu, strict=True)}
    assert_close(clipped, gold.under("agc0"), STRICT, floor=1e-12)
