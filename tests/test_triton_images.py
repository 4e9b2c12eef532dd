"""Triton's pooled convolution where it folds images of few channels, at edges, and in how many launches."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import images, library
from fastdream.ops.triton.folding import Folding

from .ops_tools import Maker
from .parity_cases import Case
from .parity_tools import changed, check, strided
from .test_triton import DEVICE, HALF

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
# Images, height, width, in, out, kernel, and whether half precision folds them.
CONVS = [
    (2, 8, 6, 3, 5, 5, True),
    (3, 4, 4, 1, 17, 3, True),
    (1, 2, 2, 4, 3, 5, True),
    (2, 6, 4, 3, 6, 6, True),  # whose kernel reaches further after a pixel than before it
    (2, 4, 8, 1, 4, 4, True),
    (2, 4, 6, 1, 5, 7, True),
    (0, 4, 4, 3, 8, 5, True),
    (2, 7, 6, 3, 5, 5, False),
    (2, 6, 5, 3, 5, 5, False),
    (2, 4, 4, 9, 5, 5, True),
    (2, 4, 4, 12, 5, 5, False),
    (2, 6, 6, 16, 24, 5, False),
    (2, 4, 6, 3, 5, 1, False),
    (2, 4, 6, 5, 3, 2, False),
]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, norm: str = "layer") -> tuple:
    """Of conv_pool; parameters in float32."""
    make, (batch, height, width, inp, out, kernel) = Maker(0, torch.float32), shape
    weight = make.normal(out, inp, kernel, kernel, scale=kernel**-1 * inp**-0.5)
    x, bias = make.normal(batch, height, width, inp), make.normal(out)
    scale, shift = (None, None) if norm == "none" else (make.normal(out), make.normal(out))
    args = x.detach().to(dtype).requires_grad_(), weight, bias, scale, shift, norm, "silu", 1e-3
    return changed(lambda x: x.to(DEVICE), args)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("shape", CONVS)
def test_folded_images_agree_with_reference(shape: tuple[int, ...], dtype: torch.dtype, poison: list[str]):
    *shape, folded = shape
    args = arguments(shape, dtype)
    if dtype == HALF:
        assert Folding.of(*args[:2]).folded == folded
    for given in (args, changed(strided, args)):
        check(backend.conv_pool, "conv_pool", Case(tuple, True), given, dtype)


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("inp", [1, 8])
def test_first_of_equal_maxima_gets_the_gradient(inp: int, side: int):
    """As in black corners of an image: it decides where the gradient goes. A last odd row and column get none."""
    x = torch.zeros(1, side, side, inp, device=DEVICE)
    x[0, :4, :4, 0] = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 2], [3, 3, 5, 5], [3, 3, 5, 6]])
    weight = torch.zeros(20, inp, 3, 3, device=DEVICE)
    weight[:, 0, 1, 1] = torch.arange(1, 21)
    assert Folding.of(x, weight).folded == (inp == 1 and side == 4)
    found = []
    for ops in (reference, backend):
        leaf = x.clone().requires_grad_()
        y = ops.conv_pool(leaf, weight, torch.zeros(20, device=DEVICE), None, None, "none", "none")
        y.backward(torch.ones_like(y))
        found.append((y.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_not_a_number_shows():
    x = torch.randn(2, 4, 4, 3, device=DEVICE)
    x[0, 1, 2, 1] = torch.nan
    args = torch.randn(5, 3, 1, 1, device=DEVICE), torch.zeros(5, device=DEVICE), None, None, "none", "relu"
    ours, theirs = (ops.conv_pool(x, *args).isnan() for ops in (backend, reference))
    assert torch.equal(ours, theirs) and ours[0, 0, 1].all() and ours.sum() == 5


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (4, 4, 3), r"x has shape \[4, 4, 3\], expected \[B, H, W, in\]"),
        (1, (2, 3), r"weight has shape \[2, 3\], expected \[out, in, k, k\] with out from 1 to 16384"),
        (1, (2, 4, 3, 3), r"weight has shape \[2, 4, 3, 3\], expected \[2, 3, 3, 3\]"),
        (2, (3,), r"bias has shape \[3\], expected \[2\]"),
        (3, (3,), r"scale has shape \[3\], expected \[2\]"),
    ],
)
def test_bad_input_is_named(index: int, shape: tuple[int, ...], message: str):
    args = list(arguments((2, 4, 4, 3, 2, 3), torch.float32))
    args[index] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=f"conv_pool: {message}"):
        backend.conv_pool(*args)


class Calls(TorchDispatchMode):
    """Notes which calls of torch compute a tensor of so many elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.names = size, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]
        views = any(x._is_view() for x in made) or func.is_view
        if not views and "empty" not in func.__name__ and any(x.numel() >= self.size for x in made):
            self.names.append(func._schema.name)
        return out


@pytest.mark.parametrize("inp", [3, 8])
def test_one_launch_after_the_convolution_and_one_before_its_gradient(
    inp: int, monkeypatch: pytest.MonkeyPatch
):
    """Folding takes one more of each; nothing else makes, copies or sums an image."""
    kernels: list[str] = []
    monkeypatch.setattr(library, "run", lambda kernel, *_: kernels.append(kernel.fn.__name__))
    args = changed(Tensor.detach, arguments((150, 16, 16, inp, 32, 5), HALF, "rms"))
    fold = ["fold_kernel"] * (inp == 3)
    with Calls(150 * 8 * 8 * 12) as forward:
        y, *kept = images._forward(*args)
    assert kernels == [*fold, "pool_norm_act_fwd_kernel"]
    assert forward.names == ["aten::convolution"]
    kernels.clear()
    with Calls(150 * 8 * 8 * 12) as backward:
        images._backward(*args, *kept, y, inp == 8)
    assert kernels == ["pool_norm_act_bwd_kernel", *fold]
    assert backward.names == ["aten::convolution_backward"] * (inp == 8)  # else it makes none
