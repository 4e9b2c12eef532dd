"""A convolution, by torch, to 2x2 pixels for one, then bias, norm and activation: one pass over what it gives.

The convolution has no bias: torch would add it, and sum its gradient, by passes of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from fastdream.ops.native.images import check_phases, convolution_gradients, register_convolution
from fastdream.ops.native.params import ACTS, NORMS, code
from fastdream.ops.params import Act, Norm
from fastdream.ops.triton.config import WIDEST, Tile, row_tile
from fastdream.ops.triton.dense_kernels import add_rows
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    contiguous,
    launch_tiles,
    register,
)
from fastdream.ops.triton.phases import Phases
from fastdream.ops.triton.spread_kernels import (
    spread_act_bwd_kernel,
    spread_act_fwd_kernel,
    spread_norm_act_bwd_kernel,
    spread_norm_act_fwd_kernel,
)

# Of the backward pass, all on a GPU at once: each adds up its own pixels' gradients of bias, scale and shift.
PROGRAMS = 768
LINE = 64  # numbers of a line of the image that a program without norm has at a time

Optional = Tensor | None


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
    """As `fastdream.ops.reference.conv_spread`, x float32 or half precision, out at most 4096. Differentiable once.

    The bias is added in float32, after the convolution.
    """
    code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    if norm == "none":
        scale = shift = None  # they belong to the norm
    return torch.ops.fastdream.triton_conv_spread(x, weight, bias, scale, shift, norm, act, eps)[0]


def _check(x: Tensor, weight: Tensor, bias: Tensor, scale: Optional, shift: Optional) -> Phases:
    check_floats("conv_spread", x=x, weight=weight, bias=bias, scale=scale, shift=shift)
    check_phases(x, weight, bias)
    phases = Phases.of(x, weight)
    if not 0 < 4 * phases.out <= WIDEST:
        raise ValueError(
            f"conv_spread: weight has shape {list(weight.shape)}, expected [4, out, in, k, k] with out from 1 to "
            f"{WIDEST // 4}"
        )
    for name, p in (("scale", scale), ("shift", shift)):
        if p is not None:
            check_shape("conv_spread", name, p, phases.out)
    return phases


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Optional,
    shift: Optional,
    norm: str,
    act: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and what is kept for its gradient: what the convolution gives, and its weight as torch takes it."""
    phases = _check(x, weight, bias, scale, shift)
    y, z = x.new_empty(phases.shape), x.new_empty(*x.shape[:3], 4 * phases.out)
    return y, z, x.new_empty(phases.filters_shape)


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, scale, shift, norm, act, eps = inputs
    phases = _check(x, weight, bias, scale, shift)
    filters = phases.filters(weight, x)
    z, y = phases.forward(x, filters), x.new_empty(phases.shape)
    if norm == "none":
        lines, numbers = 2 * phases.batch * phases.height, 2 * phases.width * phases.out
        tile = row_tile(min(LINE, numbers), capability(x.device))
        grid = triton.cdiv(lines, tile.rows), triton.cdiv(numbers, tile.cols)
        _launch(spread_act_fwd_kernel, grid, (z, bias.contiguous(), y, lines), phases, tile, ACT=act)
    else:
        tile, rows = _norm_tile(phases, x, tensors=2), 4 * phases.pixels
        args = z, *contiguous(bias, scale, shift), y, eps, rows
        programs = triton.cdiv(rows, tile.rows)
        _launch(spread_norm_act_fwd_kernel, (programs,), args, phases, tile, NORM=norm, ACT=act)
    return y, z, filters


def _norm_tile(phases: Phases, x: Tensor, tensors: int) -> Tile:
    """Of pixels of the large image, that the small one has whole."""
    tile = row_tile(phases.out, capability(x.device), tensors)
    return tile._replace(rows=max(4, tile.rows))


