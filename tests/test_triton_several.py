"""Triton's programs that take several turns, as those of large batches do, and rows that lie apart."""

import pytest
import torch

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import images, layers, optim

from .ops_tools import Maker
from .test_triton import DEVICE, arguments, check_at

# What is masked out may be infinite, and its differences not a number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def test_returns_of_rows_that_lie_apart():
    """As of the later steps of longer ones, each of another length."""
    make = Maker(0, torch.float32)
    args = [make.normal(5, 7 + k).detach().sigmoid().to(DEVICE)[:, k:] for k in range(4)]
    torch.testing.assert_close(backend.lambda_return(*args), reference.lambda_return(*args))


@pytest.mark.parametrize(
    ("op", "name", "rows"), [("norm_act", "layer-silu", 70), ("conv_pool", "3-layer-silu", 9)]
)
def test_programs_that_have_several_tiles_add_them_up(
    op: str, name: str, rows: int, monkeypatch: pytest.MonkeyPatch
):
    """As of batches that are larger than any that is interpreted."""
    monkeypatch.setattr(layers, "PROGRAMS", 2)
    monkeypatch.setattr(images, "PROGRAMS", 2)
    check_at(op, name, arguments(op, name, "ragged", rows))


def test_norms_of_tensors_of_more_pieces_than_are_added_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optim, "PIECE", 16)
    monkeypatch.setattr(optim, "BLOCK", 16)
    states = []
    for module in (backend, reference):
        draw = torch.Generator().manual_seed(0)
        params, grads, mu, nu = ([torch.rand(300, generator=draw).to(DEVICE)] for _ in range(4))
        norms = module.laprop_(params, grads, nu, mu, torch.tensor(7, device=DEVICE), 1e-2, agc=0.1)
        states.append([*params, *norms])
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


def test_sums_of_more_than_a_program_reads_at_once():
    """Of elements, and of latent variables."""
    x, y = (torch.randn(9000, device=DEVICE).requires_grad_() for _ in range(2))
    found = []
    for module in (backend, reference):
        numbers = module.summarize([x, y.detach(), y], ["mean", "std", "mean"])
        found.append([numbers, *torch.autograd.grad((numbers * numbers).sum(), (x, y))])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    post, prior = (torch.randn(2, 300, 33, device=DEVICE) for _ in range(2))
    kls = [module.categorical_kl(post, prior, 0.01, 0.0) for module in (backend, reference)]
    torch.testing.assert_close(*kls, rtol=1e-5, atol=1e-4)
