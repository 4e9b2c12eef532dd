"""The step of r2dreamer's LaProp, whose means carry the learning rates that they were made with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdream.integrations.patching import table_of


@torch.no_grad()
def step(old: Callable[[Any], None], optimizer: Any) -> None:
    """One step of all parameters in one op; their own where settings or states are none that the op has.

    Their mean m = beta1 * m + (1 - beta1) * lr * grad, the op's is m / lr of today; their step is m * lr / rates, where
    rates is the mean of the learning rates, 1 - beta1^step of today's where it never changed.
    """
    groups = [_served(optimizer, group) for group in optimizer.param_groups]
    if any(params is None for params in groups):
        return old(optimizer)
    for group, params in zip(optimizer.param_groups, groups, strict=True):
        if params:
            _update(group, params, [optimizer.state[p] for p in params])


def _served(optimizer: Any, group: dict[str, Any]) -> list[Tensor] | None:
    """The parameters of a group that have a gradient, or None where the op does not compute what it asks for."""
    params = [p for p in group["params"] if p.grad is not None]
    states = [optimizer.state[p] for p in params]
    steps = {(s["step"], s["exp_avg_lr_1"], s["exp_avg_lr_2"]) if s else () for s in states}
    plain = not (group["amsgrad"] or group["centered"] or group["weight_decay"])
    dense = all(p.dtype == torch.float32 and not p.grad.is_sparse for p in params)
    alike = len(steps) < 2 and len({p.device for p in params}) < 2
    if not (plain and dense and alike and group["lr"]):
        return None
    for p, state in zip(params, states, strict=True):
        if not state:
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state.update(step=0, exp_avg_lr_1=0.0, exp_avg_lr_2=0.0, **moments)
    return params


def _update(group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> None:
    (beta1, beta2), lr = group["betas"], group["lr"]
    for state in states:
        state["step"] += 1
        state["exp_avg_lr_1"] = state["exp_avg_lr_1"] * beta1 + (1 - beta1) * lr
        state["exp_avg_lr_2"] = state["exp_avg_lr_2"] * beta2 + (1 - beta2)
    count, rates = states[0]["step"], states[0]["exp_avg_lr_1"]
    mean, square = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    torch._foreach_mul_(mean, 1 / lr)
    table_of(params[0].device).laprop_(
        _dense(params),
        _dense([p.grad for p in params if p.grad is not None]),
        _dense(square),
        _dense(mean),
        torch.tensor(count, device=params[0].device),
        lr * lr * (1 - beta1**count) / rates,
        agc=0.0,
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
    )
    torch._foreach_mul_(mean, lr)


def _dense(tensors: list[Tensor]) -> list[Tensor]:
    """Views whose order of axes is that of memory, where the three axes of blocks are turned."""
    return [x.detach().permute(2, 1, 0) if x.dim() == 3 else x.detach() for x in tensors]
