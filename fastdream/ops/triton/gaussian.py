"""The two KL losses of Gaussian latents: both in one pass over means and deviations, their gradients in one more."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.kl import CLAMPS
from fastdream.ops.native.params import code
from fastdream.ops.params import Clamp
from fastdream.ops.triton.config import row_tile
from fastdream.ops.triton.free_nats import (
    Losses,
    Pair,
    check_grads,
    check_pair,
    finish,
    grads_of,
    load_grads,
    losses_of,
    store_losses,
)
from fastdream.ops.triton.library import (
    capability,
    contiguous,
    empty_like,
    launch,
    register,
    register_gradient,
    rows_of,
)
from fastdream.ops.triton.math import own_rows


@triton.jit(do_not_specialize=["M"])
def gaussian_kl_fwd_kernel(
    mean,  # [M, S], like the next three
    std,
    prior_mean,
    prior_std,
    kl,  # [M]
    dyn,  # [M], or [] if clamped after the mean
    rep,  # like dyn
    free,
    M,
    S: tl.constexpr,
    CLAMP: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
):
    i_m, o_m, o_s, m_m, m_s = own_rows(M, S, BM, BS)
    m_x, o_x = m_m & m_s, o_m * S + o_s

    b_scale = tl.load(prior_std + i_m * S + o_x, mask=m_x, other=1.0).to(tl.float32)
    b_ratio = tl.load(std + i_m * S + o_x, mask=m_x, other=1.0).to(tl.float32) / b_scale
    b_shift = tl.load(mean + i_m * S + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_shift = (b_shift - tl.load(prior_mean + i_m * S + o_x, mask=m_x, other=0.0).to(tl.float32)) / b_scale
    b_kl = 0.5 * (b_ratio * b_ratio + b_shift * b_shift - 1) - tl.log(b_ratio)
    store_losses(kl, dyn, rep, i_m + o_m, m_m, tl.sum(b_kl, 1, keep_dims=True), free, CLAMP)


@triton.jit(do_not_specialize=["M"])
def gaussian_kl_bwd_kernel(
    d_dyn,  # [M], or [] if clamped after the mean
    d_rep,  # like d_dyn
    kl,  # [M]
    mean,  # [M, S], like all that follow
    std,
    prior_mean,
    prior_std,
    d_mean,
    d_std,
    d_prior_mean,
    d_prior_std,
    free,
    M,
    S: tl.constexpr,
    CLAMP: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
):
    i_m, o_m, o_s, m_m, m_s = own_rows(M, S, BM, BS)
    m_x, o_x = m_m & m_s, i_m * S + o_m * S + o_s

    b_dyn, b_rep = load_grads(kl, d_dyn, d_rep, i_m + o_m, m_m, free, CLAMP)
    b_std = tl.load(std + o_x, mask=m_x, other=1.0).to(tl.float32)
    b_scale = 1 / tl.load(prior_std + o_x, mask=m_x, other=1.0).to(tl.float32)
    b_shift = tl.load(mean + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_shift = (b_shift - tl.load(prior_mean + o_x, mask=m_x, other=0.0).to(tl.float32)) * b_scale
    b_ratio = b_std * b_scale

    b_g = b_shift * b_scale
    tl.store(d_mean + o_x, (b_rep * b_g).to(d_mean.dtype.element_ty), mask=m_x)
    tl.store(d_prior_mean + o_x, (-b_dyn * b_g).to(d_prior_mean.dtype.element_ty), mask=m_x)
    b_g = b_ratio * b_scale - 1 / b_std
    tl.store(d_std + o_x, (b_rep * b_g).to(d_std.dtype.element_ty), mask=m_x)
    b_g = (1 - b_ratio * b_ratio - b_shift * b_shift) * b_scale
    tl.store(d_prior_std + o_x, (b_dyn * b_g).to(d_prior_std.dtype.element_ty), mask=m_x)


def gaussian_kl(post: Pair, prior: Pair, free: float = 3.0, clamp: Clamp = "mean") -> Pair:
    """As `fastdream.ops.reference.gaussian_kl`, of four tensors float32 or half precision. Differentiable once."""
    code(CLAMPS, clamp, "clamp")
    dyn, rep, _ = torch.ops.fastdream.triton_gaussian_kl(*post, *prior, free, clamp)
    return dyn, rep


def _launch_gaussian(kernel: Any, args: list[Any], mean: Tensor, free: float, clamp: str) -> None:
    rows, width = rows_of(mean)
    tile = row_tile(width, capability(mean.device), tensors=4)
    constants = {"S": width, "BM": tile.rows, "BS": tile.cols, "CLAMP": clamp, "num_warps": tile.warps}
    launch(kernel, (triton.cdiv(rows, tile.rows),), *args, free, rows, **constants)


def _gaussian_fake(
    mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor, free: float, clamp: str
) -> Losses:
    names = "post mean", "post std", "prior mean", "prior std"
    check_pair("gaussian_kl", 1, dict(zip(names, (mean, std, prior_mean, prior_std), strict=True)))
    return losses_of(mean, 1, clamp)


def _gaussian(*inputs: Any) -> Losses:
    dyn, rep, kl = losses = _gaussian_fake(*inputs)
    *tensors, free, clamp = inputs
    args = [*contiguous(*tensors), kl, dyn, rep]
    _launch_gaussian(gaussian_kl_fwd_kernel, args, tensors[0], free, clamp)
    finish(losses, free, clamp)
    return losses


def _gaussian_backward_fake(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    check_grads("gaussian_kl_backward", _gaussian_fake(*inputs), d_dyn, d_rep, kl)
    return tuple(empty_like(x) for x in inputs[:4])


def _gaussian_backward(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    gradients = _gaussian_backward_fake(d_dyn, d_rep, kl, *inputs)
    *tensors, free, clamp = inputs
    args = [*grads_of(d_dyn, d_rep, kl, free, clamp), *contiguous(kl, *tensors), *gradients]
    _launch_gaussian(gaussian_kl_bwd_kernel, args, tensors[0], free, clamp)
    return gradients


register_gradient(
    register(
        "gaussian_kl(Tensor mean, Tensor std, Tensor prior_mean, Tensor prior_std, float free, str clamp)"
        " -> (Tensor, Tensor, Tensor)",
        _gaussian,
        _gaussian_fake,
    ),
    register(
        "gaussian_kl_backward(Tensor d_dyn, Tensor d_rep, Tensor kl, Tensor mean, Tensor std,"
        " Tensor prior_mean, Tensor prior_std, float free, str clamp) -> (Tensor, Tensor, Tensor, Tensor)",
        _gaussian_backward,
        _gaussian_backward_fake,
    ),
    lambda inputs, output: (output[2], *inputs[:4]),
    outputs=2,
)
