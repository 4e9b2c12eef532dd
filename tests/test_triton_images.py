"""Triton's pooled convolution where it folds images of few channels, at edges, and in how many launches."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import images, library
from fastdream.ops.triton.folding import Folding, Foldings

from .ops_tools import Maker
from .parity_cases import Case
from .parity_tools import FLOOR, changed, check, error, results, strided
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
    (1, 4, 6, 8, 5, 5, False),  # with pairs of columns
    (1, 4, 6, 8, 65, 5, False),  # whose gradients alone are
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
        assert Foldings.of(args[0].shape, args[1], args[0].element_size()).y.paired == folded
    for given in (args, changed(strided, args)):
        check(backend.conv_pool, "conv_pool", Case(tuple, True), given, dtype)
    check(backend.conv_pool, "conv_pool", Case(tuple, True), (args[0].detach(), *args[1:]), dtype)


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("inp", [1, 8])
def test_first_of_equal_maxima_gets_the_gradient(inp: int, side: int):
    """As in black corners of an image: it decides where the gradient goes. A last odd row and column get none."""
    x = torch.zeros(1, side, side, inp, device=DEVICE)
    x[0, :4, :4, 0] = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 2], [3, 3, 5, 5], [3, 3, 5, 6]])
    weight = torch.zeros(20, inp, 3, 3, device=DEVICE)
    weight[:, 0, 1, 1] = torch.arange(1, 21)
    assert Foldings.of(x.shape, weight, x.element_size()).y.paired == (inp == 1 and side == 4)
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


@pytest.mark.parametrize(("inp", "dtype"), [(3, torch.float32), (3, HALF), (8, HALF)])
def test_nothing_else_makes_or_copies_or_sums_an_image(
    inp: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """One launch follows the convolution, one precedes its gradients; images of few channels take but one."""
    kernels: list[str] = []
    monkeypatch.setattr(library, "run", lambda kernel, *_: kernels.append(kernel.fn.__name__))
    args = changed(Tensor.detach, arguments((150, 16, 16, inp, 32, 5), dtype, "rms"))
    alone, fold = inp == 3 and dtype == HALF, ["fold_kernel"] * (inp == 3)
    with Calls(150 * 8 * 8 * 12) as forward:
        y, *kept = images._forward(*args, None)
    if alone:
        assert kernels == ["surround_kernel", "window_filters_kernel", "window_pool_fwd_kernel"]
    else:
        assert kernels == [*fold, "filters_kernel", "pool_norm_act_fwd_kernel"]
    assert forward.names == ["aten::convolution"] * (not alone)
    kernels.clear()
    with Calls(150 * 8 * 8 * 12) as backward:
        images._backward(*args, None, *kept, y, inp == 8)
    filters = ["filters_kernel"] * (inp == 8)
    if alone:
        assert kernels == ["window_pool_bwd_kernel", "add_rows_kernel", "window_d_weight_kernel"]
    else:
        assert kernels == ["pool_norm_act_bwd_kernel", "add_rows_kernel", *filters, *fold, "d_weight_kernel"]
    assert backward.names == ["aten::convolution_backward"] * (inp == 8)  # else it makes none


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((3, 2), (6, 4, 3, 5, 5)),
        ((5,), (5, 4, 1, 8, 3)),
        ((0, 2), (4, 4, 3, 4, 5)),
        ((2, 1), (16, 32, 3, 5, 5)),
        ((2,), (2, 256, 1, 3, 5)),
    ],
)
def test_stored_images_are_scaled_where_they_are_read(
    batch: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype, poison: list[str]
):
    """As float64 ones are, as closely as the reference does it; sequences may be cut off longer ones."""
    height, width, inp, *_ = shape
    stored = torch.randint(256, (*batch[:-1], batch[-1] + 1, height, width, inp)).to(DEVICE, torch.uint8)
    x, (_, *params) = stored.narrow(len(batch) - 1, 1, batch[-1]), arguments((1, *shape), torch.float32)

    def errors(op: Any, args: tuple, kind: torch.dtype) -> list[Tensor]:
        return [y.double() for y in results(partial(op, dtype=kind), (x, *args), True)]

    truth = errors(reference.conv_pool, changed(Tensor.double, tuple(params)), torch.float64)
    theirs, ours = (errors(ops.conv_pool, tuple(params), dtype) for ops in (reference, backend))
    for i, (our, their, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert our.shape == true.shape and our.isfinite().all()
        allowed = (2 if i == 0 else 3) * error(their, true)
        allowed += FLOOR[dtype] * (1 + float(true.abs().max())) if true.numel() else 0
        assert error(our, true) <= allowed, (i, error(our, true), error(their, true))


def test_only_stored_images_are_scaled():
    _, *params = arguments((1, 4, 4, 3, 2, 3), torch.float32)
    with pytest.raises(
        ValueError, match=r"conv_pool: x is torch.float32 \[1, 4, 4, 3\] to be computed with as"
    ):
        backend.conv_pool(torch.zeros(1, 4, 4, 3, device=DEVICE), *params, dtype=torch.float32)


# Images, height, width, in, out, kernel, rows and columns that make a place.
PLACES = [
    (2, 4, 6, 8, 12, 5, 1, 2),
    (2, 3, 8, 4, 5, 5, 1, 4),
    (1, 5, 4, 16, 8, 3, 1, 2),
    (2, 4, 4, 3, 6, 4, 1, 2),
    (1, 4, 6, 5, 7, 2, 1, 2),
    (2, 6, 4, 3, 5, 7, 2, 2),
    (1, 3, 3, 8, 8, 6, 1, 1),
]


@pytest.mark.parametrize("shape", PLACES)
def test_places_of_several_pixels_give_the_same_convolution(shape: tuple[int, ...], poison: list[str]):
    """And the same gradients."""
    batch, height, width, inp, out, kernel, rows, columns = shape
    x, weight, *_ = arguments(shape[:6], torch.float32)
    x, weight = x.detach(), weight.detach()
    grad = Maker(1, torch.float32).normal(batch, height, width, out).detach().to(DEVICE)
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    y = conv(*wide)
    d_x, d_weight = torch.autograd.grad(y, wide, grad.double())
    folding = Folding.of(inp, out, kernel, 4, rows, columns)
    image, paired = folding.image(x, x.dtype), folding.paired
    given = quarters(grad) if paired else grad
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5, check_dtype=False)
    close(folding.forward(image, weight), quarters(y) if paired else y)
    close(folding.d_weight(image, weight, given), d_weight)
    close(folding.d_x(weight, given), d_x)
    assert poison


def conv(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, H, W, in] -> [B, H, W, out]."""
    reach = weight.shape[-1] - 1
    x = F.pad(x.permute(0, 3, 1, 2), (reach // 2, reach - reach // 2) * 2)
    return F.conv2d(x, weight).permute(0, 2, 3, 1)


def quarters(x: Tensor) -> Tensor:
    """2x2 pixels of [B, H, W, C] as channels of one."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
