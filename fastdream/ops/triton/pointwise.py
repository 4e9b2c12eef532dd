"""symlog and symexp, number by number."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    empty_like,
    launch,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import exp, expm1, log1p

BLOCK = 1024


@triton.jit
def symlog_of(x):
    y = log1p(tl.abs(x))
    return tl.where(x < 0, -y, y)


@triton.jit
def symexp_of(x):
    y = expm1(tl.abs(x))
    return tl.where(x < 0, -y, y)


@triton.jit(do_not_specialize=["N"])
def pointwise_fwd_kernel(x, y, N, SYMLOG: tl.constexpr, BN: tl.constexpr):
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    b_x = tl.load(x + o_n, mask=o_n < N, other=0.0).to(tl.float32)
    b_y = symlog_of(b_x) if SYMLOG else symexp_of(b_x)
    tl.store(y + o_n, b_y.to(y.dtype.element_ty), mask=o_n < N)


@triton.jit(do_not_specialize=["N"])
def pointwise_bwd_kernel(x, grad, d_x, N, SYMLOG: tl.constexpr, BN: tl.constexpr):
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    b_x = tl.abs(tl.load(x + o_n, mask=o_n < N, other=0.0).to(tl.float32))
    b_g = tl.load(grad + o_n, mask=o_n < N, other=0.0).to(tl.float32)
    b_g = b_g / (1 + b_x) if SYMLOG else b_g * exp(b_x)
    tl.store(d_x + o_n, b_g.to(d_x.dtype.element_ty), mask=o_n < N)


def symlog(x: Tensor) -> Tensor:
    """As `fastdream.ops.reference.symlog`, x float32 or half precision, of any shape. Differentiable once."""
    return torch.ops.fastdream.triton_symlog(x)


def symexp(x: Tensor) -> Tensor:
    """As `fastdream.ops.reference.symexp`, x float32 or half precision, of any shape. Differentiable once."""
    return torch.ops.fastdream.triton_symexp(x)


def _run(kernel: Any, op: str, x: Tensor, *others: Tensor) -> None:
    grid = (triton.cdiv(x.numel(), BLOCK),)
    launch(kernel, grid, x, *others, x.numel(), SYMLOG=op == "symlog", BN=BLOCK, num_warps=4)


def _register(op: str) -> None:
    """Both ops of that name."""

    def fake(x: Tensor) -> Tensor:
        check_floats(op, x=x)
        return empty_like(x)

    def forward(x: Tensor) -> Tensor:
        y = fake(x)
        _run(pointwise_fwd_kernel, op, x.contiguous(), y)
        return y

    def backward_fake(grad: Tensor, x: Tensor) -> Tensor:
        check_floats(f"{op}_backward", x=x, grad=grad)
        check_shape(f"{op}_backward", "grad", grad, *x.shape)
        return empty_like(x)

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        d_x = backward_fake(grad, x)
        _run(pointwise_bwd_kernel, op, x.contiguous(), grad.contiguous(), d_x)
        return d_x

    ops = (
        register(f"{op}(Tensor x) -> Tensor", forward, fake),
        register(f"{op}_backward(Tensor grad, Tensor x) -> Tensor", backward, backward_fake),
    )
    register_gradient(*ops, lambda inputs, output: inputs)


_register("symlog")
_register("symexp")
