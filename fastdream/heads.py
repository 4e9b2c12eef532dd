"""Predictions from the latent state: rewards, continuation, values and others.

Every head is an MLP named `mlp` and a linear output named `head.<name>`. `forward` gives raw outputs in the
dtype of its input; `pred` and `loss` work on them in float32. Losses are summed over the elements of an entry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdream.distributions import sum_event, unit_normal_loss
from fastdream.nets import MLP, Children, Dense, layers_of
from fastdream.ops import Ops, twohot_bins
from fastdream.ops.params import Act, Feat, Layers, Norm, frozen
from fastdream.ops.reference.layers import upcast


@dataclass(frozen=True)
class HeadConfig:
    """One prediction head."""

    layers: int = 1
    """Dense layers before the output."""
    units: int = 1024
    """Width of the dense layers."""
    norm: Norm = "rms"
    """Normalisation of every layer."""
    act: Act = "silu"
    """Activation of every layer."""
    outscale: float = 0.0
    """Scale of the initial weights of the output; 0 starts with zero predictions."""


@dataclass(frozen=True)
class TwoHotConfig(HeadConfig):
    """A head that regresses over bins; the defaults are the official reward head's."""

    bins: int = 255
    """Number of bins."""


class _Head(nn.Module):
    """An MLP and one linear output called `name`, of shape `shape` per entry."""

    def __init__(
        self,
        ops: Ops,
        inp: int,
        config: HeadConfig,
        name: str,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.ops, self.shape = ops, shape
        self.mlp = MLP(ops, inp, config.units, config.layers, config.norm, config.act, generator)
        out = Dense(ops, self.mlp.width, math.prod(shape), outscale=config.outscale, generator=generator)
        self.head = Children({name: out})

    @property
    def layers(self) -> Layers:
        """The parameters as ops take them, the output's last."""
        return (*self.mlp.layers, *layers_of(self.head.children()))

    def outputs(self, x: Tensor) -> Tensor:
        """What `layers` gave -> raw output [..., *shape]."""
        return x.reshape(*x.shape[:-1], *self.shape)

    def forward(self, feat: Tensor | Feat, fixed: bool = False) -> Tensor:
        """feat [..., F] -> raw output in its dtype; `fixed` gives the parameters no gradient."""
        return self.outputs(self.ops.mlp(feat, frozen(self.layers) if fixed else self.layers))


class TwoHotHead(_Head):
    """Regression over bins that symexp spaces (Hafner et al. 2025): raw output logits [..., *event, bins]."""

    bins: Tensor

    def __init__(
        self,
        ops: Ops,
        inp: int,
        config: TwoHotConfig,
        event: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(ops, inp, config, "logits", (*event, config.bins), generator)
        self.event = event
        self.register_buffer("bins", twohot_bins(config.bins), persistent=False)

    def pred(self, out: Tensor) -> Tensor:
        """Mean [..., *event]; exactly 0 for equal logits."""
        return self.ops.twohot_mean(out, self.bins)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] with the two-hot of target [..., *event], of one for each entry of further axes in front.

        The target gets no gradient.
        """
        return sum_event(self.ops.twohot_loss(out, target, self.bins), len(self.event))


class BinaryHead(_Head):
    """A probability: raw output the logit [...]."""

    def __init__(
        self, ops: Ops, inp: int, config: HeadConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(ops, inp, config, "logit", (1,), generator)

    def outputs(self, x: Tensor) -> Tensor:
        """What `layers` gave -> logit [...]."""
        return x.squeeze(-1)

    def pred(self, out: Tensor) -> Tensor:
        """Probability [...] of 1."""
        return upcast(out).sigmoid()

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] with target [...] in [0, 1]; soft targets are allowed."""
        out = upcast(out)
        return F.binary_cross_entropy_with_logits(out, target.detach().to(out.dtype), reduction="none")


class RegressionHead(_Head):
    """Regression by a normal of variance 1: raw output its mean [..., *event]."""

    def __init__(
        self,
        ops: Ops,
        inp: int,
        config: HeadConfig,
        event: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(ops, inp, config, "pred", event, generator)

    def pred(self, out: Tensor) -> Tensor:
        """Mean [..., *event]."""
        return upcast(out)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Negative log density [...] of target [..., *event], its constant included; the target gets no gradient."""
        out = upcast(out)
        return unit_normal_loss(out, target.detach().to(out.dtype), len(self.shape))


class AnyHead(Protocol):
    """A head, of one output or of several: layers on the features, and what becomes of what these give."""

    @property
    def layers(self) -> Layers: ...

    def outputs(self, x: Tensor) -> Any: ...


def outputs_at(
    ops: Ops, feat: Tensor | Feat, learned: Sequence[AnyHead], others: Sequence[AnyHead]
) -> tuple[list[Any], list[Any]]:
    """Raw outputs of several heads at the same features, in one call: those that learn, and those without gradient."""
    nets = [*(head.layers for head in learned), *(frozen(head.layers) for head in others)]
    given = iter(ops.mlps(feat, nets))
    outputs = [head.outputs(next(given)) for head in learned]
    return outputs, [head.outputs(next(given).detach()) for head in others]
