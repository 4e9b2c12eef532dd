"""The optimiser step of all tensors in one call."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.library import check_float, check_shape, run
from fastdream.ops.native.registry import register
from fastdream.ops.reference.layers import upcast

Norms = tuple[Tensor, Tensor, Tensor]
HALVES = (torch.bfloat16, torch.float16)


def laprop_(
    params: list[Tensor],
    grads: list[Tensor],
    nu: list[Tensor],
    mu: list[Tensor],
    step: Tensor,
    lr: Tensor | float,
    agc: float = 0.3,
    pmin: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-20,
    decay: float = 0.0,
    decay_mask: list[bool] | None = None,
    momentum: bool = True,
    nesterov: bool = False,
) -> Norms:
    """As `fastdream.ops.reference.laprop_`, of tensors float32 or float64."""
    rate, mask = rate_and_mask(params, lr, decay_mask)
    with torch.no_grad():
        return torch.ops.fastdream.laprop_(
            params, grads, nu, mu, step, rate, agc, pmin, beta1, beta2, eps, decay, mask, momentum, nesterov
        )


Tensors = Sequence[Tensor]


class Settings(NamedTuple):
    """What the op is told beside tensors, as in its schema."""

    agc: float
    pmin: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    decay_mask: Sequence[bool]
    momentum: bool
    nesterov: bool


def rate_and_mask(
    params: Tensors, lr: Tensor | float, decay_mask: Sequence[bool] | None
) -> tuple[Tensor, list[bool]]:
    """The learning rate as a tensor, and a flag for each parameter."""
    if not params:
        raise ValueError("laprop_: params is empty")
    rate = lr.to(params[0].dtype) if isinstance(lr, Tensor) else params[0].new_full((), lr)
    mask = [True] * len(params) if decay_mask is None else list(decay_mask)
    if len(mask) != len(params):
        raise ValueError(f"laprop_: decay_mask has {len(mask)} entries, expected {len(params)} like params")
    return rate, mask


def check_laprop(
    params: Tensors, grads: Tensors, nu: Tensors, mu: Tensors, step: Tensor, lr: Tensor, *_: object
) -> Norms:
    """Fresh tensors for the norms; ValueError names what does not fit."""
    first = params[0]
    groups = {"params": params, "grads": grads, "nu": nu, "mu": mu}
    for name, tensors in groups.items():
        if len(tensors) != len(params):
            raise ValueError(
                f"laprop_: {name} has {len(tensors)} tensors, expected {len(params)} like params"
            )
        for i, (x, param) in enumerate(zip(tensors, params, strict=True)):
            # There are hundreds: what could be wrong is put into words only if something is.
            half = name == "grads" and x.dtype in HALVES and first.dtype == torch.float32
            if x.shape != param.shape or not (half or x.dtype == first.dtype) or x.device != first.device:
                check_float("laprop_", params=first, **{f"{name}[{i}]": x})
                check_shape("laprop_", f"{name}[{i}]", x, *param.shape)
    check_float("laprop_", params=first, lr=lr)
    check_shape("laprop_", "lr", lr)
    check_shape("laprop_", "step", step)
    if step.dtype != torch.int64:
        raise ValueError(f"laprop_: step is {step.dtype}, expected torch.int64")
    update, grad, param = (first.new_empty(()) for _ in range(3))
    return update, grad, param


def _kernel(
    params: Tensors,
    grads: Tensors,
    nu: Tensors,
    mu: Tensors,
    step: Tensor,
    lr: Tensor,
    *settings: Any,
) -> Norms:
    norms, s = check_laprop(params, grads, nu, mu, step, lr), Settings(*settings)
    dense = [[upcast(x).contiguous() for x in tensors] for tensors in (params, grads, nu, mu)]
    sizes = len(params), *(x.numel() for x in params), *map(int, (*s.decay_mask, s.momentum, s.nesterov))
    run("laprop_", (*chain(*dense), step, lr, *norms), sizes, s[:6])
    write_back(chain(params, nu, mu), chain(dense[0], *dense[2:]))
    return norms


def write_back(tensors: Iterable[Tensor], results: Iterable[Tensor]) -> None:
    """Results, which may be contiguous copies, into the tensors that an op changes in place."""
    written = list(tensors)
    for x, result in zip(written, results, strict=True):
        if result is not x:
            x.copy_(result)
    torch.autograd.graph.increment_version(written)


SCHEMA = (
    "laprop_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] nu, Tensor(c!)[] mu, Tensor step, Tensor lr,"
    " float agc, float pmin, float beta1, float beta2, float eps, float decay, bool[] decay_mask,"
    " bool momentum, bool nesterov) -> (Tensor, Tensor, Tensor)"
)
register(SCHEMA, _kernel, check_laprop)
