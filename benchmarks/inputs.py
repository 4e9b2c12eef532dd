"""What ops are called with: random numbers from fixed seeds."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops import Actor

from .shapes import Shape


class Call(NamedTuple):
    """Arguments of an op. `flops` of one forward call, `bytes` if it moves something else than what goes in and out."""

    args: tuple
    flops: int = 0
    kwargs: dict[str, Any] = {}
    bytes: int | None = None


class Source:
    """Draws inputs from one seed; those that are differentiated are leaves with gradient."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *dims: int, grad: bool = True) -> Tensor:
        return torch.randn(dims, generator=self.generator).requires_grad_(grad)

    def uniform(self, *dims: int, grad: bool = False) -> Tensor:
        return torch.rand(dims, generator=self.generator).requires_grad_(grad)

    def state(self, s: Shape, rows: int) -> tuple[Tensor, Tensor]:
        """deter [rows, D], stoch [rows, S, C] one-hot or [rows, S]."""
        deter = self.normal(rows, s.deter).detach().tanh().requires_grad_()
        if not s.classes:
            return deter, self.normal(rows, s.stoch)
        index = torch.randint(s.classes, (rows, s.stoch), generator=self.generator)
        return deter, torch.nn.functional.one_hot(index, s.classes).float().requires_grad_()

    def noise(self, s: Shape, *lead: int) -> Tensor:
        """What draws the latents [*lead, S]."""
        return self.uniform(*lead, s.stoch) if s.classes else self.normal(*lead, s.stoch, grad=False)

    def action_noise(self, actor: Actor, *lead: int) -> Tensor:
        """What draws the actions [*lead, M] of an actor with one key."""
        (head,) = actor.heads
        normal = head.kind in ("bounded_normal", "tanh_normal")
        return self.normal(*lead, head.elements, grad=False) if normal else self.uniform(*lead, head.elements)

    def resets(self, *dims: int) -> Tensor:
        """An episode's start every 50 steps or so."""
        return self.uniform(*dims) < 0.02
