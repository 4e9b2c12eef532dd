"""Triton's loss of images: of several blocks each, of any targets, of one launch each way."""

import pytest
import torch
from torch import Tensor

from fastdream.ops import triton as backend
from fastdream.ops.triton import pixels

from .launch_tools import Launches
from .ops_tools import Maker
from .parity_cases import Case
from .parity_tools import changed, check
from .test_triton import DEVICE, HALF

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def arguments(*shape: int) -> tuple[Tensor, Tensor]:
    make = Maker(0, torch.float32)
    args = make.normal(*shape, scale=3.0), make.index(*shape, high=256).to(torch.uint8)
    return changed(lambda x: x.to(DEVICE), args)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("numbers", [pixels.BLOCK, pixels.BLOCK + 2, 2 * pixels.BLOCK + 10])
def test_large_images_agree_with_reference(numbers: int, dtype: torch.dtype, poison: list[str]):
    x, target = arguments(3, 2, numbers // 2, 1)
    x = x.detach().to(dtype).requires_grad_()
    check(backend.image_loss, "image_loss", Case(tuple, True), (x, target), dtype)


def test_parts_of_an_image_and_a_single_one():
    x, target = arguments(4, 6, 5)
    for part in (slice(0, 3), slice(3, 5)):
        args = x[..., part].detach().requires_grad_(), target[..., part]
        check(backend.image_loss, "image_loss", Case(tuple, True), args, torch.float32)


def sequences(batch: int, length: int, context: int) -> tuple[Tensor, Tensor]:
    """Targets that lie behind so many images of context in each sequence."""
    x, whole = arguments(batch, context + length, 4, 6, 3)
    return x.detach()[:, :length].contiguous().requires_grad_(), whole[:, context:]


@pytest.mark.parametrize(("batch", "length"), [(2, 3), (3, 1), (1, 4), (0, 2), (2, 0)])
def test_targets_may_be_parts_of_sequences(batch: int, length: int):
    check(backend.image_loss, "image_loss", Case(tuple, True), sequences(batch, length, 2), torch.float32)


@pytest.mark.parametrize("args", [arguments(2, 4, 6, 3), sequences(2, 3, 1)], ids=["images", "sequences"])
def test_one_launch_each_way(args: tuple[Tensor, Tensor]):
    x, target = args[0].detach(), args[1]
    with Launches() as found:
        grad = pixels._forward(x, target)
        pixels._backward(grad, x, target)
    assert found.names == {"image_loss_fwd_kernel": 1, "image_loss_bwd_kernel": 1}


def test_bad_input_is_named():
    x, target = changed(Tensor.detach, arguments(2, 4, 6, 3))
    with pytest.raises(ValueError, match=r"image_loss: x has shape \[6, 3\], expected \[..., H, W, C\]"):
        backend.image_loss(x[0, 0], target[0, 0])
    with pytest.raises(
        ValueError, match=r"image_loss: target has shape \[4, 6, 3\], expected \[2, 4, 6, 3\]"
    ):
        backend.image_loss(x, target[0])
    with pytest.raises(ValueError, match=r"an image is torch.float32 .*, expected torch.uint8"):
        backend.image_loss(x, target / 255)
