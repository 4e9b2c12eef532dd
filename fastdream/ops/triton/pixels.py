"""The loss of images, in one pass over pixels and targets, and its gradient in another. Nothing else is kept.

Targets are sequences out of longer ones, as batches with their context are: `per` images of a sequence are s_image
apart, and sequences s_sequence. These and N are multiples of 16 where loads are to be of 16 bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.reference.images import check_stored
from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    empty_like,
    launch,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import sigmoid

BLOCK = 4096  # numbers of an image that a program has at a time
WARPS = 8


def image_loss(x: Tensor, target: Tensor) -> Tensor:
    """As `fastdream.ops.reference.image_loss`, x float32 or half precision. Differentiable once."""
    return torch.ops.fastdream.triton_image_loss(x, target)


@triton.jit
def image_loss_fwd_kernel(
    x,  # [M, N], an image a row
    target,  # M images of N
    loss,  # [M]
    N,
    per,
    s_sequence,
    s_image,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    p_t = target + i_m // per * s_sequence + i_m % per * s_image
    o_n = tl.arange(0, BN)
    b_loss = tl.zeros([BN], tl.float32)
    for i_n in range(0, N, BN):
        m_n = o_n < N - i_n
        b_x = tl.load(x + i_m * N + i_n + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_t = tl.load(p_t + i_n + o_n, mask=m_n, other=0).to(tl.float32)
        b_d = tl.where(m_n, sigmoid(b_x) - b_t * (1 / 255), 0.0)
        b_loss += b_d * b_d
    tl.store(loss + i_m, tl.sum(b_loss, 0))


@triton.jit
def image_loss_bwd_kernel(
    x,  # [M, N]
    target,  # M images of N
    grad,  # [M]
    d_x,  # [M, N]
    N,
    per,
    s_sequence,
    s_image,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    p_t = target + i_m // per * s_sequence + i_m % per * s_image
    i_n = tl.program_id(1) * BN
    o_n = tl.arange(0, BN)
    m_n = o_n < N - i_n
    b_grad = tl.load(grad + i_m).to(tl.float32)
    b_y = sigmoid(tl.load(x + i_m * N + i_n + o_n, mask=m_n, other=0.0).to(tl.float32))
    b_t = tl.load(p_t + i_n + o_n, mask=m_n, other=0).to(tl.float32)
    b_dx = 2 * b_grad * (b_y - b_t * (1 / 255)) * (b_y * (1 - b_y))
    tl.store(d_x + i_m * N + i_n + o_n, b_dx.to(d_x.dtype.element_ty), mask=m_n)


def _fake(x: Tensor, target: Tensor) -> Tensor:
    check_floats("image_loss", x=x)
    if x.dim() < 3:
        raise ValueError(f"image_loss: x has shape {list(x.shape)}, expected [..., H, W, C]")
    check_shape("image_loss", "target", target, *x.shape)
    check_stored(target)
    return x.new_empty(x.shape[:-3], dtype=torch.float32)


def _placed(target: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The target with its images in one piece each, and how many are a sequence, how far those and images lie apart."""
    if target.dim() == 5 and target.numel() and target[0, 0].is_contiguous():
        return target, (target.shape[1], target.stride(0), target.stride(1))
    return target.contiguous(), (1, target.shape[-3:].numel(), 0)


def _forward(x: Tensor, target: Tensor) -> Tensor:
    loss, (target, places) = _fake(x, target), _placed(target)
    numbers = x.shape[-3:].numel(), *places
    tensors = x.contiguous(), target, loss
    launch(image_loss_fwd_kernel, (loss.numel(),), *tensors, *numbers, BN=BLOCK, num_warps=WARPS)
    return loss


def _backward_fake(grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
    loss = _fake(x, target)
    check_floats("image_loss_backward", x=x, grad=grad)
    check_shape("image_loss_backward", "grad", grad, *loss.shape)
    return empty_like(x)


def _backward(grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
    d_x, numbers, (target, places) = _backward_fake(grad, x, target), x.shape[-3:].numel(), _placed(target)
    grid = grad.numel(), triton.cdiv(numbers, BLOCK)
    tensors = x.contiguous(), target, grad.contiguous(), d_x
    launch(image_loss_bwd_kernel, grid, *tensors, numbers, *places, BN=BLOCK, num_warps=WARPS)
    return d_x


register_gradient(
    register("image_loss(Tensor x, Tensor target) -> Tensor", _forward, _fake),
    register(
        "image_loss_backward(Tensor grad, Tensor x, Tensor target) -> Tensor", _backward, _backward_fake
    ),
    lambda inputs, output: inputs,
)
