"""Classes and truncated normals drawn from given noise by Triton's device functions."""

import pytest
import torch
import triton
import triton.language as tl

from fastdream.ops import reference
from fastdream.ops.triton.draw import draw, truncated

from .parity_tools import FLOOR, error, far

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _drawing_kernel(
    logit, noise, out, R: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIMIX: tl.constexpr
):
    o_r, o_c = tl.arange(0, R)[:, None], tl.arange(0, BC)[None, :]
    b_x = tl.load(logit + o_r * C + o_c, mask=o_c < C, other=float("nan"))
    tl.store(out + o_r, draw(b_x, tl.load(noise + o_r), o_c, 1 - UNIMIX, UNIMIX / C, C, 1))


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("classes", [2, 5, 24, 96])
def test_draws_are_the_inverse_cdf(classes: int, unimix: float):
    rows, cols = 512, triton.next_power_of_2(classes)
    logit = 3 * torch.randn(rows, classes, device=DEVICE)
    logit[: rows // 2, ::2] = -1e4  # no probability but for unimix
    noise = torch.rand(rows, device=DEVICE)
    noise[::5], noise[1::5] = 0.0, 1 - 2**-24
    out = torch.empty(rows, dtype=torch.int64, device=DEVICE)
    _drawing_kernel[(1,)](logit, noise, out, R=rows, C=classes, BC=cols, UNIMIX=unimix)
    _, true = reference.categorical_sample(logit, noise, unimix)
    differ = out != true
    assert not far(logit[differ], noise[differ, None][:, 0], unimix).any() and differ.float().mean() < 0.02
    if not unimix:
        assert (logit.gather(1, out[:, None]) > -1e3).all()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_draws_from_what_is_no_number_are_classes_all_the_same():
    out = torch.empty(16, dtype=torch.int64, device=DEVICE)
    logit = torch.full((16, 5), float("nan"), device=DEVICE)
    _drawing_kernel[(1,)](logit, torch.rand(16, device=DEVICE), out, R=16, C=5, BC=8, UNIMIX=0.01)
    assert ((out >= 0) & (out < 5)).all()


@triton.jit
def _truncated_kernel(mean, std, noise, out, N: tl.constexpr, B: tl.constexpr):
    o_n = tl.arange(0, B)
    b_mean, b_std, b_noise = (
        tl.load(mean + o_n, mask=o_n < N, other=0.0),
        tl.load(std + o_n, mask=o_n < N, other=1.0),
        tl.load(noise + o_n, mask=o_n < N, other=0.5),
    )
    tl.store(out + o_n, truncated(b_mean, b_std, b_noise), mask=o_n < N)


def test_truncated_normals_agree_from_tail_to_tail():
    """By the rule of the parity matrix, at every pair of a mean and a deviation."""
    means = [-1.0, -(1 - 1e-7), -0.98, -0.4, -1e-4, 0.0, 0.3, 0.9, 1.0]
    grid = torch.tensor(means), torch.tensor([1e-3, 0.1, 0.13, 0.4, 1.0, 2.1])
    mean, std = (x.flatten().to(DEVICE) for x in torch.meshgrid(*grid, indexing="ij"))
    out, size = torch.empty_like(mean), triton.next_power_of_2(len(mean))
    for eps in (0.0, 2**-24, 1e-4, 0.02, 0.3, 0.5, 0.5 + 1e-6, 0.9, 0.999, 1 - 2**-24):
        noise = torch.full_like(mean, eps)
        out.fill_(torch.nan)
        _truncated_kernel[(1,)](mean, std, noise, out, N=len(mean), B=size)
        theirs = reference.trunc_normal_sample(mean, std, noise)
        true = reference.trunc_normal_sample(mean.double(), std.double(), noise.double())
        allowed = 2 * error(theirs, true) + FLOOR[torch.float32] * (1 + true.abs())
        assert ((out - true).abs() <= allowed).all(), (eps, error(out, true), error(theirs, true))
