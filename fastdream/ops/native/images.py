"""conv_pool and conv_spread: norm and activation of images that are halved before or doubled after."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.library import check_float, check_shape, contiguous, empty_like, run
from fastdream.ops.native.params import ACTS, NORMS, code, with_gaps
from fastdream.ops.native.registry import call, named, register, register_once_differentiable
from fastdream.ops.params import Act, Norm
from fastdream.ops.reference.images import conv_same, pixels

PADDED = 16  # kPlaceBytes in csrc/cpu/kernels/conv_pool.cpp
# Bytes, for each thread, of convolved images that wait in the cache until they are pooled: they are several times as
# large as what comes in and goes out.
CHUNK = 4 * 2**20

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
    """As `fastdream.ops.reference.conv_pool`, all float32 or all float64. Differentiable once."""
    codes = code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    x = x if dtype is None else pixels(x, dtype)
    return call("conv_pool", x, weight, bias, scale, shift, *codes, eps)[0]


def spread_norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.spread_norm_act`, all float32 or all float64. Differentiable once."""
    codes = code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    return call("spread_norm_act", x, scale, shift, *codes, eps)


def conv_spread(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Optional,
    shift: Optional,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """As `fastdream.ops.reference.conv_spread`, all float32 or all float64. Differentiable once."""
    check_float("conv_spread", x=x, weight=weight, bias=bias)
    check_phases(x, weight, bias)
    y = conv_same(x.permute(0, 3, 1, 2), weight.flatten(0, 1), bias.repeat(4)).permute(0, 2, 3, 1)
    return spread_norm_act(y, scale, shift, norm, act, eps)


def check_phases(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """ValueError unless conv_spread can multiply these."""
    if x.dim() != 4:
        raise ValueError(f"conv_spread: x has shape {list(x.shape)}, expected [B, H, W, in]")
    if weight.dim() != 5:
        raise ValueError(f"conv_spread: weight has shape {list(weight.shape)}, expected [4, out, in, k, k]")
    out, kernel = weight.shape[1], weight.shape[-1]
    check_shape("conv_spread", "weight", weight, 4, out, x.shape[-1], kernel, kernel)
    check_shape("conv_spread", "bias", bias, out)


def register_convolution(
    forward: str,
    backward: str,
    kept: Callable[[tuple[Any, ...], Any], Sequence[Optional]] = lambda inputs, output: output[1:],
) -> None:
    """The gradient of an op of (x, weight, bias, scale, shift, *statics), whose first result alone has one.

    `backward(*inputs, *kept(inputs, output), grad, want_x)` gives those of weight and bias, then of scale and shift
    where they are there, and of x where it is wanted.
    """
    compute = partial(call, backward.partition("::")[2])

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5], *kept(inputs, output))
        ctx.statics = inputs[5:]
        ctx.set_materialize_grads(False)  # those of what is kept never come

    def gradient(ctx: Any, grad: Tensor, *_: Optional) -> tuple[Optional, ...]:
        saved = ctx.saved_tensors  # read once: checkpointing does not give them twice
        params, others = saved[:5], saved[5:]
        want_x = ctx.needs_input_grad[0]
        gradients = compute(*params, *ctx.statics, *others, grad, want_x)
        d_params = with_gaps(gradients, [p is not None for p in params[1:]])
        return gradients[-1] if want_x else None, *d_params, *[None] * len(ctx.statics)

    register_once_differentiable(forward, backward, gradient, setup, *named(forward))


def convolution_gradients(inputs: tuple[Any, ...], want_x: bool) -> list[Tensor]:
    """Fresh tensors for them, in that order."""
    x, weight, bias, scale, shift, *_ = inputs
    params = weight, bias, scale, shift, x if want_x else None
    return [empty_like(p) for p in params if p is not None]


def _check_affine(op: str, x: Tensor, n: int, scale: Optional, shift: Optional) -> None:
    for name, p in (("scale", scale), ("shift", shift)):
        if p is not None:
            check_float(op, x=x, **{name: p})
            check_shape(op, name, p, n)


