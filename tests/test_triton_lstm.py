"""The LSTM over sequences in Triton beyond the parity matrix: gradients of some outputs alone, launches, refusals."""

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import library

from .ops_tools import Maker

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D, T = 21, 3


def inputs(m: Maker, n: int) -> list[Tensor]:
    """entered, weight, restart, hidden, cell."""
    shapes = (n, T, 4 * D), (4 * D, D), (n, D), (n, D)
    entered, weight, hidden, cell = (m.normal(*shape, scale=0.5).detach().to(DEVICE) for shape in shapes)
    floats = [x.requires_grad_() for x in (entered, weight, hidden, cell)]
    return [*floats[:2], (m.uniform(n, T) < 0.3).to(DEVICE), *floats[2:]]


@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)])
def test_gradients_of_some_outputs(outputs: tuple[int, ...], poison: list[str]):
    """A batch whose last cell nobody looks at, or which is looked at alone."""
    args = inputs(Maker(1, torch.float32), 5)
    leaves = [x for x in args if x.requires_grad]
    found = []
    for function in (backend.lstm_scan, reference.lstm_scan):
        results = function(*args)
        loss = torch.stack([(results[i] * torch.arange(D, device=DEVICE)).sum() for i in outputs]).sum()
        found.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert poison


def test_a_restart_forgets():
    """Not even what is no number gets over it."""
    entered, weight, _, hidden, cell = (x.detach() for x in inputs(Maker(2, torch.float32), 4))
    restart = torch.tensor([[True, False, True]] * 4, device=DEVICE)
    lost = backend.lstm_scan(entered, weight, restart, hidden * torch.nan, cell * torch.nan)
    fresh = reference.lstm_scan(entered, weight, restart, 0 * hidden, 0 * cell)
    for ours, theirs in zip(lost, fresh, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_step_is_a_launch(monkeypatch: pytest.MonkeyPatch):
    found: list[str] = []
    monkeypatch.setattr(library, "run", lambda kernel, *_: found.append(kernel.fn.__name__))
    hidden, _ = backend.lstm_scan(*inputs(Maker(3, torch.float32), 4))
    hidden.sum().backward()
    assert found == ["lstm_scan_fwd_kernel"] * T + ["lstm_scan_bwd_kernel"] * T


@pytest.mark.parametrize(
    "position, shape, message",
    [
        (0, (3, 0, 4 * D), r"entered has shape \[3, 0, 84\], expected \[rows, steps, 4 \* units\]"),
        (1, (4 * D, D + 1), r"weight has shape \[84, 22\], expected \[84, 21\]"),
        (2, (3, T + 1), r"restart has shape \[3, 4\], expected \[3, 3\]"),
        (4, (3, D + 1), r"cell has shape \[3, 22\], expected \[3, 21\]"),
    ],
)
def test_names_wrong_shapes(position: int, shape: tuple[int, ...], message: str):
    args = inputs(Maker(4, torch.float32), 3)
    args[position] = torch.zeros(shape, dtype=args[position].dtype, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        backend.lstm_scan(*args)
