"""summarize: one launch for the numbers of all tensors, a program a number; one more for their gradients.

Floor: every tensor is read once, twice for its standard deviation. What is summed up is small, so that the launch
itself takes longest: PyTorch would make one and more for each number.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Kind
from fastdream.ops.reference.layers import upcast
from fastdream.ops.reference.summary import KINDS, check_kinds
from fastdream.ops.triton.library import check_floats, launch, register, register_once_differentiable

BLOCK = 4096  # elements at a time


@triton.jit
def picked(tensors, sizes, i):
    """Tensor i and its size."""
    p_x, n = tensors[0], sizes[0]
    for j in tl.static_range(1, len(tensors)):
        if i == j:
            p_x, n = tensors[j], sizes[j]
    return p_x, n


@triton.jit
def summarize_kernel(
    tensors,  # a tuple
    sizes,  # of each
    kinds,  # of each, a position in KINDS
    y,  # [tensors]
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    p_x, n = picked(tensors, sizes, i)
    _, kind = picked(tensors, kinds, i)
    o_b = tl.arange(0, BLOCK)
    b_sum, b_size = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    b_large, b_nan = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    b_min, b_max = tl.full([BLOCK], float("inf"), tl.float32), tl.full([BLOCK], float("-inf"), tl.float32)
    for i_b in range(0, n, BLOCK):
        m_x = i_b + o_b < n
        b_x = tl.load(p_x + i_b + o_b, mask=m_x, other=0.0)
        b_sum += b_x
        b_size += tl.abs(b_x)
        b_large += tl.where(tl.abs(b_x) >= 1, 1.0, 0.0)
        b_nan += tl.where(b_x == b_x, 0.0, 1.0)
        b_min = tl.minimum(b_min, tl.where(m_x, b_x, float("inf")))
        b_max = tl.maximum(b_max, tl.where(m_x, b_x, float("-inf")))
    mean = tl.sum(b_sum) / n
    number = mean
    if kind == 1:
        b_sum = tl.zeros([BLOCK], tl.float32)
        for i_b in range(0, n, BLOCK):
            m_x = i_b + o_b < n
            b_x = tl.load(p_x + i_b + o_b, mask=m_x, other=0.0) - mean
            b_sum += tl.where(m_x, b_x * b_x, 0.0)
        number = tl.sqrt_rn(tl.sum(b_sum) / n)
    if kind == 2 or kind == 3:
        number = tl.where(kind == 2, tl.min(b_min), tl.max(b_max))
        number = tl.where(tl.sum(b_nan) > 0, float("nan"), number)
    if kind == 4:
        number = tl.sum(b_size) / n
    if kind == 5:
        number = tl.sum(b_large) / n
    tl.store(y + i, number)


@triton.jit
def spread_kernel(
    grad,  # [N]
    places,  # a tuple of N: in grad
    tensors,  # a tuple of as many
    sizes,  # of each
    BLOCK: tl.constexpr,
):
    """Fill each tensor with what a mean gives each of its elements."""
    i, i_b = tl.program_id(0), tl.program_id(1) * BLOCK
    p_x, n = picked(tensors, sizes, i)
    _, place = picked(tensors, places, i)
    o_b = i_b + tl.arange(0, BLOCK)
    b_g = tl.full([BLOCK], 1.0, tl.float32) * (tl.load(grad + place) / n)
    tl.store(p_x + o_b, b_g, mask=o_b < n)


def summarize(tensors: Sequence[Tensor], kinds: Sequence[Kind]) -> Tensor:
    """As `fastdream.ops.reference.summarize`, float32; half precision is widened first. Differentiable once."""
    check_kinds(tensors, kinds)
    given = [upcast(x if kind == "mean" else x.detach()) for x, kind in zip(tensors, kinds, strict=True)]
    return torch.ops.fastdream.triton_summarize(given, [KINDS.index(kind) for kind in kinds])


def _fake(tensors: Sequence[Tensor], kinds: Sequence[int]) -> Tensor:
    check_floats("summarize", **{f"tensor {i}": x for i, x in enumerate(tensors)})
    for i, x in enumerate(tensors):
        if x.dtype != torch.float32:
            raise ValueError(f"summarize: tensor {i} is {x.dtype}, expected torch.float32")
    return tensors[0].new_empty(len(tensors))


def _forward(tensors: Sequence[Tensor], kinds: Sequence[int]) -> Tensor:
    y = _fake(tensors, kinds)
    given, sizes = tuple(x.contiguous() for x in tensors), tuple(x.numel() for x in tensors)
    launch(summarize_kernel, (len(given),), given, sizes, tuple(kinds), y, BLOCK=BLOCK, num_warps=16)
    return y


def _backward_fake(grad: Tensor, places: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """grad [N]; places in it, and sizes of what means were made of there."""
    return [grad.new_empty(n) for n in sizes]


def _backward(grad: Tensor, places: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    tensors = _backward_fake(grad, places, sizes)
    grid = len(tensors), triton.cdiv(max(sizes, default=0), BLOCK)
    if tensors:
        args = grad.contiguous(), tuple(places), tuple(tensors), tuple(sizes)
        launch(spread_kernel, grid, *args, BLOCK=BLOCK, num_warps=4)
    return tensors


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.kinds = inputs
    ctx.shapes = [x.shape for x in tensors]


def _gradient(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None], None]:
    wanted = [i for i, want in enumerate(ctx.needs_input_grad[0]) if want]
    means = [i for i in wanted if ctx.kinds[i] == KINDS.index("mean")]
    sizes = [ctx.shapes[i].numel() for i in means]
    found = dict(zip(means, torch.ops.fastdream.triton_summarize_backward(grad, means, sizes), strict=True))
    return [found[i].view(shape) if i in found else None for i, shape in enumerate(ctx.shapes)], None


register_once_differentiable(
    register("summarize(Tensor[] tensors, int[] kinds) -> Tensor", _forward, _fake),
    register(
        "summarize_backward(Tensor grad, int[] places, int[] sizes) -> Tensor[]", _backward, _backward_fake
    ),
    _gradient,
    _save,
    "summarize",
)
