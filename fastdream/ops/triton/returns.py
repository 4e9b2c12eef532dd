"""Lambda-returns: time is the last axis, so a tile of whole rows is read in one go and scanned within the program."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.reference.layers import upcast
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    empty_like,
    launch,
    register,
    register_gradient,
    rows_of,
)
from fastdream.ops.triton.padding import as_rows

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]

STEPS = 64  # of a tile at the most; longer rows take several, one after the other
ELEMENTS = 512  # of a tile


@triton.jit
def after(a, w, b_a, b_w):
    """x -> a + w * x, and then x -> b_a + b_w * x."""
    return b_a + b_w * a, b_w * w


@triton.jit(do_not_specialize=["M", "T"])
def lambda_return_fwd_kernel(
    reward,  # [M, T], like all; rows of what is read may lie apart, as of the later steps of longer rows
    live,
    mix,
    value,
    ret,
    M,
    T,
    s_reward,
    s_live,
    s_mix,
    s_value,
    BM: tl.constexpr,
    BT: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    m_m = i_m < M
    tiles = tl.cdiv(T, BT)

    b_next = tl.load(value + i_m * s_value + T - 1, mask=m_m, other=0.0)  # of the first step after the tile
    for i_t in range(tiles):
        o_t = (tiles - 1 - i_t) * BT + tl.arange(0, BT)[None, :]
        m_x = m_m & (o_t < T)
        b_live = tl.load(live + i_m * s_live + o_t, mask=m_x, other=1.0)
        b_mix = tl.load(mix + i_m * s_mix + o_t, mask=m_x, other=1.0)
        b_value = tl.load(value + i_m * s_value + o_t, mask=m_x, other=0.0)
        b_a = tl.load(reward + i_m * s_reward + o_t, mask=m_x, other=0.0) + b_live * (1 - b_mix) * b_value
        b_a, b_w = tl.associative_scan((b_a, b_live * b_mix), 1, after, reverse=True)
        b_ret = b_a + b_w * b_next
        tl.store(ret + i_m * T + o_t, b_ret, mask=m_x)
        b_next = tl.sum(tl.where(tl.arange(0, BT)[None, :] == 0, b_ret, 0.0), 1, keep_dims=True)


@triton.jit(do_not_specialize=["M", "T"])
def lambda_return_bwd_kernel(
    grad,  # [M, T], like all
    live,
    mix,
    value,
    ret,
    d_reward,
    d_live,
    d_mix,
    d_value,
    M,
    T,
    BM: tl.constexpr,
    BT: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = tl.arange(0, BM)[:, None]
    m_m = o_m < M - i_m
    i_x = i_m * T  # of the tile's first number, in 64 bits; within the tile 32 are enough

    b_past = tl.zeros([BM, 1], tl.float32)  # what flows on from the last step before the tile
    for i_t in range(tl.cdiv(T, BT)):
        o_t = i_t * BT + tl.arange(0, BT)[None, :]
        m_x = m_m & (o_t < T)
        m_last = o_t == T - 1
        o_x = o_m * T + o_t
        b_live = tl.load(live + i_x + o_x, mask=m_x, other=0.0)
        b_mix = tl.load(mix + i_x + o_x, mask=m_x, other=0.0)
        b_value = tl.load(value + i_x + o_x, mask=m_x, other=0.0)
        b_next = tl.load(ret + i_x + o_x + 1, mask=m_x & ~m_last, other=0.0)
        b_next = tl.where(m_last, b_value, b_next)
        # The weight of what comes from the step before; the tile's first has it in b_past.
        m_w = m_x & (tl.arange(0, BT)[None, :] > 0)
        b_w = tl.load(live + i_x + o_x - 1, mask=m_w, other=1.0) * tl.load(
            mix + i_x + o_x - 1, mask=m_w, other=1.0
        )
        b_g, b_w = tl.associative_scan((tl.load(grad + i_x + o_x, mask=m_x, other=0.0), b_w), 1, after)
        b_g += b_w * b_past

        b_scaled = b_g * b_live
        tl.store(d_reward + i_x + o_x, b_g, mask=m_x)
        tl.store(d_live + i_x + o_x, b_g * ((1 - b_mix) * b_value + b_mix * b_next), mask=m_x)
        tl.store(d_mix + i_x + o_x, b_scaled * (b_next - b_value), mask=m_x)
        tl.store(d_value + i_x + o_x, tl.where(m_last, b_scaled, b_scaled * (1 - b_mix)), mask=m_x)
        m_end = tl.arange(0, BT)[None, :] == BT - 1
        b_past = tl.sum(tl.where(m_end, b_scaled * b_mix, 0.0), 1, keep_dims=True)


def lambda_return(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    """As `fastdream.ops.reference.lambda_return`, for four tensors of one shape. Differentiable once.

    All [..., T], float32; half precision is widened to float32 first.
    """
    return torch.ops.fastdream.triton_lambda_return(upcast(reward), upcast(live), upcast(mix), upcast(value))


def _check(op: str, **inputs: Tensor) -> None:
    """Every input like the first one, float32."""
    check_floats(op, **inputs)
    name, first = next(iter(inputs.items()))
    if first.dim() < 1 or first.shape[-1] < 1:
        raise ValueError(f"{op}: {name} has shape {list(first.shape)}, expected [..., T] with T at least 1")
    for other, x in inputs.items():
        check_shape(op, other, x, *first.shape)


def _launch(kernel: Any, *tensors: Tensor, strides: Sequence[int] = ()) -> None:
    rows, steps = rows_of(tensors[0])
    cols = min(STEPS, power_of_two(steps))
    tile = ELEMENTS // cols
    launch(kernel, (triton.cdiv(rows, tile),), *tensors, rows, steps, *strides, BM=tile, BT=cols, num_warps=4)


def _forward_fake(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    _check("lambda_return", reward=reward, live=live, mix=mix, value=value)
    return empty_like(reward)


def _forward(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    ret = _forward_fake(reward, live, mix, value)
    inputs = [as_rows(x) for x in (reward, live, mix, value)]
    _launch(lambda_return_fwd_kernel, *inputs, ret, strides=[x.stride(0) for x in inputs])
    return ret


def _backward_fake(grad: Tensor, live: Tensor, mix: Tensor, value: Tensor, ret: Tensor) -> Gradients:
    _check("lambda_return_backward", grad=grad, live=live, mix=mix, value=value, ret=ret)
    return empty_like(grad), empty_like(live), empty_like(mix), empty_like(value)


def _backward(grad: Tensor, live: Tensor, mix: Tensor, value: Tensor, ret: Tensor) -> Gradients:
    gradients = _backward_fake(grad, live, mix, value, ret)
    _launch(lambda_return_bwd_kernel, *(x.contiguous() for x in (grad, live, mix, value, ret)), *gradients)
    return gradients


register_gradient(
    register(
        "lambda_return(Tensor reward, Tensor live, Tensor mix, Tensor value) -> Tensor",
        _forward,
        _forward_fake,
    ),
    register(
        "lambda_return_backward(Tensor grad, Tensor live, Tensor mix, Tensor value, Tensor ret)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
        _backward_fake,
    ),
    lambda inputs, output: (*inputs[1:], output),
)