def _conv_pool_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Optional,
    shift: Optional,
    norm: int,
    act: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the maxima that it is the norm and activation of, and their places."""
    check_float("conv_pool", x=x, weight=weight, bias=bias)
    if x.dim() != 4:
        raise ValueError(f"conv_pool: x has shape {list(x.shape)}, expected [B, H, W, in]")
    if weight.dim() != 4:
        raise ValueError(f"conv_pool: weight has shape {list(weight.shape)}, expected [out, in, k, k]")
    (batch, height, width, inp), (out, *_, kernel) = x.shape, weight.shape
    check_shape("conv_pool", "weight", weight, out, inp, kernel, kernel)
    check_shape("conv_pool", "bias", bias, out)
    _check_affine("conv_pool", x, out, scale, shift)
    pixels = batch, height // 2, width // 2
    # The kernel leaves what fills up the last vector as it is.
    new = x.new_zeros if out % PADDED else x.new_empty
    place = new(*pixels, -(-out // PADDED) * PADDED, dtype=torch.uint8)
    return x.new_empty(*pixels, out), x.new_empty(*pixels, out), place


def _conv_pool(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _conv_pool_fake(*inputs)
    x, weight, bias, scale, shift, norm, act, eps = inputs
    (batch, height, width, _), out = x.shape, len(weight)
    x, affine = x.contiguous().permute(0, 3, 1, 2), contiguous(scale, shift)
    chunk = max(1, CHUNK * torch.get_num_threads() // max(1, out * height * width * x.element_size()))
    for i in range(0, batch, chunk):
        y = conv_same(x[i : i + chunk], weight, bias).permute(0, 2, 3, 1).contiguous()
        tensors = y, *affine, *(output[i : i + chunk] for output in outputs)
        run("pool_norm_act", tensors, (norm, act, *y.shape), (eps,))
    return outputs


def _conv_pool_backward_fake(*given: Any) -> list[Tensor]:
    """Gradients as `register_convolution` wants them."""
    inputs, (top, place, grad, want_x) = given[:8], given[8:]
    op, (y, _, like) = "conv_pool_backward", _conv_pool_fake(*inputs)
    check_float(op, x=inputs[0], top=top, grad=grad)
    for name, tensor, expected in (("top", top, y), ("grad", grad, y), ("place", place, like)):
        check_shape(op, name, tensor, *expected.shape)
    return convolution_gradients(inputs, want_x)


def _conv_pool_backward(*given: Any) -> list[Tensor]:
    gradients = _conv_pool_backward_fake(*given)
    x, weight, _, scale, shift, norm, act, eps, top, place, grad, want_x = given
    out, inp, kernel, _ = weight.shape
    d_affine = with_gaps(gradients[2:], (scale is not None, shift is not None))
    d_top = torch.empty_like(top)
    tensors = *contiguous(top, scale, shift, grad), d_top, *d_affine
    run("norm_act_backward", tensors, (norm, act, top.numel() // max(1, out), out), (eps,))
    d_weight = weight.new_empty(out, kernel, kernel, inp)
    tensors = *contiguous(x, weight, place), d_top, gradients[-1] if want_x else None, d_weight, gradients[1]
    run("conv_pool_backward", tensors, (*x.shape, out, kernel))
    gradients[0].copy_(d_weight.permute(0, 3, 1, 2))
    return gradients


def _spread_norm_act_fake(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float
) -> Tensor:
    check_float("spread_norm_act", x=x)
    if x.dim() != 4 or x.shape[-1] % 4:
        raise ValueError(f"spread_norm_act: x has shape {list(x.shape)}, expected [B, H, W, 4 * N]")
    batch, height, width, channels = x.shape
    _check_affine("spread_norm_act", x, channels // 4, scale, shift)
    return x.new_empty(batch, 2 * height, 2 * width, channels // 4)


def _spread_norm_act(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    y = _spread_norm_act_fake(x, scale, shift, norm, act, eps)
    sizes = norm, act, *x.shape[:3], y.shape[3]
    run("spread_norm_act", (*contiguous(x, scale, shift), y), sizes, (eps,))
    return y


def _spread_norm_act_backward_fake(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float, grad: Tensor
) -> list[Tensor]:
    """Gradients of x, and of scale and shift where they are there."""
    y = _spread_norm_act_fake(x, scale, shift, norm, act, eps)
    check_float("spread_norm_act_backward", x=x, grad=grad)
    check_shape("spread_norm_act_backward", "grad", grad, *y.shape)
    return [x.new_empty(x.shape), *(torch.empty_like(p) for p in (scale, shift) if p is not None)]


def _spread_norm_act_backward(
    x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float, grad: Tensor
) -> list[Tensor]:
    gradients = _spread_norm_act_backward_fake(x, scale, shift, norm, act, eps, grad)
    d_tensors = with_gaps(gradients, [p is not None for p in (x, scale, shift)])
    tensors = *contiguous(x, scale, shift, grad), *d_tensors
    run("spread_norm_act_backward", tensors, (norm, act, *x.shape[:3], grad.shape[3]), (eps,))
    return gradients


def _save_spread_norm_act(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, *ctx.statics = inputs
    ctx.save_for_backward(x, scale, shift)


def _spread_norm_act_gradient(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
    tensors = ctx.saved_tensors
    gradients = call("spread_norm_act_backward", *tensors, *ctx.statics, grad)
    return *with_gaps(gradients, [p is not None for p in tensors]), None, None, None


_AFFINE = "Tensor? scale, Tensor? shift, int norm, int act, float eps"
_CONV = f"Tensor x, Tensor weight, Tensor bias, {_AFFINE}"
register_convolution(
    register(f"conv_pool({_CONV}) -> (Tensor, Tensor, Tensor)", _conv_pool, _conv_pool_fake),
    register(
        f"conv_pool_backward({_CONV}, Tensor top, Tensor place, Tensor grad, bool want_x) -> Tensor[]",
        _conv_pool_backward,
        _conv_pool_backward_fake,
    ),
)
register_once_differentiable(
    register(f"spread_norm_act(Tensor x, {_AFFINE}) -> Tensor", _spread_norm_act, _spread_norm_act_fake),
    register(
        f"spread_norm_act_backward(Tensor x, {_AFFINE}, Tensor grad) -> Tensor[]",
        _spread_norm_act_backward,
        _spread_norm_act_backward_fake,
    ),
    _spread_norm_act_gradient,
    _save_spread_norm_act,
    "spread_norm_act",
)
