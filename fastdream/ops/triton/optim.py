"""LaProp with adaptive gradient clipping of all tensors: four launches, whatever their number, without a host sync."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.optim import (
    HALVES,
    SCHEMA,
    Norms,
    Settings,
    check_laprop,
    rate_and_mask,
    write_back,
)
from fastdream.ops.triton.library import launch, register
from fastdream.ops.triton.optim_kernels import (
    TYPES,
    factors_kernel,
    laprop_kernel,
    norms_kernel,
    square_sums_kernel,
)
from fastdream.ops.triton.pointers import addresses, flags, pieces

PIECE = 8192  # elements of a tensor that one program updates
BLOCK = 1024  # of these, at a time

Tensors = Sequence[Tensor]


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
    """As `fastdream.ops.reference.laprop_`, of tensors in float32; gradients may be in one type of half precision.

    Call it once before a graph is captured: tables of the tensors' sizes are made then.
    """
    rate, mask = rate_and_mask(params, lr, decay_mask)
    with torch.no_grad():
        return torch.ops.fastdream.triton_laprop_(
            params, grads, nu, mu, step, rate, agc, pmin, beta1, beta2, eps, decay, mask, momentum, nesterov
        )


def _fake(
    params: Tensors, grads: Tensors, nu: Tensors, mu: Tensors, step: Tensor, lr: Tensor, *_: object
) -> Norms:
    if params[0].dtype != torch.float32:
        raise ValueError(f"laprop_: params is {params[0].dtype}, expected torch.float32")
    if step.device != params[0].device:
        raise ValueError(f"laprop_: step has device {step.device}, expected {params[0].device} like params")
    if len(set(_halves(grads))) > 1:
        raise ValueError("laprop_: grads are of both types of half precision, expected one")
    return check_laprop(params, grads, nu, mu, step, lr)


def _halves(grads: Tensors) -> list[torch.dtype]:
    return [g.dtype for g in grads if g.dtype in HALVES]


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -1e4  # whose powers are 0


def _kernel(
    params: Tensors,
    grads: Tensors,
    nu: Tensors,
    mu: Tensors,
    step: Tensor,
    lr: Tensor,
    *settings: Any,
) -> Norms:
    norms, s = _fake(params, grads, nu, mu, step, lr), Settings(*settings)
    dense = [[x.contiguous() for x in tensors] for tensors in (params, nu, mu, grads)]
    changed, device, count = [*chain(*dense[:3])], params[0].device, len(params)
    owner, begin, sizes, first = pieces(tuple(x.numel() for x in params), PIECE, device)
    total = len(owner)
    tables = addresses(changed), addresses(dense[3])
    factor, square = params[0].new_empty(2, count).unbind()
    of_inputs, of_results = params[0].new_empty(2, 2, total).unbind()
    blocks = {
        "ALIGNED": all(x.data_ptr() % 16 == 0 for x in chain(changed, dense[3])),
        "HALF": next((TYPES[half] for half in _halves(grads)), None),
        "PIECE": PIECE,
        "BLOCK": BLOCK,
        "num_warps": 4,
    }
    where = owner, begin, sizes, flags(tuple(g.dtype in HALVES for g in grads), device)
    launch(square_sums_kernel, (total,), *tables, *where, of_inputs, count, **blocks)
    launch(
        factors_kernel,
        (count,),
        of_inputs,
        first,
        factor,
        square,
        s.agc,
        s.pmin,
        total,
        AGC=s.agc > 0,
        BLOCK=BLOCK,
        num_warps=4,
    )
    numbers = s.beta1, s.beta2, _log(s.beta1), _log(s.beta2), s.eps, s.decay
    mask = flags(tuple(s.decay_mask), device)
    launch(
        laprop_kernel,
        (total,),
        *tables,
        *where,
        factor,
        mask,
        step,
        lr,
        of_results,
        *numbers,
        count,
        MOMENTUM=s.momentum,
        NESTEROV=s.nesterov,
        **blocks,
    )
    launch(norms_kernel, (1,), square, of_results, *norms, count, total, BLOCK=BLOCK, num_warps=4)
    write_back(chain(params, nu, mu), changed)
    return norms


register(SCHEMA, _kernel, _fake)
