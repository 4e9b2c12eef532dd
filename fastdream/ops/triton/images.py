"""A convolution, by torch, then max-pool, norm and activation: one pass over what it gives, one over its gradient.

What is kept for the gradient is the maxima and their places: less than half of what the convolution gives.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Self

import torch
import triton
from torch import Tensor

from fastdream.ops.native.images import convolution_gradients, register_convolution
from fastdream.ops.native.params import ACTS, NORMS, code
from fastdream.ops.params import Act, Norm
from fastdream.ops.triton.config import WIDEST, Tile, row_tile
from fastdream.ops.triton.dense_kernels import add_rows
from fastdream.ops.triton.folding import Foldings
from fastdream.ops.triton.library import (
    FLOATS,
    capability,
    check_floats,
    check_shape,
    contiguous,
    launch_tiles,
    register,
)
from fastdream.ops.triton.pool_kernels import pool_norm_act_bwd_kernel, pool_norm_act_fwd_kernel
from fastdream.ops.triton.windows import Windows

PROGRAMS = 1024  # of the backward pass: each adds up its own pixels' gradients of bias, scale and shift

Optional = Tensor | None


def conv_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Optional,
    shift: Optional,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `fastdream.ops.reference.conv_pool`, x float32 or half precision, out at most 16384. Differentiable once.

    The bias is added in float32, after the pool.
    """
    code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    if norm == "none":
        scale = shift = None  # they belong to the norm
    return torch.ops.fastdream.triton_conv_pool(x, weight, bias, scale, shift, norm, act, eps, dtype)[0]


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Optional,
    shift: Optional,
    norm: str,
    act: str,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the maxima that it is the norm and activation of, without bias, their places, and the image in `Windows`."""
    _check_images(x, dtype)
    check_floats("conv_pool", weight=weight, bias=bias, scale=scale, shift=shift)
    if weight.dim() != 4 or not 0 < len(weight) <= WIDEST:
        raise ValueError(
            f"conv_pool: weight has shape {list(weight.shape)}, expected [out, in, k, k] with out from 1 to {WIDEST}"
        )
    (*batch, height, width, inp), (out, *_, kernel) = x.shape, weight.shape
    check_shape("conv_pool", "weight", weight, out, inp, kernel, kernel)
    for name, p in (("bias", bias), ("scale", scale), ("shift", shift)):
        if p is not None:
            check_shape("conv_pool", name, p, out)
    y = x.new_empty(prod(batch), height // 2, width // 2, out, dtype=dtype)
    windows = Windows.of(x.shape, weight, y.element_size())
    image = y.new_empty(windows.image if windows else 0)
    return y, torch.empty_like(y), torch.empty_like(y, dtype=torch.uint8), image


def _check_images(x: Tensor, dtype: torch.dtype | None) -> None:
    if dtype is None:
        check_floats("conv_pool", x=x)
        if x.dim() != 4:
            raise ValueError(f"conv_pool: x has shape {list(x.shape)}, expected [B, H, W, in]")
    elif x.dtype != torch.uint8 or x.dim() < 4 or dtype not in FLOATS:
        raise ValueError(
            f"conv_pool: x is {x.dtype} {list(x.shape)} to be computed with as {dtype}, expected torch.uint8 "
            f"[..., H, W, in] and one of {', '.join(map(str, FLOATS))}"
        )


class Pixels(NamedTuple):
    """Pixels that are left by the pool, of images of height x width before it, and how many a program has at a time."""

    number: int
    height: int
    width: int
    tile: Tile

    @classmethod
    def of(cls, x: Tensor, out: int, tensors: int) -> Self:
        *batch, height, width, _ = x.shape
        tile = row_tile(out, capability(x.device), tensors)
        return cls(prod(batch) * (height // 2) * (width // 2), height, width, tile)

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.number, self.tile.rows)


def _launch(
    kernel: Any, grid: int, tensors: Sequence[Optional], eps: float, pixels: Pixels, **options: Any
) -> None:
    args = *tensors, eps, pixels.number
    launch_tiles(kernel, (grid,), pixels.tile, *args, H=pixels.height, W=pixels.width, **options)


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, top, place, image = _fake(*inputs)
    x, weight, bias, scale, shift, norm, act, eps, _ = inputs
    weight, vectors = weight.contiguous(), contiguous(bias, scale, shift)
    if windows := Windows.of(x.shape, weight, image.element_size()):
        windows.surround(x, image)
        windows.forward(image, weight, (*vectors, y, top, place), eps=eps, NORM=norm, ACT=act)
        return y, top, place, image
    foldings = Foldings.of(x.shape, weight, image.element_size())
    convolved, pixels = foldings.forward(x, weight, image.dtype), Pixels.of(x, len(weight), tensors=2)
    options = {"N": len(weight), "NORM": norm, "ACT": act, "FOLDED": foldings.y.paired}
    tensors = convolved, *vectors, y, top, place
    _launch(pool_norm_act_fwd_kernel, pixels.tiles, tensors, eps, pixels, **options)
    return y, top, place, image


def _backward_fake(*given: Any) -> list[Tensor]:
    """Gradients as `register_convolution` wants them."""
    op, inputs, (*kept, grad, want_x) = "conv_pool_backward", given[:9], given[9:]
    y, *likes = _fake(*inputs)
    check_floats(op, top=kept[0], grad=grad)
    check_shape(op, "grad", grad, *y.shape)
    for name, x, like in zip(("top", "place", "image"), kept, likes, strict=True):
        check_shape(op, name, x, *like.shape)
    return convolution_gradients(inputs, want_x)


def _backward(*given: Any) -> list[Tensor]:
    _backward_fake(*given)
    x, weight, bias, scale, shift, norm, act, eps, _, top, place, image, grad, want_x = given
    (*batch, height, width, _), out, weight = x.shape, len(weight), weight.contiguous()
    kept = contiguous(top, place, bias, scale, shift, grad)
    windows = Windows.of(x.shape, weight, top.element_size())
    if windows and not want_x:
        d_weight, d_vectors = windows.backward(image, weight, kept, eps=eps, NORM=norm, ACT=act)
        sums = zip(d_vectors.split(out), (bias, scale, shift), strict=True)
        return [d_weight, *(d.to(p.dtype) for d, p in sums if p is not None)]
    foldings = Foldings.of(x.shape, weight, top.element_size())
    paired = foldings.weight.paired
    shape = (height // 2, width // 2, 4 * out) if paired else (height, width, out)
    new = top.new_zeros if height % 2 or width % 2 else top.new_empty  # a last odd row stays 0
    d_y, pixels = new(prod(batch), *shape), Pixels.of(x, out, tensors=4)
    programs = min(PROGRAMS, pixels.tiles)
    partial = top.new_empty(programs, 3 * out, dtype=torch.float32)
    tensors = *kept, d_y, partial
    options = {"N": out, "NORM": norm, "ACT": act, "FOLDED": paired}
    _launch(pool_norm_act_bwd_kernel, programs, tensors, eps, pixels, **options)
    sums = zip(add_rows(partial).split(out), (bias, scale, shift), strict=True)
    d_params = [d.to(p.dtype) for d, p in sums if p is not None]
    d_x = [foldings.d_x(weight, d_y)] if want_x else []
    return [foldings.d_weight(x, weight, d_y), *d_params, *d_x]


_INPUTS = (
    "Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, str norm, str act, float eps, "
    "ScalarType? dtype"
)
register_convolution(
    register(f"conv_pool({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _forward, _fake),
    register(
        f"conv_pool_backward({_INPUTS}, Tensor top, Tensor place, Tensor image, Tensor grad, bool want_x) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
)
