"""LaProp with adaptive gradient clipping, and its learning-rate schedules: DreamerV3's one optimiser."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastdream.ops import Ops


@dataclass(frozen=True)
class OptConfig:
    """Optimiser: adaptive gradient clipping, RMS scaling, momentum (LaProp), weight decay, schedule."""

    lr: float = 4e-5
    """Learning rate."""
    agc: float = 0.3
    """Clip each tensor's gradient to this share of the norm of its parameters; 0 does not clip."""
    eps: float = 1e-20
    """Added to the root mean square of the gradient."""
    beta1: float = 0.9
    """Decay of the momentum."""
    beta2: float = 0.999
    """Decay of the mean square."""
    momentum: bool = True
    """Average the scaled gradients."""
    nesterov: bool = False
    """Look one step ahead with the momentum."""
    wd: float = 0.0
    """Weight decay, of weights only: biases and norm scales are left alone."""
    schedule: Literal["const", "linear", "cosine"] = "const"
    """Learning rate after the warm-up."""
    warmup: int = 1000
    """Updates over which the learning rate rises from 0."""
    anneal: int = 0
    """Updates at whose end a linear or cosine schedule has fallen."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} is not positive")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")
        for name in ("agc", "eps", "wd", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")
        if self.schedule != "const" and self.anneal <= self.warmup:
            raise ValueError(
                f"schedule={self.schedule} needs anneal > warmup, got {self.anneal}, {self.warmup}"
            )


class Optimiser:
    """Parameters by name, running means for each of them, and the number of steps, all on the device.

    What is frozen, by `requires_grad_(False)`, stays as it is; not all may be.

    means   what the running means are called.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], *means: str) -> None:
        self.names, self.params = list(params), list(params.values())
        self.means = {name: [torch.zeros_like(p) for p in self.params] for name in means}
        self.leaves: list[Tensor] = list(self.params)  # what has the gradients
        self.count = torch.zeros((), dtype=torch.int64, device=self.params[0].device)

    @property
    def param_count(self) -> int:
        return sum(p.numel() for p in self.params)

    def clear(self) -> None:
        """Forget all gradients: after a step, and before a loss, as someone else may have left some.

        Raises ValueError if everything is frozen, as the loss then has no gradient at all.
        """
        if not any(p.requires_grad for p in self.params):
            raise ValueError(
                f"all {len(self.params)} parameters that are learned together are frozen, {self.names[0]} and others: "
                "leave some of them as they are (requires_grad_(True))"
            )
        for leaf in self.leaves:
            leaf.grad = None

    def learning(self) -> list[int]:
        """Places of the parameters that are not frozen, all of which have a gradient."""
        places = [i for i, p in enumerate(self.params) if p.requires_grad]
        missing = [self.names[i] for i in places if self.leaves[i].grad is None]
        assert not missing, f"no gradient reached {missing}"
        return places

    def gradients(self, places: Iterable[int]) -> list[Tensor]:
        """Those of the parameters in these places that have one."""
        grads = (self.leaves[i].grad for i in places)
        return [x for x in grads if x is not None]

    def state_dict(self) -> dict[str, Any]:
        """Running means by parameter name, and the number of steps."""
        means = {name: dict(zip(self.names, mean, strict=True)) for name, mean in self.means.items()}
        return means | {"count": self.count}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a state of the same parameters into place."""
        for mean, ours in self.means.items():
            saved = state[mean]
            known = {name: x.shape for name, x in zip(self.names, ours, strict=True)}
            found = {name: x.shape for name, x in saved.items()}
            if other := sorted({name for name, _ in known.items() ^ found.items()}):
                raise ValueError(f"optimiser state is of other parameters: {other}")
            for name, tensor in zip(self.names, ours, strict=True):
                tensor.copy_(saved[name])
        self.count.copy_(state["count"])


class LaProp(Optimiser):
    """AGC, then RMS scaling, then momentum, then decay, one fused update over all tensors (Ziyin et al. 2020).

    params: official-style names to parameters; only names that end in `weight` are decayed.
    leaf: what has a parameter's gradient, in any dtype, if that is not the parameter itself.
    """

    def __init__(
        self,
        ops: Ops,
        params: Mapping[str, nn.Parameter],
        config: OptConfig,
        leaf: Callable[[Tensor], Tensor] = lambda parameter: parameter,
    ) -> None:
        super().__init__(params, "nu", "mu")
        self.ops, self.config = ops, config
        self.nu, self.mu = self.means.values()
        self.leaves = [leaf(p) for p in self.params]
        self.decay_mask = [name.endswith("weight") for name in self.names]

    @torch.no_grad()
    def step(self) -> dict[str, Tensor]:
        """Apply and clear the gradients; all that is not frozen must have one. Returns metrics, 0-d tensors."""
        config, places, lr = self.config, self.learning(), self.learning_rate()
        self.count += 1
        update_norm, grad_norm, param_norm = self.ops.laprop_(
            [self.params[i] for i in places],
            self.gradients(places),
            [self.nu[i] for i in places],
            [self.mu[i] for i in places],
            self.count,
            lr,
            agc=config.agc,
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            decay=config.wd,
            decay_mask=[self.decay_mask[i] for i in places],
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
        self.clear()
        norms = grad_norm, update_norm, param_norm
        rms = torch._foreach_div(norms, math.sqrt(self.param_count))
        named = dict(zip(("grad_rms", "update_rms", "param_rms"), rms, strict=True))
        return {"updates": self.count.clone(), "grad_norm": grad_norm} | named | {"lr": lr}

    def learning_rate(self) -> Tensor:
        """Learning rate of the coming update, 0-d float32 on the device.

        The cosine falls to 0.1 lr^2, not 0.1 lr: the official code hands the schedule an absolute floor where a
        relative one is expected. Kept, because its published curves have it.
        """
        config = self.config
        if config.schedule == "const" and config.warmup:
            return (config.lr * self.count / config.warmup).clamp(max=config.lr)
        t = self.count.float()
        lr = torch.full_like(t, config.lr)
        if config.schedule != "const":
            done = ((t - config.warmup) / (config.anneal - config.warmup)).clamp(0, 1)
            if config.schedule == "linear":
                lr = lr + (0.1 * config.lr - config.lr) * done
            else:
                floor = 0.1 * config.lr
                lr = lr * ((1 - floor) * 0.5 * (1 + torch.cos(math.pi * done)) + floor)
        if config.warmup:
            lr = torch.where(t < config.warmup, config.lr * t / config.warmup, lr)
        return lr
