"""The two KL losses of latents, categorical and Gaussian."""

import math
from typing import Any

from torch import Tensor

from fastdream.ops.native.library import check_alike, check_float, check_shape, empty_like
from fastdream.ops.native.params import code
from fastdream.ops.native.registry import call, register_gradient, register_kernel
from fastdream.ops.params import Clamp

CLAMPS = ("step", "mean", "none")  # in the order of csrc/cpu/free_nats.h

Pair = tuple[Tensor, Tensor]
Losses = tuple[Tensor, Tensor, Tensor]  # dyn, rep, and the KL before its clamping, which their gradients need


def categorical_kl(
    post: Tensor, prior: Tensor, unimix: float = 0.0, free: float = 1.0, clamp: Clamp = "step"
) -> Pair:
    """As `fastdream.ops.reference.categorical_kl`, post and prior float32 or float64. Differentiable once."""
    dyn, rep, _ = call("categorical_kl", post, prior, unimix, free, code(CLAMPS, clamp, "clamp"))
    return dyn, rep


def gaussian_kl(post: Pair, prior: Pair, free: float = 3.0, clamp: Clamp = "mean") -> Pair:
    """As `fastdream.ops.reference.gaussian_kl`, of four tensors float32 or float64. Differentiable once."""
    dyn, rep, _ = call("gaussian_kl", *post, *prior, free, code(CLAMPS, clamp, "clamp"))
    return dyn, rep


def _losses(x: Tensor, event: int, clamp: int) -> Losses:
    rows = x.shape[: x.dim() - event]
    shape = () if CLAMPS[clamp] == "mean" else rows
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(rows)


def _check_grads(op: str, expected: Losses, *given: Tensor) -> None:
    names = "d_dyn", "d_rep", "kl"
    check_float(op, like=expected[0], **dict(zip(names, given, strict=True)))
    for name, x, wanted in zip(names, given, expected, strict=True):
        check_shape(op, name, x, *wanted.shape)


def _categorical_fake(post: Tensor, prior: Tensor, unimix: float, free: float, clamp: int) -> Losses:
    check_alike("categorical_kl", 2, post=post, prior=prior)
    if post.shape[-1] < 1:
        raise ValueError(f"categorical_kl: post has shape {list(post.shape)}, expected classes")
    return _losses(post, 2, clamp)


def _categorical_backward_fake(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, *inputs: Any) -> Pair:
    _check_grads("categorical_kl_backward", _categorical_fake(*inputs), d_dyn, d_rep, kl)
    return empty_like(inputs[0]), empty_like(inputs[1])


def _categorical_sizes(post: Tensor, clamp: int) -> tuple[int, ...]:
    return math.prod(post.shape[:-2]), *post.shape[-2:], clamp


register_gradient(
    register_kernel(
        "categorical_kl(Tensor post, Tensor prior, float unimix, float free, int clamp)"
        " -> (Tensor, Tensor, Tensor)",
        _categorical_fake,
        lambda post, prior, unimix, free, clamp: _categorical_sizes(post, clamp),
    ),
    register_kernel(
        "categorical_kl_backward(Tensor d_dyn, Tensor d_rep, Tensor kl, Tensor post, Tensor prior,"
        " float unimix, float free, int clamp) -> (Tensor, Tensor)",
        _categorical_backward_fake,
        lambda d_dyn, d_rep, kl, post, prior, unimix, free, clamp: _categorical_sizes(post, clamp),
    ),
    lambda inputs, output: (output[2], *inputs[:2]),
    outputs=2,
)


def _gaussian_fake(
    mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor, free: float, clamp: int
) -> Losses:
    names = "post mean", "post std", "prior mean", "prior std"
    check_alike("gaussian_kl", 1, **dict(zip(names, (mean, std, prior_mean, prior_std), strict=True)))
    return _losses(mean, 1, clamp)


def _gaussian_backward_fake(d_dyn: Tensor, d_rep: Tensor, kl: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    _check_grads("gaussian_kl_backward", _gaussian_fake(*inputs), d_dyn, d_rep, kl)
    return tuple(empty_like(x) for x in inputs[:4])


def _gaussian_sizes(mean: Tensor, clamp: int) -> tuple[int, ...]:
    return math.prod(mean.shape[:-1]), mean.shape[-1], clamp


register_gradient(
    register_kernel(
        "gaussian_kl(Tensor mean, Tensor std, Tensor prior_mean, Tensor prior_std, float free, int clamp)"
        " -> (Tensor, Tensor, Tensor)",
        _gaussian_fake,
        lambda mean, *rest: _gaussian_sizes(mean, rest[-1]),
    ),
    register_kernel(
        "gaussian_kl_backward(Tensor d_dyn, Tensor d_rep, Tensor kl, Tensor mean, Tensor std,"
        " Tensor prior_mean, Tensor prior_std, float free, int clamp) -> (Tensor, Tensor, Tensor, Tensor)",
        _gaussian_backward_fake,
        lambda d_dyn, d_rep, kl, mean, *rest: _gaussian_sizes(mean, rest[-1]),
    ),
    lambda inputs, output: (output[2], *inputs[:4]),
    outputs=2,
)
