"""join_inputs and vector_losses: all vectors in one launch each way, whatever their number.

They are few and narrow: PyTorch would make five launches and more for each.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import (
    check_shape,
    launch,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.padding import empty_rows, padded
from fastdream.ops.triton.pointwise import symlog_of

ROWS, ELEMENTS = 16, 4096  # of a program, at the most
Strides = tuple[tuple[int, ...], tuple[int, ...]]


@triton.jit
def row_begins(o_m, T, s_outer, s_inner):
    """Where rows o_m of x [M / T, T, w] begin."""
    return (o_m // T).to(tl.int64) * s_outer + (o_m % T) * s_inner


@triton.jit(do_not_specialize=["M", "T"])
def join_inputs_kernel(
    parts,  # a tuple: [M / T, T, w] each
    s_outer,  # of each, what its first axis strides
    s_inner,  # and its second
    y,  # [M, F]
    M,
    T,
    F: tl.constexpr,
    WIDTHS: tl.constexpr,
    CLASSES: tl.constexpr,
    BEGINS: tl.constexpr,
    COLS: tl.constexpr,  # powers of two, of elements and of features
    SQUISH: tl.constexpr,
    BM: tl.constexpr,
):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    m_m = o_m < M
    for j in tl.static_range(len(parts)):
        p_x = parts[j] + row_begins(o_m, T, s_outer[j], s_inner[j])
        o_w = tl.arange(0, COLS[j][0])[None, :]
        b_x = tl.load(p_x + o_w, mask=m_m & (o_w < WIDTHS[j]), other=0)
        if parts[j].dtype.element_ty.is_floating():
            b_x = b_x.to(tl.float32)
            b_missing = b_x == float("-inf")
        else:
            b_x = b_x.to(tl.int32)
            b_missing = b_x == -1
        b_missing = tl.max(b_missing.to(tl.int32), 1, keep_dims=True)
        o_f = tl.arange(0, COLS[j][1])[None, :]
        m_f = m_m & (o_f < WIDTHS[j] * max(CLASSES[j], 1))
        if CLASSES[j] == 0:
            b_y = b_x.to(tl.float32)
            if SQUISH:
                b_y = symlog_of(b_y)
        else:
            b_x = tl.load(p_x + o_f // CLASSES[j], mask=m_f, other=0).to(tl.int32)
            b_y = tl.where(b_x == o_f % CLASSES[j], 1.0, 0.0)
        b_y = tl.where(b_missing > 0, 0.0, b_y)
        tl.store(y + o_m.to(tl.int64) * F + BEGINS[j] + o_f, b_y.to(y.dtype.element_ty), mask=m_f)


@triton.jit(do_not_specialize=["M", "T"])
def vector_losses_kernel(
    outs,  # a tuple: [M / T, T, w] each
    s_outer,
    s_inner,
    targets,  # like outs
    t_outer,
    t_inner,
    losses,  # a tuple: [M] each, or their gradients
    d_outs,  # a tuple: [M, w] each, or None for the losses themselves
    s_d,  # of each, how far its rows lie apart
    M,
    T,
    WIDTHS: tl.constexpr,
    COLS: tl.constexpr,
    SQUISH: tl.constexpr,
    BM: tl.constexpr,
):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    for j in tl.static_range(len(outs)):
        o_w = tl.arange(0, COLS[j])[None, :]
        m_x = (o_m < M) & (o_w < WIDTHS[j])
        p_out = outs[j] + row_begins(o_m, T, s_outer[j], s_inner[j]) + o_w
        p_target = targets[j] + row_begins(o_m, T, t_outer[j], t_inner[j]) + o_w
        b_target = tl.load(p_target, mask=m_x, other=0).to(tl.float32)
        b_d = tl.load(p_out, mask=m_x, other=0.0).to(tl.float32)
        b_d -= symlog_of(b_target) if SQUISH else b_target
        if d_outs is None:
            tl.store(losses[j] + o_m, tl.sum(b_d * b_d, 1, keep_dims=True), mask=o_m < M)
        else:
            b_d *= 2 * tl.load(losses[j] + o_m, mask=o_m < M, other=0.0).to(tl.float32)
            p_d = d_outs[j] + o_m.to(tl.int64) * s_d[j] + o_w
            tl.store(p_d, b_d.to(d_outs[j].dtype.element_ty), mask=m_x)


def join_inputs(parts: Sequence[Tensor], classes: Sequence[int], squish: bool, dtype: torch.dtype) -> Tensor:
    """As `fastdream.ops.reference.join_inputs`, of parts of any type but float64, without gradient."""
    return torch.ops.fastdream.triton_join_inputs([x.detach() for x in parts], classes, squish, dtype)


def vector_losses(outs: Sequence[Tensor], targets: Sequence[Tensor], squish: bool) -> tuple[Tensor, ...]:
    """As `fastdream.ops.reference.vector_losses`, outs of any type but float64. Differentiable once."""
    wanted = [x.detach().float() if x.dtype == torch.float64 else x.detach() for x in targets]
    return tuple(torch.ops.fastdream.triton_vector_losses(outs, wanted, squish))


def _in_rows(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Strides, int, int]:
    """Tensors [..., w] with their elements in one piece each, how far their rows lie apart, M and T."""
    lead = tensors[0].shape[:-1]
    found = [x if x.shape[-1] < 2 or x.stride(-1) == 1 else x.contiguous() for x in tensors]
    if len(lead) != 2:
        found = [x.reshape(lead.numel(), 1, x.shape[-1]) for x in found]
    strides = tuple(x.stride(0) for x in found), tuple(x.stride(1) for x in found)
    return tuple(found), strides, lead.numel(), found[0].shape[1]


def _check(op: str, **tensors: Tensor) -> None:
    """ValueError unless all are vectors of the same rows, on one device, and none in double precision."""
    lead, device = next((x.shape[:-1], x.device) for x in tensors.values())
    for name, x in tensors.items():
        if x.dtype == torch.float64:
            raise ValueError(f"{op}: {name} is torch.float64, expected torch.float32 or what is narrower")
        if x.dim() < 1 or x.device != device:
            raise ValueError(f"{op}: {name} is {list(x.shape)} on {x.device}, expected vectors on {device}")
        check_shape(op, name, x, *lead, x.shape[-1])


def _joined_fake(parts: Sequence[Tensor], classes: Sequence[int], squish: bool, dtype: torch.dtype) -> Tensor:
    _check("join_inputs", **{f"part {i}": x for i, x in enumerate(parts)})
    width = sum(x.shape[-1] * max(count, 1) for x, count in zip(parts, classes, strict=True))
    return parts[0].new_empty(*parts[0].shape[:-1], width, dtype=dtype)


def _joined(parts: Sequence[Tensor], classes: Sequence[int], squish: bool, dtype: torch.dtype) -> Tensor:
    y = _joined_fake(parts, classes, squish, dtype)
    given, strides, rows, steps = _in_rows(parts)
    widths = tuple(x.shape[-1] for x in parts)
    features = [width * max(count, 1) for width, count in zip(widths, classes, strict=True)]
    cols = tuple((power_of_two(w), power_of_two(f)) for w, f in zip(widths, features, strict=True))
    tile = max(1, min(ROWS, ELEMENTS // max(f for _, f in cols)))
    launch(
        join_inputs_kernel,
        (triton.cdiv(rows, tile),),
        given,
        *strides,
        y,
        rows,
        steps,
        F=y.shape[-1],
        WIDTHS=widths,
        CLASSES=tuple(classes),
        BEGINS=tuple(sum(features[:i]) for i in range(len(features))),
        COLS=cols,
        SQUISH=squish,
        BM=tile,
        num_warps=4,
    )
    return y


def _losses_fake(outs: Sequence[Tensor], targets: Sequence[Tensor], squish: bool) -> list[Tensor]:
    _check("vector_losses", **{f"output {i}": x for i, x in enumerate(outs)})
    for i, (out, target) in enumerate(zip(outs, targets, strict=True)):
        check_shape("vector_losses", f"target {i}", target, *out.shape)
    return [x.new_empty(x.shape[:-1], dtype=torch.float32) for x in outs]


def _launch_losses(
    outs: Sequence[Tensor],
    targets: Sequence[Tensor],
    squish: bool,
    losses: Sequence[Tensor],
    d_outs: Sequence[Tensor] | None,
) -> None:
    given, strides, rows, steps = _in_rows(outs)
    wanted, others, _, _ = _in_rows(targets)
    widths = tuple(x.shape[-1] for x in outs)
    cols = tuple(map(power_of_two, widths))
    tile = max(1, min(ROWS, ELEMENTS // max(cols)))
    launch(
        vector_losses_kernel,
        (triton.cdiv(rows, tile),),
        given,
        *strides,
        wanted,
        *others,
        tuple(losses),
        None if d_outs is None else tuple(d_outs),
        None if d_outs is None else tuple(map(padded, widths)),
        rows,
        steps,
        WIDTHS=widths,
        COLS=cols,
        SQUISH=squish,
        BM=tile,
        num_warps=4,
    )


def _losses(outs: Sequence[Tensor], targets: Sequence[Tensor], squish: bool) -> list[Tensor]:
    losses = _losses_fake(outs, targets, squish)
    _launch_losses(outs, targets, squish, losses, None)
    return losses


def _gradients_fake(
    outs: Sequence[Tensor], targets: Sequence[Tensor], squish: bool, grads: Sequence[Tensor]
) -> list[Tensor]:
    _losses_fake(outs, targets, squish)
    return [empty_rows(x, *x.shape) for x in outs]


def _gradients(
    outs: Sequence[Tensor], targets: Sequence[Tensor], squish: bool, grads: Sequence[Tensor]
) -> list[Tensor]:
    d_outs = _gradients_fake(outs, targets, squish, grads)
    _launch_losses(outs, targets, squish, [x.contiguous() for x in grads], d_outs)
    return d_outs


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    outs, targets, ctx.squish = inputs
    ctx.count = len(outs)
    ctx.save_for_backward(*outs, *targets)


def _gradient(ctx: Any, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[None], None]:
    saved = ctx.saved_tensors  # read once: checkpointing does not give them twice
    outs, targets = saved[: ctx.count], saved[ctx.count :]
    backward = torch.ops.fastdream.triton_vector_losses_backward
    return backward(list(outs), list(targets), ctx.squish, list(grads)), [None] * ctx.count, None


register(
    "join_inputs(Tensor[] parts, int[] classes, bool squish, ScalarType dtype) -> Tensor",
    _joined,
    _joined_fake,
)
_LOSSES = "Tensor[] outs, Tensor[] targets, bool squish"
register_once_differentiable(
    register(f"vector_losses({_LOSSES}) -> Tensor[]", _losses, _losses_fake),
    register(f"vector_losses_backward({_LOSSES}, Tensor[] grads) -> Tensor[]", _gradients, _gradients_fake),
    _gradient,
    _save,
    "vector_losses",
)
