"""The two KL losses of categorical latents: both in one pass over the logits, their gradients in one more."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.kl import CLAMPS
from fastdream.ops.native.params import code
from fastdream.ops.params import Clamp
from fastdream.ops.triton.categorical import log_mixed
from fastdream.ops.triton.config import Tile, power_of_two
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
    contiguous,
    empty_like,
    launch,
    register,
    register_gradient,
)
from fastdream.ops.triton.math import load_logits


@triton.jit(do_not_specialize=["M"])
def categorical_kl_fwd_kernel(
    post,  # [M, S, C]
    prior,  # [M, S, C]
    kl,  # [M]
    dyn,  # [M], or [] if clamped after the mean
    rep,  # like dyn
    free,
    M,
    S: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    CLAMP: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BC)[None, :]
    b_kl = tl.zeros([BS, 1], tl.float32)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)[:, None]
        m_x = (o_s < S) & (o_c < C)
        o_x = i_m * (S * C) + o_s * C + o_c
        b_p, b_post = log_mixed(load_logits(post + o_x, m_x, o_c < C), C, UNIMIX)
        _, b_prior = log_mixed(load_logits(prior + o_x, m_x, o_c < C), C, UNIMIX)
        if UNIMIX > 0:
            b_p = b_p * (1 - UNIMIX) + UNIMIX / C
        b_kl += tl.sum(tl.where(m_x, b_p * (b_post - b_prior), 0.0), 1, keep_dims=True)
    store_losses(kl, dyn, rep, i_m, i_m < M, tl.sum(b_kl), free, CLAMP)


@triton.jit(do_not_specialize=["M"])
def categorical_kl_bwd_kernel(
    d_dyn,  # [M], or [] if clamped after the mean
    d_rep,  # like d_dyn
    kl,  # [M]
    post,  # [M, S, C]
    prior,  # [M, S, C]
    d_post,  # [M, S, C]
    d_prior,  # [M, S, C]
    free,
    M,
    S: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    CLAMP: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BC)[None, :]
    b_dyn, b_rep = load_grads(kl, d_dyn, d_rep, i_m, i_m < M, free, CLAMP)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)[:, None]
        m_x = (o_s < S) & (o_c < C)
        o_x = i_m * (S * C) + o_s * C + o_c
        b_p, b_post = log_mixed(load_logits(post + o_x, m_x, o_c < C), C, UNIMIX)
        b_r, b_prior = log_mixed(load_logits(prior + o_x, m_x, o_c < C), C, UNIMIX)

        b_g = (1 - UNIMIX) * tl.where(m_x, b_post - b_prior, 0.0)
        b_g = b_rep * b_p * (b_g - tl.sum(b_p * b_g, 1, keep_dims=True))
        tl.store(d_post + o_x, b_g.to(d_post.dtype.element_ty), mask=m_x)
        if UNIMIX > 0:
            # Of prior's probabilities: minus the ratio of the mixtures.
            b_g = (UNIMIX - 1) * tl.where(m_x, tl.exp(b_post - b_prior), 0.0)
            b_g = b_dyn * b_r * (b_g - tl.sum(b_r * b_g, 1, keep_dims=True))
        else:
            b_g = b_dyn * (b_r - b_p)
        tl.store(d_prior + o_x, b_g.to(d_prior.dtype.element_ty), mask=m_x)


def categorical_kl(
    post: Tensor, prior: Tensor, unimix: float = 0.0, free: float = 1.0, clamp: Clamp = "step"
) -> Pair:
    """As `fastdream.ops.reference.categorical_kl`, float32 or half precision. Differentiable once."""
    code(CLAMPS, clamp, "clamp")
    dyn, rep, _ = torch.ops.fastdream.triton_categorical_kl(post, prior, unimix, free, clamp)
    return dyn, rep


def latent_tile(stoch: int, classes: int) -> Tile:
    """Variables and classes of one row of latents that its program holds at a time."""
    cols = power_of_two(classes)
    rows = min(power_of_two(stoch), max(1, 4096 // cols))
    return Tile(rows, cols, min(8, max(1, rows * cols // 256)))


def _launch_categorical(kernel: Any, args: list[Any], post: Tensor, free: float, **options: Any) -> None:
    *lead, stoch, classes = post.shape
    tile = latent_tile(stoch, classes)
    rows = torch.Size(lead).numel()
    constants = {"S": stoch, "C": classes, "BS": tile.rows, "BC": tile.cols, "num_warps": tile.warps}
    launch(kernel, (rows,), *args, free, rows, **constants, **options)


def _categorical_fake(post: Tensor, prior: Tensor, unimix: float, free: float, clamp: str) -> Losses:
    check_pair("categorical_kl", 2, {"post": post, "prior": prior})
    return losses_of(post, 2, clamp)


def _categorical(post: Tensor, prior: Tensor, unimix: float, free: float, clamp: str) -> Losses:
    dyn, rep, kl = losses = _categorical_fake(post, prior, unimix, free, clamp)
    args = [*contiguous(post, prior), kl, dyn, rep]
    _launch_categorical(categorical_kl_fwd_kernel, args, post, free, UNIMIX=unimix, CLAMP=clamp)
    finish(losses, free, clamp)
    return losses


def _categorical_backward_fake(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, *inputs: Any) -> Pair:
    check_grads("categorical_kl_backward", _categorical_fake(*inputs), d_dyn, d_rep, kl)
    return empty_like(inputs[0]), empty_like(inputs[1])


def _categorical_backward(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, *inputs: Any) -> Pair:
    gradients = _categorical_backward_fake(d_dyn, d_rep, kl, *inputs)
    post, prior, unimix, free, clamp = inputs
    args = [*grads_of(d_dyn, d_rep, kl, free, clamp), *contiguous(kl, post, prior), *gradients]
    _launch_categorical(categorical_kl_bwd_kernel, args, post, free, UNIMIX=unimix, CLAMP=clamp)
    return gradients


register_gradient(
    register(
        "categorical_kl(Tensor post, Tensor prior, float unimix, float free, str clamp)"
        " -> (Tensor, Tensor, Tensor)",
        _categorical,
        _categorical_fake,
    ),
    register(
        "categorical_kl_backward(Tensor d_dyn, Tensor d_rep, Tensor kl, Tensor post, Tensor prior,"
        " float unimix, float free, str clamp) -> (Tensor, Tensor)",
        _categorical_backward,
        _categorical_backward_fake,
    ),
    lambda inputs, output: (output[2], *inputs[:2]),
    outputs=2,
)