def _launch(
    kernel: Any, grid: tuple[int, ...], args: tuple, phases: Phases, tile: Tile, **options: str
) -> None:
    launch_tiles(kernel, grid, tile, *args, W=phases.width, N=phases.out, **options)


def _backward_fake(*given: Any) -> list[Tensor]:
    """Gradients as `register_convolution` wants them."""
    op, inputs, (z, filters, grad, want_x) = "conv_spread_backward", given[:8], given[8:]
    y, like, taken = _fake(*inputs)
    check_floats(op, x=inputs[0], z=z, filters=filters, grad=grad)
    for name, tensor, expected in (("z", z, like), ("filters", filters, taken), ("grad", grad, y)):
        if tensor is not None:
            check_shape(op, name, tensor, *expected.shape)
    # That of weight as it lies in memory, which may be a view.
    return [torch.empty_like(inputs[1]), *convolution_gradients(inputs, want_x)[1:]]


def _backward(*given: Any) -> list[Tensor]:
    d_weight = _backward_fake(*given)[0]
    x, weight, bias, scale, shift, norm, act, eps, z, filters, grad, want_x = given
    phases, grad = Phases.of(x, weight), grad.contiguous()
    if norm == "none":
        d_z, sums = _through_act(phases, z, bias.contiguous(), grad, act)
    else:
        d_z, sums = _through_norm(phases, contiguous(z, bias, scale, shift), grad, norm, act, eps)
    d_params = [d.to(p.dtype) for d, p in zip(sums, (bias, scale, shift), strict=False) if p is not None]
    d_x = phases.backward(x, filters, d_z, d_weight, want_x)
    return [d_weight, *d_params, *([] if d_x is None else [d_x])]


def _through_norm(
    phases: Phases, inputs: Sequence[Optional], grad: Tensor, norm: str, act: str, eps: float
) -> tuple[Tensor, Sequence[Tensor]]:
    """Gradients of what the convolution gave, and of bias, scale and shift, of which the inputs are z and those."""
    d_z = grad.new_empty(phases.batch, phases.height, phases.width, 4 * phases.out)
    tile, rows = _norm_tile(phases, grad, tensors=4), 4 * phases.pixels
    programs = min(PROGRAMS, triton.cdiv(rows, tile.rows))
    sums = grad.new_empty(programs, 3 * phases.out, dtype=torch.float32)
    args = *inputs, grad, d_z, sums, eps, rows
    _launch(spread_norm_act_bwd_kernel, (programs,), args, phases, tile, NORM=norm, ACT=act)
    return d_z, add_rows(sums).unflatten(0, (3, phases.out)).unbind()


def _through_act(
    phases: Phases, z: Optional, bias: Tensor, grad: Tensor, act: str
) -> tuple[Tensor, Sequence[Tensor]]:
    """Gradients of what the convolution gave, and of bias."""
    d_z = grad.new_empty(phases.batch, phases.height, phases.width, 4 * phases.out)
    tile = row_tile(4 * phases.out, capability(grad.device), tensors=2)
    programs = min(PROGRAMS, triton.cdiv(phases.pixels, tile.rows))
    sums = grad.new_empty(programs, 4 * phases.out, dtype=torch.float32)
    args = z, bias, grad, d_z, sums, phases.pixels
    _launch(spread_act_bwd_kernel, (programs,), args, phases, tile, ACT=act)
    return d_z, [add_rows(sums).unflatten(0, (4, phases.out)).sum(0)]


def _kept(inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Optional, Tensor]:
    _, z, filters = output
    linear = inputs[5] == "none" and inputs[6] == "none"
    return None if linear else z, filters


_INPUTS = "Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, str norm, str act, float eps"
register_convolution(
    register(f"conv_spread({_INPUTS}) -> (Tensor, Tensor, Tensor)", _forward, _fake),
    register(
        f"conv_spread_backward({_INPUTS}, Tensor? z, Tensor filters, Tensor grad, bool want_x) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
    _kept,
)
