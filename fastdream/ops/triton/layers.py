"""Norm over the last axis, then activation: one pass over x forward, one over x and its gradient backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import triton
from torch import Tensor

from fastdream.ops.native.layers import code, spread
from fastdream.ops.native.params import ACTS, NORMS
from fastdream.ops.params import Act, Norm
from fastdream.ops.triton.config import WIDEST, Tile, row_tile
from fastdream.ops.triton.dense_kernels import add_rows
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    contiguous,
    empty_like,
    launch,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.norm_kernels import norm_act_bwd_kernel, norm_act_fwd_kernel

PROGRAMS = 256  # of the backward pass: each adds up its own rows' gradients of scale and shift

Optional = Tensor | None


def norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.norm_act`, x float32 or half precision, N at most 16384. Differentiable once."""
    return torch.ops.fastdream.triton_norm_act(x, *_used(scale, shift, norm, act), eps)


def spread_norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.spread_norm_act`, x and N as in `norm_act`. Differentiable once."""
    return torch.ops.fastdream.triton_spread_norm_act(x, *_used(scale, shift, norm, act), eps)


def _used(scale: Optional, shift: Optional, norm: str, act: str) -> tuple[Optional, Optional, str, str]:
    code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    return (None, None, norm, act) if norm == "none" else (scale, shift, norm, act)  # they belong to the norm


class Rows(NamedTuple):
    """How x is seen, and how much of it a program has at a time."""

    number: int
    width: int
    line: int  # pixels of a line if rows are spread, or 0
    tile: Tile

    @classmethod
    def of(cls, x: Tensor, spreads: bool, tensors: int) -> Self:
        width = x.shape[-1] // 4 if spreads else x.shape[-1]
        tile = row_tile(width, capability(x.device), tensors)
        return cls(x.numel() // width, width, x.shape[-2] if spreads else 0, tile)


def _launch(
    kernel: Any, grid: int, tensors: Sequence[Optional], eps: float, rows: Rows, **options: Any
) -> None:
    launch(
        kernel,
        (grid,),
        *tensors,
        eps,
        rows.number,
        rows.line,
        N=rows.width,
        SPREAD=rows.line > 0,
        BM=rows.tile.rows,
        BN=rows.tile.cols,
        num_warps=rows.tile.warps,
        **options,
    )


def _register(op: str, spreads: bool) -> None:
    """The op and its gradient."""

    def check(op: str, x: Tensor, scale: Optional, shift: Optional) -> torch.Size:
        """The shape of the result."""
        check_floats(op, x=x, scale=scale, shift=shift)
        parts = 4 if spreads else 1
        if x.dim() < (4 if spreads else 1) or x.shape[-1] % parts or not 0 < x.shape[-1] // parts <= WIDEST:
            expected = (
                f"[B, H, W, 4 * N] with N from 1 to {WIDEST}"
                if spreads
                else f"[..., N] with N from 1 to {WIDEST}"
            )
            raise ValueError(f"{op}: x has shape {list(x.shape)}, expected {expected}")
        for name, p in (("scale", scale), ("shift", shift)):
            if p is not None:
                check_shape(op, name, p, x.shape[-1] // parts)
        if not spreads:
            return x.shape
        batch, height, width, channels = x.shape
        return torch.Size((batch, 2 * height, 2 * width, channels // 4))

    def fake(x: Tensor, scale: Optional, shift: Optional, norm: str, act: str, eps: float) -> Tensor:
        return x.new_empty(check(op, x, scale, shift))

    def forward(x: Tensor, scale: Optional, shift: Optional, norm: str, act: str, eps: float) -> Tensor:
        y, rows = fake(x, scale, shift, norm, act, eps), Rows.of(x, spreads, tensors=1)
        tensors = *contiguous(x, scale, shift), y
        grid = triton.cdiv(rows.number, rows.tile.rows)
        _launch(norm_act_fwd_kernel, grid, tensors, eps, rows, NORM=norm, ACT=act)
        return y

    def backward_fake(
        x: Tensor,
        scale: Optional,
        shift: Optional,
        norm: str,
        act: str,
        eps: float,
        grad: Tensor,
        wanted: Sequence[bool],
    ) -> list[Tensor]:
        shape = check(f"{op}_backward", x, scale, shift)
        check_floats(f"{op}_backward", x=x, grad=grad)
        check_shape(f"{op}_backward", "grad", grad, *shape)
        inputs = zip((x, scale, shift), (True, *wanted), strict=True)
        return [empty_like(p) for p, want in inputs if p is not None and want]

    def backward(
        x: Tensor,
        scale: Optional,
        shift: Optional,
        norm: str,
        act: str,
        eps: float,
        grad: Tensor,
        wanted: Sequence[bool],
    ) -> list[Tensor]:
        d_x, *d_params = backward_fake(x, scale, shift, norm, act, eps, grad, wanted)
        rows = Rows.of(x, spreads, tensors=2)
        programs = min(PROGRAMS, triton.cdiv(rows.number, rows.tile.rows))
        partial = [p.new_empty(programs, rows.width, dtype=torch.float32) for p in d_params]
        tensors = *contiguous(x, scale, shift, grad), d_x, *spread(partial, wanted)
        _launch(norm_act_bwd_kernel, programs, tensors, eps, rows, NORM=norm, ACT=act)
        return [d_x, *(add_rows(p).to(d.dtype) for p, d in zip(partial, d_params, strict=True))]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, shift, *ctx.statics = inputs
        ctx.present = scale is not None, shift is not None
        ctx.save_for_backward(x, *(p for p in (scale, shift) if p is not None))

    def gradient(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
        x, *present = ctx.saved_tensors
        scale, shift = spread(present, ctx.present)
        wanted = [*ctx.needs_input_grad[1:3]]
        of_op = getattr(torch.ops.fastdream, f"triton_{op}_backward")
        gradients = of_op(x, scale, shift, *ctx.statics, grad, wanted)
        return (*spread(gradients, (True, *wanted)), None, None, None)

    inputs = "Tensor x, Tensor? scale, Tensor? shift, str norm, str act, float eps"
    ops = (
        register(f"{op}({inputs}) -> Tensor", forward, fake),
        register(f"{op}_backward({inputs}, Tensor grad, bool[] wanted) -> Tensor[]", backward, backward_fake),
    )
    register_once_differentiable(*ops, gradient, save, op)


_register("norm_act", spreads=False)
_register("spread_norm_act", spreads=True)
