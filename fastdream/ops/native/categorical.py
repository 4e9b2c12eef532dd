"""Samples of categorical latents and actions."""

import torch
from torch import Tensor

from fastdream.ops.native.library import check_float, check_shape, empty_like, rows_of
from fastdream.ops.native.registry import call, register_gradient, register_kernel

Pair = tuple[Tensor, Tensor]


def check_index(op: str, index: Tensor | None, classes: int) -> None:
    """ValueError unless every index is a class: kernels read and write where it says."""
    if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < classes:
        raise ValueError(f"{op}: index has entries outside of 0 ... {classes - 1}")


def categorical_sample(
    logit: Tensor, noise: Tensor | None, unimix: float = 0.0, index: Tensor | None = None
) -> Pair:
    """As `fastdream.ops.reference.categorical_sample`, logit float32 or float64. Differentiable once, in logit."""
    if index is not None:
        noise = None
    elif noise is None:
        raise ValueError("categorical_sample needs noise to draw with, or the index of an earlier draw")
    return call("categorical_sample", logit, _like(noise, logit), as_long(index), unimix)


def gumbel_sample(
    logit: Tensor, noise: Tensor, unimix: float = 0.0, index: Tensor | None = None, tau: float = 1.0
) -> Pair:
    """As `fastdream.ops.reference.gumbel_sample`, logit float32 or float64. Differentiable once, in logit."""
    return call("gumbel_sample", logit, _like(noise, logit), as_long(index), unimix, tau)


def _like(noise: Tensor | None, logit: Tensor) -> Tensor | None:
    """The noise in the logits' dtype: kernels know one floating-point type at a time."""
    return noise if noise is None or noise.dtype == logit.dtype else noise.detach().to(logit.dtype)


def as_long(index: Tensor | None) -> Tensor | None:
    return index if index is None or index.dtype == torch.int64 else index.long()


def _check(op: str, logit: Tensor, one: dict[str, Tensor | None], every: dict[str, Tensor]) -> None:
    """logit [..., C], with one number a draw [...] of some, and as many as there are classes of others."""
    given = {name: x for name, x in one.items() if x is not None}
    check_float(op, logit=logit, **every, **{name: x for name, x in given.items() if name != "index"})
    if logit.dim() < 1 or logit.shape[-1] < 1:
        raise ValueError(f"{op}: logit has shape {list(logit.shape)}, expected [..., C] with C at least 1")
    for name, x in given.items():
        check_shape(op, name, x, *logit.shape[:-1])
    for name, x in every.items():
        check_shape(op, name, x, *logit.shape)


def drawn_like(logit: Tensor) -> Pair:
    return empty_like(logit), logit.new_empty(logit.shape[:-1], dtype=torch.int64)


def _sample_fake(logit: Tensor, noise: Tensor | None, index: Tensor | None, unimix: float) -> Pair:
    _check("categorical_sample", logit, {"noise": noise, "index": index}, {})
    return drawn_like(logit)


def _sample_backward_fake(grad: Tensor, logit: Tensor, unimix: float) -> Tensor:
    _check("categorical_sample_backward", logit, {}, {"grad": grad})
    return empty_like(logit)


register_gradient(
    register_kernel(
        "categorical_sample(Tensor logit, Tensor? noise, Tensor? index, float unimix) -> (Tensor, Tensor)",
        _sample_fake,
        lambda logit, *_: rows_of(logit),
    ),
    register_kernel(
        "categorical_sample_backward(Tensor grad, Tensor logit, float unimix) -> Tensor",
        _sample_backward_fake,
        lambda grad, *_: rows_of(grad),
    ),
    lambda inputs, output: inputs[:1],
)


def _gumbel_fake(logit: Tensor, noise: Tensor, index: Tensor | None, unimix: float, tau: float) -> Pair:
    _check("gumbel_sample", logit, {"index": index}, {"noise": noise})
    return drawn_like(logit)


def _gumbel_backward_fake(grad: Tensor, logit: Tensor, noise: Tensor, unimix: float, tau: float) -> Tensor:
    _check("gumbel_sample_backward", logit, {}, {"grad": grad, "noise": noise})
    return empty_like(logit)


register_gradient(
    register_kernel(
        "gumbel_sample(Tensor logit, Tensor noise, Tensor? index, float unimix, float tau) -> (Tensor, Tensor)",
        _gumbel_fake,
        lambda logit, *_: rows_of(logit),
    ),
    register_kernel(
        "gumbel_sample_backward(Tensor grad, Tensor logit, Tensor noise, float unimix, float tau) -> Tensor",
        _gumbel_backward_fake,
        lambda grad, *_: rows_of(grad),
    ),
    lambda inputs, output: inputs[:2],
)
