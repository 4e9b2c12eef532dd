"""Regression over bins: two-hot cross-entropy and mean."""

import math

from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.native.library import check_float, check_shape, empty_like
from fastdream.ops.native.registry import call, register_gradient, register_kernel
from fastdream.ops.reference.twohot import Form

FORMS = ("symexp", "symlog")

Pair = tuple[Tensor, Tensor]


def twohot_loss(logit: Tensor, target: Tensor, bins: Tensor, form: Form = "symexp") -> Tensor:
    """As `fastdream.ops.reference.twohot_loss`, float32 or float64. Differentiable once, in logit."""
    target = target.detach().to(bins.dtype)
    return call("twohot_loss", logit, target, bins, in_symlog(form))[0]


def twohot_mean(logit: Tensor, bins: Tensor, form: Form = "symexp") -> Tensor:
    """As `fastdream.ops.reference.twohot_mean`, float32 or float64. Differentiable once, in logit."""
    return call("twohot_mean", logit, bins, in_symlog(form))


def critic_loss(
    logit: Tensor,
    target: Tensor,
    slow: Tensor,
    weight: Tensor,
    slowreg: float,
    bins: Tensor,
    form: Form = "symexp",
) -> Tensor:
    """As `fastdream.ops.reference.critic_loss`, float32 or float64. Differentiable once, in logit."""
    return reference.critic_loss(logit, target, slow, weight, slowreg, bins, form, twohot_loss)


def in_symlog(form: Form) -> bool:
    """Whether bins are in symlog space; ValueError for a form that does not exist."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r} of two-hot bins; choose symexp or symlog")
    return form == "symlog"


def _check(op: str, logit: Tensor, bins: Tensor, **others: Tensor) -> None:
    check_float(op, logit=logit, bins=bins, **others)
    if bins.dim() != 1 or bins.shape[0] < 2:
        raise ValueError(f"{op}: bins has shape {list(bins.shape)}, expected [K] with K at least 2")
    if logit.dim() < 1 or logit.shape[-1] != bins.shape[0]:
        raise ValueError(f"{op}: logit has shape {list(logit.shape)}, expected [..., {bins.shape[0]}]")


def check_target(op: str, logit: Tensor, target: Tensor) -> None:
    """Several targets of the same logits have further axes in front."""
    rows = logit.shape[:-1]
    if target.dim() < len(rows) or target.shape[target.dim() - len(rows) :] != rows:
        raise ValueError(f"{op}: target has shape {list(target.shape)}, expected [..., *{list(rows)}]")


def _loss_fake(logit: Tensor, target: Tensor, bins: Tensor, in_symlog: bool) -> Pair:
    _check("twohot_loss", logit, bins, target=target)
    check_target("twohot_loss", logit, target)
    return empty_like(target), logit.new_empty(logit.shape[:-1])


def _loss_backward_fake(
    grad: Tensor, logit: Tensor, target: Tensor, bins: Tensor, norm: Tensor, in_symlog: bool
) -> Tensor:
    op = "twohot_loss_backward"
    _check(op, logit, bins, grad=grad, target=target, norm=norm)
    check_target(op, logit, target)
    check_shape(op, "grad", grad, *target.shape)
    check_shape(op, "norm", norm, *logit.shape[:-1])
    return empty_like(logit)


def _loss_sizes(logit: Tensor, target: Tensor, in_symlog: bool) -> tuple[int, ...]:
    axes = target.dim() - logit.dim() + 1
    return math.prod(logit.shape[:-1]), logit.shape[-1], math.prod(target.shape[:axes]), int(in_symlog)


register_gradient(
    register_kernel(
        "twohot_loss(Tensor logit, Tensor target, Tensor bins, bool in_symlog) -> (Tensor, Tensor)",
        _loss_fake,
        lambda logit, target, bins, in_symlog: _loss_sizes(logit, target, in_symlog),
    ),
    register_kernel(
        "twohot_loss_backward(Tensor grad, Tensor logit, Tensor target, Tensor bins, Tensor norm,"
        " bool in_symlog) -> Tensor",
        _loss_backward_fake,
        lambda grad, logit, target, bins, norm, in_symlog: _loss_sizes(logit, target, in_symlog),
    ),
    lambda inputs, output: (*inputs[:3], output[1]),
)


def _mean_fake(logit: Tensor, bins: Tensor, in_symlog: bool) -> Tensor:
    _check("twohot_mean", logit, bins)
    return logit.new_empty(logit.shape[:-1])


def _mean_backward_fake(grad: Tensor, logit: Tensor, bins: Tensor, in_symlog: bool) -> Tensor:
    _check("twohot_mean_backward", logit, bins, grad=grad)
    check_shape("twohot_mean_backward", "grad", grad, *logit.shape[:-1])
    return empty_like(logit)


def _mean_sizes(logit: Tensor, in_symlog: bool) -> tuple[int, ...]:
    return math.prod(logit.shape[:-1]), logit.shape[-1], int(in_symlog)


register_gradient(
    register_kernel(
        "twohot_mean(Tensor logit, Tensor bins, bool in_symlog) -> Tensor",
        _mean_fake,
        lambda logit, bins, in_symlog: _mean_sizes(logit, in_symlog),
    ),
    register_kernel(
        "twohot_mean_backward(Tensor grad, Tensor logit, Tensor bins, bool in_symlog) -> Tensor",
        _mean_backward_fake,
        lambda grad, logit, bins, in_symlog: _mean_sizes(logit, in_symlog),
    ),
    lambda inputs, output: inputs[:2],
)
