"""Hard Gumbel-softmax: one pass over logits and noise forward, one over them and the gradient back."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.categorical import as_long, drawn_like
from fastdream.ops.triton.categorical import (
    categorical_sample_fwd_kernel,
    check_logit,
    launch_rows,
    log_mixed,
)
from fastdream.ops.triton.library import contiguous, empty_like, register, register_gradient
from fastdream.ops.triton.math import load_logits, own_rows, softmax

Pair = tuple[Tensor, Tensor]

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def perturbed(b_x, b_u, C: tl.constexpr, UNIMIX: tl.constexpr):
    """softmax of rows, the log of its mixture, and that with Gumbel noise."""
    b_p, b_log = log_mixed(b_x, C, UNIMIX)
    return b_p, b_log, b_log - tl.log(-tl.log(tl.maximum(b_u, TINY)))


@triton.jit(do_not_specialize=["M"])
def gumbel_sample_fwd_kernel(
    logit,  # [M, C]
    noise,  # [M, C]
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

    b_x = load_logits(logit + i_m * C + o_x, m_x, m_c)
    b_u = tl.load(noise + i_m * C + o_x, mask=m_x, other=0.5).to(tl.float32)
    _, _, b_y = perturbed(b_x, b_u, C, UNIMIX)
    b_i = tl.argmax(tl.where(m_c, b_y, float("-inf")), 1, keep_dims=True).to(tl.int64)
    tl.store(index + i_m + o_m, b_i, mask=m_m)
    tl.store(onehot + i_m * C + o_x, (o_c == b_i).to(onehot.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def gumbel_sample_bwd_kernel(
    grad,  # [M, C]
    logit,  # [M, C]
    noise,  # [M, C]
    d_logit,  # [M, C]
    tau,
    M,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    i_m, o_m, o_c, m_m, m_c = own_rows(M, C, BM, BC)
    m_x, o_x = m_m & m_c, o_m * C + o_c

    b_x = load_logits(logit + i_m * C + o_x, m_x, m_c)
    b_u = tl.load(noise + i_m * C + o_x, mask=m_x, other=0.5).to(tl.float32)
    b_g = tl.load(grad + i_m * C + o_x, mask=m_x, other=0.0).to(tl.float32)
    tau = tl.cast(tau, tl.float32)
    b_p, b_log, b_y = perturbed(b_x, b_u, C, UNIMIX)
    b_s = softmax(tl.where(m_c, b_y / tau, float("-inf")))
    b_g = b_s * (b_g - tl.sum(b_s * b_g, 1, keep_dims=True)) / tau  # of the log probabilities
    if UNIMIX > 0:
        b_g *= (1 - UNIMIX) * tl.exp(-b_log)
        b_dx = b_p * (b_g - tl.sum(b_p * b_g, 1, keep_dims=True))
    else:
        b_dx = b_g - b_p * tl.sum(b_g, 1, keep_dims=True)
    tl.store(d_logit + i_m * C + o_x, b_dx.to(d_logit.dtype.element_ty), mask=m_x)


def gumbel_sample(
    logit: Tensor, noise: Tensor, unimix: float = 0.0, index: Tensor | None = None, tau: float = 1.0
) -> Pair:
    """As `fastdream.ops.reference.gumbel_sample`, float32 or half precision. Differentiable once, in logit."""
    return torch.ops.fastdream.triton_gumbel_sample(logit, noise, as_long(index), unimix, tau)


def _gumbel_fake(logit: Tensor, noise: Tensor, index: Tensor | None, unimix: float, tau: float) -> Pair:
    check_logit("gumbel_sample", logit, {"index": index}, {"noise": noise})
    return drawn_like(logit)


def _gumbel(logit: Tensor, noise: Tensor, index: Tensor | None, unimix: float, tau: float) -> Pair:
    drawn = _gumbel_fake(logit, noise, index, unimix, tau)
    if index is None:
        args = (*contiguous(logit, noise), *drawn)
        launch_rows(gumbel_sample_fwd_kernel, args, logit, unimix, tensors=2)
    else:
        args = (*contiguous(logit, None, index), *drawn)
        launch_rows(categorical_sample_fwd_kernel, args, logit, unimix, tensors=1)
    return drawn


def _gumbel_backward_fake(grad: Tensor, logit: Tensor, noise: Tensor, unimix: float, tau: float) -> Tensor:
    check_logit("gumbel_sample_backward", logit, {}, {"grad": grad, "noise": noise})
    return empty_like(logit)


def _gumbel_backward(grad: Tensor, logit: Tensor, noise: Tensor, unimix: float, tau: float) -> Tensor:
    d_logit = _gumbel_backward_fake(grad, logit, noise, unimix, tau)
    args = (*contiguous(grad, logit, noise), d_logit, tau)
    launch_rows(gumbel_sample_bwd_kernel, args, logit, unimix, tensors=3)
    return d_logit


register_gradient(
    register(
        "gumbel_sample(Tensor logit, Tensor noise, Tensor? index, float unimix, float tau) -> (Tensor, Tensor)",
        _gumbel,
        _gumbel_fake,
    ),
    register(
        "gumbel_sample_backward(Tensor grad, Tensor logit, Tensor noise, float unimix, float tau) -> Tensor",
        _gumbel_backward,
        _gumbel_backward_fake,
    ),
    lambda inputs, output: inputs[:2],
)
