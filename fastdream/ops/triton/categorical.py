"""Samples of categorical latents and actions: one pass over the logits forward, one over them and the gradient back."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.categorical import as_long, drawn_like
from fastdream.ops.triton.config import WIDEST, row_tile
from fastdream.ops.triton.draw import draw
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    contiguous,
    empty_like,
    launch,
    register,
    register_gradient,
    rows_of,
)
from fastdream.ops.triton.math import load_logits, own_rows, softmax

Pair = tuple[Tensor, Tensor]


@triton.jit
def log_mixed(b_x, C: tl.constexpr, UNIMIX: tl.constexpr):
    """softmax of rows [BM, BC], and the log of its mixture with UNIMIX of the uniform."""
    b_x -= tl.max(b_x, 1, keep_dims=True)
    b_e = tl.exp(b_x)
    b_sum = tl.sum(b_e, 1, keep_dims=True)
    b_p = b_e / b_sum
    if UNIMIX > 0:
        b_log = tl.log(b_p * (1 - UNIMIX) + UNIMIX / C)
    else:
        b_log = b_x - tl.log(b_sum)
    return b_p, b_log


@triton.jit(do_not_specialize=["M"])
def categorical_sample_fwd_kernel(
    logit,  # [M, C]
    noise,  # [M] or None
    given,  # [M], or None
    onehot,  # [M, C]
    index,  # [M]
    M,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    i_m, o_m, o_c, m_m, m_c = own_rows(M, C, BM, BC)
    m_x, o_x = m_m & m_c, o_m * C + o_c

    if given is not None:
        b_i = tl.load(given + i_m + o_m, mask=m_m, other=0)
    else:
        b_x = load_logits(logit + i_m * C + o_x, m_x, m_c)
        b_u = tl.load(noise + i_m + o_m, mask=m_m, other=0.0).to(tl.float32)
        b_i = draw(b_x, b_u, o_c, 1 - UNIMIX, UNIMIX / C, C, 1).to(tl.int64)
    tl.store(index + i_m + o_m, b_i, mask=m_m)
    tl.store(onehot + i_m * C + o_x, (o_c == b_i).to(onehot.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def categorical_sample_bwd_kernel(
    grad,  # [M, C]
    logit,  # [M, C]
    d_logit,  # [M, C]
    M,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    i_m, o_m, o_c, m_m, m_c = own_rows(M, C, BM, BC)
    m_x, o_x = m_m & m_c, o_m * C + o_c

    b_p = softmax(load_logits(logit + i_m * C + o_x, m_x, m_c))
    b_g = tl.load(grad + i_m * C + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_dx = (1 - UNIMIX) * b_p * (b_g - tl.sum(b_p * b_g, 1, keep_dims=True))
    tl.store(d_logit + i_m * C + o_x, b_dx.to(d_logit.dtype.element_ty), mask=m_x)


def categorical_sample(
    logit: Tensor, noise: Tensor | None, unimix: float = 0.0, index: Tensor | None = None
) -> Pair:
    """As `fastdream.ops.reference.categorical_sample`, float32 or half precision. Differentiable once, in logit."""
    if index is not None:
        noise = None
    elif noise is None:
        raise ValueError("categorical_sample needs noise to draw with, or the index of an earlier draw")
    return torch.ops.fastdream.triton_categorical_sample(logit, noise, as_long(index), unimix)


def check_logit(op: str, logit: Tensor, one: dict[str, Tensor | None], every: dict[str, Tensor]) -> None:
    """logit [..., C], with one number a draw [...] of some, and as many as there are classes of others."""
    check_floats(op, logit=logit, **every, **{name: x for name, x in one.items() if name != "index"})
    if logit.dim() < 1 or not 0 < logit.shape[-1] <= WIDEST:
        raise ValueError(
            f"{op}: logit has shape {list(logit.shape)}, expected [..., C] with C from 1 to {WIDEST}"
        )
    for name, x in one.items():
        if x is not None:
            check_shape(op, name, x, *logit.shape[:-1])
    for name, x in every.items():
        check_shape(op, name, x, *logit.shape)


def launch_rows(kernel: Any, args: tuple[Any, ...], logit: Tensor, unimix: float, tensors: int) -> None:
    rows, classes = rows_of(logit)
    tile = row_tile(classes, capability(logit.device), tensors)
    launch(
        kernel,
        (triton.cdiv(rows, tile.rows),),
        *args,
        rows,
        C=classes,
        UNIMIX=unimix,
        BM=tile.rows,
        BC=tile.cols,
        num_warps=tile.warps,
    )


def _sample_fake(logit: Tensor, noise: Tensor | None, index: Tensor | None, unimix: float) -> Pair:
    check_logit("categorical_sample", logit, {"noise": noise, "index": index}, {})
    return drawn_like(logit)


def _sample(logit: Tensor, noise: Tensor | None, index: Tensor | None, unimix: float) -> Pair:
    drawn = _sample_fake(logit, noise, index, unimix)
    args = (*contiguous(logit, noise, index), *drawn)
    launch_rows(categorical_sample_fwd_kernel, args, logit, unimix, tensors=1)
    return drawn


def _sample_backward_fake(grad: Tensor, logit: Tensor, unimix: float) -> Tensor:
    check_logit("categorical_sample_backward", logit, {}, {"grad": grad})
    return empty_like(logit)


def _sample_backward(grad: Tensor, logit: Tensor, unimix: float) -> Tensor:
    d_logit = _sample_backward_fake(grad, logit, unimix)
    launch_rows(categorical_sample_bwd_kernel, (*contiguous(grad, logit), d_logit), logit, unimix, tensors=2)
    return d_logit


register_gradient(
    register(
        "categorical_sample(Tensor logit, Tensor? noise, Tensor? index, float unimix) -> (Tensor, Tensor)",
        _sample,
        _sample_fake,
    ),
    register(
        "categorical_sample_backward(Tensor grad, Tensor logit, float unimix) -> Tensor",
        _sample_backward,
        _sample_backward_fake,
    ),
    lambda inputs, output: inputs[:1],
)
