"""pool_norm_act and spread_norm_act: norm and activation of images that are halved before or doubled after."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.layers import ACTS, NORMS, code
from fastdream.ops.native.library import check_float, check_shape, register, register_once_differentiable, run
from fastdream.ops.params import Act, Norm

PADDED = 16  # kBytes in csrc/cpu/kernels/images.cpp

Optional = Tensor | None


def pool_norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.pool_norm_act`, all float32 or all float64. Differentiable once."""
    codes = code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    return torch.ops.fastdream.pool_norm_act(x, scale, shift, *codes, eps)[0]


def spread_norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.spread_norm_act`, all float32 or all float64. Differentiable once."""
    codes = code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    return torch.ops.fastdream.spread_norm_act(x, scale, shift, *codes, eps)


def _check(op: str, x: Tensor, scale: Optional, shift: Optional, parts: int = 1) -> tuple[int, ...]:
    """Images, height, width and normalized channels of x, a `parts`-th of all; ValueError if anything does not fit."""
    check_float(op, x=x, **{k: p for k, p in (("scale", scale), ("shift", shift)) if p is not None})
    if x.dim() != 4 or x.shape[-1] % parts:
        shape = f"[B, H, W, {'N' if parts == 1 else f'{parts} * N'}]"
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected {shape}")
    sizes = (*x.shape[:3], x.shape[3] // parts)
    for name, p in (("scale", scale), ("shift", shift)):
        if p is not None:
            check_shape(op, name, p, sizes[3])
    return sizes


def _padded(n: int) -> int:
    return -(-n // PADDED) * PADDED


def _contiguous(*tensors: Optional) -> list[Optional]:
    return [None if x is None else x.contiguous() for x in tensors]


def _gradients(x: Tensor, scale: Optional, shift: Optional) -> list[Tensor]:
    """Room for the gradient of x, and for those of scale and shift where they exist."""
    return [x, *(torch.empty_like(p) for p in (scale, shift) if p is not None)]


def _run_backward(
    name: str, inputs: Sequence[Optional], gradients: Sequence[Tensor], sizes: Sequence[int], eps: float
) -> None:
    scale, shift = inputs[1:3]
    each = iter(gradients[1:])
    outputs = gradients[0], *(None if p is None else next(each) for p in (scale, shift))
    run(name, (*_contiguous(*inputs), *outputs), sizes, (eps,))


def _pool_fake(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, n = _check("pool_norm_act", x, scale, shift)
    pixels = batch, height // 2, width // 2
    place = x.new_empty(*pixels, _padded(n), dtype=torch.uint8)
    return x.new_empty(*pixels, n), x.new_empty(*pixels, n), place


def _pool(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _pool_fake(x, scale, shift, norm, act, eps)
    run("pool_norm_act", (*_contiguous(x, scale, shift), *outputs), (norm, act, *x.shape), (eps,))
    return outputs


def _pool_backward_fake(
    top: Tensor,
    scale: Optional,
    shift: Optional,
    norm: int,
    act: int,
    eps: float,
    place: Tensor,
    grad: Tensor,
    shape: Sequence[int],
) -> list[Tensor]:
    _check("pool_norm_act_backward", top, scale, shift)
    check_float("pool_norm_act_backward", top=top, grad=grad)
    pixels = shape[0], shape[1] // 2, shape[2] // 2
    check_shape("pool_norm_act_backward", "top", top, *pixels, shape[3])
    check_shape("pool_norm_act_backward", "grad", grad, *pixels, shape[3])
    check_shape("pool_norm_act_backward", "place", place, *pixels, _padded(shape[3]))
    # What the pool leaves out gets no gradient, and the kernel does not come there.
    odd = shape[1] % 2 or shape[2] % 2
    return _gradients(top.new_zeros(*shape) if odd else top.new_empty(*shape), scale, shift)


def _pool_backward(
    top: Tensor,
    scale: Optional,
    shift: Optional,
    norm: int,
    act: int,
    eps: float,
    place: Tensor,
    grad: Tensor,
    shape: Sequence[int],
) -> list[Tensor]:
    gradients = _pool_backward_fake(top, scale, shift, norm, act, eps, place, grad, shape)
    inputs = top, scale, shift, place, grad
    _run_backward("pool_norm_act_backward", inputs, gradients, (norm, act, *shape), eps)
    return gradients


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, shift, *ctx.statics = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(output[1], scale, shift, output[2])
    ctx.set_materialize_grads(False)  # those of what is kept never come


def _pool_gradient(ctx: Any, grad: Optional, *_: Optional) -> tuple[Optional, ...]:
    top, scale, shift, place = ctx.saved_tensors
    if grad is None:
        return (None,) * 6
    backward = torch.ops.fastdream.pool_norm_act_backward
    return _placed(backward(top, scale, shift, *ctx.statics, place, grad, ctx.shape), scale, shift)


def _placed(gradients: Sequence[Tensor], scale: Optional, shift: Optional) -> tuple[Optional, ...]:
    """Gradients of x, scale, shift, norm, act and eps."""
    each = iter(gradients)
    return next(each), *(None if p is None else next(each) for p in (scale, shift)), None, None, None


def _spread_fake(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    batch, height, width, n = _check("spread_norm_act", x, scale, shift, 4)
    return x.new_empty(batch, 2 * height, 2 * width, n)


def _spread(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    y = _spread_fake(x, scale, shift, norm, act, eps)
    sizes = norm, act, *x.shape[:3], y.shape[3]
    run("spread_norm_act", (*_contiguous(x, scale, shift), y), sizes, (eps,))
    return y


def _spread_backward_fake(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float, grad: Tensor
) -> list[Tensor]:
    batch, height, width, n = _check("spread_norm_act_backward", x, scale, shift, 4)
    check_float("spread_norm_act_backward", x=x, grad=grad)
    check_shape("spread_norm_act_backward", "grad", grad, batch, 2 * height, 2 * width, n)
    return _gradients(x.new_empty(x.shape), scale, shift)


def _spread_backward(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float, grad: Tensor
) -> list[Tensor]:
    gradients = _spread_backward_fake(x, scale, shift, norm, act, eps, grad)
    sizes = norm, act, *x.shape[:3], grad.shape[3]
    _run_backward("spread_norm_act_backward", (x, scale, shift, grad), gradients, sizes, eps)
    return gradients


def _save_spread(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, *ctx.statics = inputs
    ctx.save_for_backward(x, scale, shift)


def _spread_gradient(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
    x, scale, shift = ctx.saved_tensors
    backward = torch.ops.fastdream.spread_norm_act_backward
    return _placed(backward(x, scale, shift, *ctx.statics, grad), scale, shift)


_INPUTS = "Tensor {}, Tensor? scale, Tensor? shift, int norm, int act, float eps"
register_once_differentiable(
    register(f"pool_norm_act({_INPUTS.format('x')}) -> (Tensor, Tensor, Tensor)", _pool, _pool_fake),
    register(
        f"pool_norm_act_backward({_INPUTS.format('top')}, Tensor place, Tensor grad, int[] shape) -> Tensor[]",
        _pool_backward,
        _pool_backward_fake,
    ),
    _pool_gradient,
    _save_pool,
    "pool_norm_act",
)
register_once_differentiable(
    register(f"spread_norm_act({_INPUTS.format('x')}) -> Tensor", _spread, _spread_fake),
    register(
        f"spread_norm_act_backward({_INPUTS.format('x')}, Tensor grad) -> Tensor[]",
        _spread_backward,
        _spread_backward_fake,
    ),
    _spread_gradient,
    _save_spread,
    "spread_norm_act",
)
