"""LaProp with adaptive gradient clipping, over lists of tensors, in place and without a host sync."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdream.ops.reference.layers import upcast


def _clipped(params: list[Tensor], grads: list[Tensor], agc: float, pmin: float) -> list[Tensor]:
    """grads / max(1, |grad| / (agc * max(pmin, |param|))), L2 norms of whole tensors."""
    grad_norm = torch.stack(torch._foreach_norm(grads))
    param_norm = torch.stack(torch._foreach_norm(params))
    factor = 1 / (grad_norm / (agc * param_norm.clamp_min(pmin))).clamp_min(1)
    return list(torch._foreach_mul(grads, list(factor.unbind())))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).norm()


@torch.no_grad()
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
) -> tuple[Tensor, Tensor, Tensor]:
    """One LaProp step of params, nu and mu, in place; grads are only read.

    Returns three L2 norms over all tensors, 0-d: of the update, of the gradients as they came, and of the
    parameters after the step. Whoever passes over all of this anyway computes them for nothing.

    params, grads, nu, mu: equally long lists of equally shaped tensors (float32; float64 works; any of the
    gradients may be in half precision). nu is the running mean square, mu the running mean of normalised
    gradients, both 0 at start. step: 0-d int64, already incremented, so 1 in the first call. lr: a float or
    0-d tensor.

    1. agc > 0: grad /= max(1, |grad| / (agc * max(pmin, |param|))), per tensor.
    2. nu = beta2 * nu + (1 - beta2) * grad^2;  grad /= sqrt(nu / (1 - beta2^step)) + eps.
    3. momentum: mu = beta1 * mu + (1 - beta1) * grad;  grad = mu / (1 - beta1^step)
       (nesterov: beta1 * mu + (1 - beta1) * grad in the place of mu).
    4. decay: grad += decay * param, where decay_mask is True (None: everywhere).
    5. param -= lr * grad.

    Source: LaProp (Ziyin et al. 2020) and AGC (Brock et al. 2021) as in DreamerV3 `opt.py`.
    """
    dtype = params[0].dtype
    grads = [upcast(g) for g in grads]
    grad_norm = _norm(grads)
    count = step.double()  # 1 - 0.999^1 in float32 would be off by 1e-5 of itself
    if agc:
        grads = _clipped(params, grads, agc, pmin)
    torch._foreach_mul_(nu, beta2)
    torch._foreach_addcmul_(nu, grads, grads, 1 - beta2)
    denom = torch._foreach_sqrt(nu)
    torch._foreach_mul_(denom, (1 - beta2**count).rsqrt().to(dtype))
    torch._foreach_add_(denom, eps)
    update = torch._foreach_div(grads, denom)
    if momentum:
        torch._foreach_lerp_(mu, update, 1 - beta1)
        mean = torch._foreach_lerp(mu, update, 1 - beta1) if nesterov else mu
        update = torch._foreach_mul(mean, (1 / (1 - beta1**count)).to(dtype))
    if decay:
        mask = [True] * len(params) if decay_mask is None else decay_mask
        decayed = [u for u, keep in zip(update, mask, strict=True) if keep]
        torch._foreach_add_(decayed, [p for p, keep in zip(params, mask, strict=True) if keep], alpha=decay)
    torch._foreach_mul_(update, -lr.to(dtype) if isinstance(lr, Tensor) else -lr)
    torch._foreach_add_(params, update)
    return _norm(update), grad_norm, _norm(params)
