"""Mean and standard deviation of bounded normals, of both raw outputs in one pass, and their gradients in another."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    launch,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.padding import as_rows, empty_rows

BLOCK = 512

Pair = tuple[Tensor, Tensor]


@triton.jit(do_not_specialize=["M", "N"])
def bounded_normal_fwd_kernel(
    mean_raw,  # [M, N], rows s_mean apart
    std_raw,  # [M, N], rows s_std apart
    mean,  # [M, N]
    std,
    low,
    spread,
    M,
    N,
    s_mean,
    s_std,
    BN: tl.constexpr,
):
    i_x = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i_m, i_n, m_x = i_x // N, i_x % N, i_x < M * N
    b_mean = tl.load(mean_raw + i_m * s_mean + i_n, mask=m_x, other=0.0).to(tl.float32)
    b_std = tl.load(std_raw + i_m * s_std + i_n, mask=m_x, other=0.0).to(tl.float32)
    tl.store(mean + i_x, tanh(b_mean), mask=m_x)
    tl.store(std + i_x, spread * tl.sigmoid(b_std + 2) + low, mask=m_x)


@triton.jit(do_not_specialize=["M", "N"])
def bounded_normal_bwd_kernel(
    d_mean,  # [M, N], of the outputs
    d_std,
    mean_raw,  # [M, N], rows s_mean apart
    std_raw,  # [M, N], rows s_std apart
    d_mean_raw,  # [M, N], rows s_d apart
    d_std_raw,
    spread,
    M,
    N,
    s_mean,
    s_std,
    s_d,
    BN: tl.constexpr,
):
    i_x = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i_m, i_n, m_x = i_x // N, i_x % N, i_x < M * N
    b_mean = tanh(tl.load(mean_raw + i_m * s_mean + i_n, mask=m_x, other=0.0).to(tl.float32))
    b_d = tl.load(d_mean + i_x, mask=m_x, other=0.0).to(tl.float32) * (1 - b_mean * b_mean)
    tl.store(d_mean_raw + i_m * s_d + i_n, b_d.to(d_mean_raw.dtype.element_ty), mask=m_x)
    b_s = tl.sigmoid(tl.load(std_raw + i_m * s_std + i_n, mask=m_x, other=0.0).to(tl.float32) + 2)
    b_d = tl.load(d_std + i_x, mask=m_x, other=0.0).to(tl.float32) * (spread * b_s * (1 - b_s))
    tl.store(d_std_raw + i_m * s_d + i_n, b_d.to(d_std_raw.dtype.element_ty), mask=m_x)


def bounded_normal(mean: Tensor, std: Tensor, min_std: float = 0.1, max_std: float = 1.0) -> Pair:
    """As `fastdream.ops.reference.bounded_normal`, float32 or half precision. Differentiable once."""
    return torch.ops.fastdream.triton_bounded_normal(mean, std, min_std, max_std)


def _fake(mean: Tensor, std: Tensor, min_std: float, max_std: float) -> Pair:
    check_floats("bounded_normal", mean=mean, std=std)
    if mean.dim() < 1:
        raise ValueError("bounded_normal: mean has shape [], expected [..., N]")
    check_shape("bounded_normal", "std", std, *mean.shape)
    return tuple(x.new_empty(x.shape, dtype=torch.float32) for x in (mean, std))  # type: ignore[return-value]


def _forward(mean: Tensor, std: Tensor, min_std: float, max_std: float) -> Pair:
    outputs, inputs = _fake(mean, std, min_std, max_std), (as_rows(mean), as_rows(std))
    numbers = (min_std, max_std - min_std, *inputs[0].shape, *(x.stride(0) for x in inputs))
    grid = (triton.cdiv(mean.numel(), BLOCK),)
    launch(bounded_normal_fwd_kernel, grid, *inputs, *outputs, *numbers, BN=BLOCK, num_warps=4)
    return outputs


def _backward_fake(
    d_mean: Tensor, d_std: Tensor, mean: Tensor, std: Tensor, min_std: float, max_std: float
) -> Pair:
    op = "bounded_normal_backward"
    check_floats(op, mean=mean, std=std, d_mean=d_mean, d_std=d_std)
    for name, x in {"std": std, "d_mean": d_mean, "d_std": d_std}.items():
        check_shape(op, name, x, *mean.shape)
    return empty_rows(mean, *mean.shape), empty_rows(std, *std.shape)


def _backward(
    d_mean: Tensor, d_std: Tensor, mean: Tensor, std: Tensor, min_std: float, max_std: float
) -> Pair:
    gradients = _backward_fake(d_mean, d_std, mean, std, min_std, max_std)
    inputs = d_mean.contiguous(), d_std.contiguous(), as_rows(mean), as_rows(std)
    shape, apart = inputs[2].shape, as_rows(gradients[0]).stride(0)
    numbers = max_std - min_std, *shape, *(x.stride(0) for x in inputs[2:]), apart
    grid = (triton.cdiv(mean.numel(), BLOCK),)
    launch(bounded_normal_bwd_kernel, grid, *inputs, *gradients, *numbers, BN=BLOCK, num_warps=4)
    return gradients


_GIVEN = "Tensor mean, Tensor std, float min_std, float max_std"
register_gradient(
    register(f"bounded_normal({_GIVEN}) -> (Tensor, Tensor)", _forward, _fake),
    register(
        f"bounded_normal_backward(Tensor d_mean, Tensor d_std, {_GIVEN}) -> (Tensor, Tensor)",
        _backward,
        _backward_fake,
    ),
    lambda inputs, output: inputs[:2],
    outputs=2,
)
