"""Mean over two-hot bins, summed in mirrored pairs, so that equal logits give exactly 0."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.twohot import in_symlog
from fastdream.ops.reference.twohot import Form
from fastdream.ops.triton.config import warp_tile
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import exp, load_logits, own_rows, softmax
from fastdream.ops.triton.padding import as_rows, empty_rows, padded, readable
from fastdream.ops.triton.pointwise import symexp_of
from fastdream.ops.triton.twohot import check_bins, launch_bins


@triton.jit(do_not_specialize=["M"])
def twohot_mean_fwd_kernel(
    logit,  # [M, K]
    bins,  # [K]
    mean,  # [M]
    M,
    s_x,
    K: tl.constexpr,
    SYMLOG: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,  # of one half of the bins
):
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = tl.arange(0, BM)[:, None]
    o_k = tl.arange(0, BK)[None, :]
    m_m = o_m < M - i_m
    m_l = o_k < (K + 1) // 2  # the lower half, with the middle
    m_h = o_k < K // 2  # the upper half, mirrored
    p_x = logit + (i_m + o_m) * s_x

    b_l = load_logits(p_x + o_k, m_m & m_l, m_l)
    b_h = load_logits(p_x + K - 1 - o_k, m_m & m_h, m_h)
    b_max = tl.maximum(tl.max(b_l, 1, keep_dims=True), tl.max(b_h, 1, keep_dims=True))
    b_l, b_h = tl.exp(b_l - b_max), tl.exp(b_h - b_max)
    b_sum = tl.sum(b_l + b_h, 1, keep_dims=True)
    b_l *= tl.load(bins + o_k, mask=m_l, other=0.0).to(tl.float32)
    b_h *= tl.load(bins + K - 1 - o_k, mask=m_h, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_l + b_h, 1, keep_dims=True) / b_sum
    if SYMLOG:
        b_mean = symexp_of(b_mean)
    tl.store(mean + i_m + o_m, b_mean, mask=m_m)


@triton.jit(do_not_specialize=["M"])
def twohot_mean_bwd_kernel(
    grad,  # [M]
    logit,  # [M, K]
    bins,  # [K]
    d_logit,  # [M, W], rows without gaps: zeros beyond K
    M,
    s_x,
    K: tl.constexpr,
    W: tl.constexpr,
    READ: tl.constexpr,
    SYMLOG: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    i_m, o_m, o_k, m_m, m_k = own_rows(M, K, BM, BK)

    b_p = softmax(load_logits(logit + (i_m + o_m) * s_x + o_k, m_m & (o_k < READ), m_k))
    b_bins = tl.load(bins + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_p * b_bins, 1, keep_dims=True)
    b_g = tl.load(grad + i_m + o_m, mask=m_m, other=0.0).to(tl.float32)
    if SYMLOG:
        b_g *= exp(tl.abs(b_mean))
    b_dx = (b_g * b_p * (b_bins - b_mean)).to(d_logit.dtype.element_ty)
    tl.store(d_logit + (i_m + o_m) * W + o_k, b_dx, mask=m_m & (o_k < W))


def twohot_mean(logit: Tensor, bins: Tensor, form: Form = "symexp") -> Tensor:
    """As `fastdream.ops.reference.twohot_mean`, float32 or half precision. Differentiable once, in logit."""
    return torch.ops.fastdream.triton_twohot_mean(logit, bins, in_symlog(form))


def _fake(logit: Tensor, bins: Tensor, in_symlog: bool) -> Tensor:
    check_bins("twohot_mean", logit, bins)
    return logit.new_empty(logit.shape[:-1], dtype=torch.float32)


def _forward(logit: Tensor, bins: Tensor, in_symlog: bool) -> Tensor:
    mean = _fake(logit, bins, in_symlog)
    x = as_rows(logit)
    tile = warp_tile((x.shape[1] + 1) // 2, capability(x.device), tensors=2)
    # Fused, two products that cancel would leave the rounding error of one.
    args = x, bins.contiguous(), mean
    launch_bins(twohot_mean_fwd_kernel, x, tile, in_symlog, *args, enable_fp_fusion=False)
    return mean


def _backward_fake(grad: Tensor, logit: Tensor, bins: Tensor, in_symlog: bool) -> Tensor:
    check_bins("twohot_mean_backward", logit, bins)
    check_floats("twohot_mean_backward", logit=logit, grad=grad)
    check_shape("twohot_mean_backward", "grad", grad, *logit.shape[:-1])
    return empty_rows(logit, *logit.shape)


def _backward(grad: Tensor, logit: Tensor, bins: Tensor, in_symlog: bool) -> Tensor:
    d_logit = _backward_fake(grad, logit, bins, in_symlog)
    x = as_rows(logit)
    tile, wide = warp_tile(x.shape[1], capability(x.device)), padded(x.shape[1])
    args = grad.contiguous(), x, bins.contiguous(), d_logit
    launch_bins(twohot_mean_bwd_kernel, x, tile, in_symlog, *args, W=wide, READ=readable(x))
    return d_logit


register_gradient(
    register("twohot_mean(Tensor logit, Tensor bins, bool in_symlog) -> Tensor", _forward, _fake),
    register(
        "twohot_mean_backward(Tensor grad, Tensor logit, Tensor bins, bool in_symlog) -> Tensor",
        _backward,
        _backward_fake,
    ),
    lambda inputs, output: inputs[:2],
)
