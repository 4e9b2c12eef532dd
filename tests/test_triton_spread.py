"""Triton's convolution to images of twice the size: at edges, in which memory, and in how many launches."""

import pytest
import torch

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import library, spread
from fastdream.ops.triton.phases import Phases

from .ops_tools import Maker
from .parity_cases import Case
from .parity_tools import changed, check
from .test_triton import DEVICE, HALF
from .test_triton_images import Calls

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
# Images, height, width, in, out, kernel, and pixels of a place in half precision: a single pixel, whole vectors and
# ragged ones, lines that no tile ends with, kernels that reach beyond the places next to one.
CONVS = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 4, 2, 3, 3, 4),
    (2, 4, 6, 3, 3, 3, 2),
    (2, 3, 12, 5, 1, 7, 4),
    (1, 5, 8, 4, 4, 11, 4),
    (2, 4, 4, 3, 2, 1, 4),
    (2, 3, 7, 2, 3, 3, 1),
    (3, 2, 8, 5, 5, 3, 1),
    (2, 5, 12, 3, 3, 2, 1),
    (2, 3, 5, 4, 9, 4, 1),
]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, norm: str, act: str) -> tuple:
    """Of conv_spread; parameters in float32. In half precision no pixel of nearly equal colours decides on errors."""
    eps = 1e-3 if dtype == torch.float32 else 0.1
    make, (batch, height, width, inp, out, kernel) = Maker(0, torch.float32), shape
    weight = make.normal(4, out, inp, kernel, kernel, scale=kernel**-1 * inp**-0.5)
    x, bias = make.normal(batch, height, width, inp), make.normal(out)
    scale, shift = (None, None) if norm == "none" else (make.normal(out), make.normal(out))
    args = x.detach().to(dtype).requires_grad_(), weight, bias, scale, shift, norm, act, eps
    return changed(lambda x: x.to(DEVICE), args)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(("norm", "act"), [("none", "none"), ("none", "gelu"), ("layer", "silu")])
@pytest.mark.parametrize("shape", CONVS)
def test_images_of_any_size_agree_with_reference(
    shape: tuple[int, ...], norm: str, act: str, dtype: torch.dtype, poison: list[str]
):
    *shape, fold = shape
    args = arguments(shape, dtype, norm, act)
    assert Phases.of(*args[:2]).fold == (fold if dtype == HALF else 1)
    check(backend.conv_spread, "conv_spread", Case(tuple, True), args, dtype)


def test_images_need_no_gradient():
    x, *params = arguments((2, 3, 5, 4, 3, 3), torch.float32, "none", "none")
    weight, bias = params[:2]
    ours, theirs = (
        torch.autograd.grad(ops.conv_spread(x.detach(), *params).square().sum(), (weight, bias))
        for ops in (backend, reference)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (4, 4, 3), r"x has shape \[4, 4, 3\], expected \[B, H, W, in\]"),
        (1, (8, 3, 3, 3), r"weight has shape \[8, 3, 3, 3\], expected \[4, out, in, k, k\]"),
        (1, (3, 2, 3, 3, 3), r"weight has shape \[3, 2, 3, 3, 3\], expected \[4, 2, 3, 3, 3\]"),
        (1, (4, 4097, 3, 1, 1), r"with out from 1 to 4096"),
        (2, (8,), r"bias has shape \[8\], expected \[2\]"),
        (3, (3,), r"scale has shape \[3\], expected \[2\]"),
    ],
)
def test_bad_input_is_named(index: int, shape: tuple[int, ...], message: str):
    args = list(arguments((2, 4, 4, 3, 2, 3), torch.float32, "layer", "silu"))
    args[index] = torch.zeros(shape, device=DEVICE)
    if shape[1:2] == (4097,):
        args[2] = torch.zeros(4097, device=DEVICE)
    with pytest.raises(ValueError, match=f"conv_spread: .*{message}"):
        backend.conv_spread(*args)


@torch.no_grad()
@pytest.mark.parametrize(("out", "norm"), [(3, "none"), (16, "rms")])
def test_one_launch_after_the_convolution_and_one_before_its_gradient(
    out: int, norm: str, monkeypatch: pytest.MonkeyPatch
):
    """Nothing else makes, fills up, copies or sums an image; RGB is 48 channels for cuDNN."""
    kernels: list[str] = []
    monkeypatch.setattr(library, "run", lambda kernel, *_: kernels.append(kernel.fn.__name__))
    args = arguments((40, 16, 16, 32, out, 3), HALF, norm, "none")
    with Calls(40 * 16 * 16 * 12) as forward:
        y, z, filters = spread._forward(*args)
    name = "spread_act" if norm == "none" else "spread_norm_act"
    assert kernels == [f"{name}_fwd_kernel"]
    assert forward.names == ["aten::convolution"]
    assert z.shape[-1] == 4 * out and filters.shape == ((48, 3, 3, 128) if out == 3 else (64, 3, 3, 32))
    kernels.clear()
    with Calls(40 * 16 * 16 * 12) as backward:
        spread._backward(*args, None if norm == "none" else z, filters, y, True)
    assert kernels == [f"{name}_bwd_kernel", "add_rows_kernel"]
    assert backward.names == ["aten::convolution_backward"]


def test_filters_may_lie_anywhere_in_memory():
    x, weight, *_ = arguments((2, 3, 4, 2, 3, 3), HALF, "none", "none")
    phases = Phases.of(x, weight)
    filters = phases.filters(weight, x)
    moved = torch.cat([filters.new_ones(7), filters.flatten()])[7:].view(filters.shape)
    assert torch.equal(phases._places(moved), phases._places(filters))
