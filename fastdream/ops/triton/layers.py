"""Norm over the last axis, then activation: one pass over x forward, one over x and its gradient backward.

Through the norm of the widest rows it goes back in two, of pieces: see `wide_rows`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import triton
from torch import Tensor

from fastdream.ops.native.layers import save_norm_act
from fastdream.ops.native.params import ACTS, NORMS, code, with_gaps
from fastdream.ops.params import Act, Norm
from fastdream.ops.triton import wide_rows
from fastdream.ops.triton.config import WIDEST, Tile, row_tile
from fastdream.ops.triton.dense_kernels import add_rows
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    contiguous,
    empty_like,
    launch_tiles,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.norm_kernels import norm_act_bwd_kernel, norm_act_fwd_kernel

PROGRAMS = 256  # of the backward pass: each adds up its own rows' gradients of scale and shift
LONG = 1024  # columns of a row, of more of which a thread has many
WHOLE = 8192  # columns of a row, of more of which a program spills on the way back through a norm

Optional = Tensor | None


def norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.norm_act`, x float32 or half precision, N at most 16384. Differentiable once."""
    code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    if norm == "none":
        scale = shift = None  # they belong to the norm
    return torch.ops.fastdream.triton_norm_act(x, scale, shift, norm, act, eps)


class Rows(NamedTuple):
    """How x is seen, and how much of it a program has at a time."""

    number: int
    width: int
    tile: Tile

    @classmethod
    def of(cls, x: Tensor, tensors: int) -> Self:
        width = x.shape[-1]
        return cls(x.numel() // width, width, row_tile(width, capability(x.device), tensors))

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.number, self.tile.rows)


def _launch(
    kernel: Any, grid: int, tensors: Sequence[Optional], eps: float, rows: Rows, **options: Any
) -> None:
    launch_tiles(kernel, (grid,), rows.tile, *tensors, eps, rows.number, N=rows.width, **options)


def _check(op: str, x: Tensor, scale: Optional, shift: Optional, widest: int) -> None:
    check_floats(op, x=x, scale=scale, shift=shift)
    if x.dim() < 1 or not 0 < x.shape[-1] <= widest:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [..., N] with N from 1 to {widest}")
    for name, p in (("scale", scale), ("shift", shift)):
        if p is not None:
            check_shape(op, name, p, x.shape[-1])


def _fake(x: Tensor, scale: Optional, shift: Optional, norm: str, act: str, eps: float) -> Tensor:
    _check("norm_act", x, scale, shift, WIDEST)
    return x.new_empty(x.shape)


def _forward(x: Tensor, scale: Optional, shift: Optional, norm: str, act: str, eps: float) -> Tensor:
    y, rows = _fake(x, scale, shift, norm, act, eps), Rows.of(x, tensors=1)
    tensors = *contiguous(x, scale, shift), y
    _launch(norm_act_fwd_kernel, rows.tiles, tensors, eps, rows, NORM=norm, ACT=act)
    return y


def _backward_fake(
    x: Tensor,
    scale: Optional,
    shift: Optional,
    norm: str,
    act: str,
    eps: float,
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _check("norm_act_backward", x, scale, shift, WIDEST if norm == "none" else wide_rows.WIDEST)
    check_floats("norm_act_backward", x=x, grad=grad)
    check_shape("norm_act_backward", "grad", grad, *x.shape)
    inputs = zip((x, scale, shift), (True, *wanted), strict=True)
    return [empty_like(p) for p, want in inputs if p is not None and want]


def _backward(*inputs: Any) -> list[Tensor]:
    d_x, *d_params = _backward_fake(*inputs)
    x, scale, shift, norm, act, eps, grad, wanted = inputs
    given, width = contiguous(x, scale, shift, grad), x.shape[-1]
    if norm != "none" and width > WHOLE:
        programs = min(wide_rows.PROGRAMS, x.numel() // width)
        partial = [p.new_empty(programs, width, dtype=torch.float32) for p in d_params]
        wide_rows.wide_gradients(given, d_x, with_gaps(partial, wanted), norm, act, eps)
    else:
        # The gradient through a mean needs registers besides: a long row is that of more threads.
        rows = Rows.of(x, tensors=4 if norm == "layer" and width > LONG else 2)
        programs = min(PROGRAMS, rows.tiles)
        partial = [p.new_empty(programs, width, dtype=torch.float32) for p in d_params]
        # Of the longest rows in float32 ptxas would spill, for two programs on a multiprocessor.
        most = {"maxnreg": 128} if rows.tile.warps == 16 and x.dtype == torch.float32 else {}
        tensors = *given, d_x, *with_gaps(partial, wanted)
        _launch(norm_act_bwd_kernel, programs, tensors, eps, rows, NORM=norm, ACT=act, **most)
    return [d_x, *(add_rows(p).to(d.dtype) for p, d in zip(partial, d_params, strict=True))]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
    x, *present = ctx.saved_tensors
    scale, shift = with_gaps(present, ctx.present)
    wanted = [*ctx.needs_input_grad[1:3]]
    gradients = torch.ops.fastdream.triton_norm_act_backward(x, scale, shift, *ctx.statics, grad, wanted)
    return (*with_gaps(gradients, (True, *wanted)), None, None, None)


_INPUTS = "Tensor x, Tensor? scale, Tensor? shift, str norm, str act, float eps"
register_once_differentiable(
    register(f"norm_act({_INPUTS}) -> Tensor", _forward, _fake),
    register(
        f"norm_act_backward({_INPUTS}, Tensor grad, bool[] wanted) -> Tensor[]", _backward, _backward_fake
    ),
    _gradient,
    save_norm_act,
    "norm_act",
)
