"""Outputs on the latent state: rewards, continuation, values, other predictions and the policy.

Every head is an MLP named `mlp` and linear outputs named `head.<name>`. `forward` gives raw outputs in the
dtype of its input; `pred` and `loss` work on them in float32. Losses are summed over the elements of the entry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdream.distributions import huber, normal_entropy, normal_log_prob, sum_event, wide
from fastdream.nets import MLP, Children, Dense
from fastdream.ops import (
    Ops,
    actor_outputs,
    categorical_entropy,
    categorical_log_prob,
    twohot_bins,
)
from fastdream.ops.params import Act, ActionHead, Actor, Norm
from fastdream.spaces import Space, Spaces

Outputs = Sequence[tuple[Tensor, ...]]


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


@dataclass(frozen=True)
class PolicyConfig:
    """The actor; the defaults are the official DreamerV3's."""

    layers: int = 3
    """Dense layers before the outputs."""
    units: int = 1024
    """Width of the dense layers."""
    norm: Norm = "rms"
    """Normalisation of every layer."""
    act: Act = "silu"
    """Activation of every layer."""
    outscale: float = 0.01
    """Scale of the initial weights of the outputs."""
    unimix: float = 0.0
    """Share of the uniform distribution that is mixed into discrete actions."""
    min_std: float = 0.1
    """Smallest standard deviation of continuous actions."""
    max_std: float = 1.0
    """Largest standard deviation of continuous actions."""


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

    def forward(self, feat: Tensor) -> Tensor:
        """feat [..., F] -> raw output [..., *shape] in its dtype."""
        (out,) = self.head.children()
        x: Tensor = out(self.mlp(feat))
        return x.reshape(*x.shape[:-1], *self.shape)


class TwoHotHead(_Head):
    """Regression over bins (Hafner et al. 2025): raw output logits [..., *event, bins].

    form "symexp": bins spaced by symexp, targets and means in raw space. "symlog": evenly spaced bins in
    symlog space, as the DreamerV3 of 2023 had them.
    """

    bins: Tensor

    def __init__(
        self,
        ops: Ops,
        inp: int,
        config: TwoHotConfig,
        event: tuple[int, ...] = (),
        form: Literal["symexp", "symlog"] = "symexp",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(ops, inp, config, "logits", (*event, config.bins), generator)
        self.event, self.form = event, form
        self.register_buffer("bins", twohot_bins(config.bins, form), persistent=False)

    def pred(self, out: Tensor) -> Tensor:
        """Mean [..., *event]; exactly 0 for equal logits."""
        return self.ops.twohot_mean(out, self.bins, self.form)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] with the two-hot of target [..., *event]; the target gets no gradient."""
        return sum_event(self.ops.twohot_loss(out, target, self.bins, self.form), len(self.event))


class BinaryHead(_Head):
    """A probability: raw output the logit [...]."""

    def __init__(
        self, ops: Ops, inp: int, config: HeadConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(ops, inp, config, "logit", (1,), generator)

    def forward(self, feat: Tensor) -> Tensor:
        """feat [..., F] -> logit [...]."""
        return super().forward(feat).squeeze(-1)

    def pred(self, out: Tensor) -> Tensor:
        """Probability [...] of 1."""
        return wide(out).sigmoid()

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] with target [...] in [0, 1]; soft targets are allowed."""
        out = wide(out)
        return F.binary_cross_entropy_with_logits(out, target.detach().to(out.dtype), reduction="none")


class RegressionHead(_Head):
    """Direct regression: raw output [..., *event].

    form "mse": squared error; "symlog_mse": squared error in symlog space; "huber": sqrt(error² + 1) - 1.
    """

    def __init__(
        self,
        ops: Ops,
        inp: int,
        config: HeadConfig,
        event: tuple[int, ...] = (),
        form: Literal["mse", "symlog_mse", "huber"] = "mse",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(ops, inp, config, "pred", event, generator)
        if form not in ("mse", "symlog_mse", "huber"):
            raise ValueError(f"unknown regression {form!r}; choose mse, symlog_mse or huber")
        self.form = form

    def pred(self, out: Tensor) -> Tensor:
        """Prediction [..., *event] in the units of the target."""
        return self.ops.symexp(wide(out)) if self.form == "symlog_mse" else wide(out)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Loss [...] against target [..., *event]; the target gets no gradient."""
        out, target = wide(out), target.detach()
        target = self.ops.symlog(wide(target)) if self.form == "symlog_mse" else target.to(out.dtype)
        loss = huber(out - target) if self.form == "huber" else (out - target).square()
        return sum_event(loss, len(self.shape))


class CategoricalHead(_Head):
    """Classification of every element of a discrete entry: raw output logits [..., *space.shape, classes]."""

    def __init__(
        self, ops: Ops, inp: int, config: HeadConfig, space: Space, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(ops, inp, config, "logits", (*space.shape, space.classes), generator)
        self.event = space.shape

    def pred(self, out: Tensor) -> Tensor:
        """Most likely classes [..., *space.shape]."""
        return out.argmax(-1)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] with the class indices target [..., *space.shape]."""
        return sum_event(-categorical_log_prob(out, target.long()), len(self.event))


class ActorHeads(nn.Module):
    """The policy: one MLP, and one distribution for every action key, in the sorted order of the keys.

    Discrete keys: `head.<key>.logits`. Continuous keys: `head.<key>.mean` and `.stddev` of a normal with mean
    tanh(.) and std between min_std and max_std; its samples are unbounded. Actions are flat vectors [..., A]
    of one-hots and raw values, as ops.imagine makes them and `nets.decode_action` reads them.
    """

    def __init__(
        self,
        ops: Ops,
        inp: int,
        act_space: Spaces,
        config: PolicyConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not act_space:
            raise ValueError("the action space has no keys; a policy needs at least one action")
        self.config = config
        self.spaces = {key: act_space[key] for key in sorted(act_space)}
        self.width = sum(space.width for space in self.spaces.values())
        self.mlp = MLP(ops, inp, config.units, config.layers, config.norm, config.act, generator)
        heads = {}
        for key, space in self.spaces.items():
            if space.kind == "image":
                raise ValueError(f"action {key!r} is an image; actions are vectors or discrete")
            names = ("logits",) if space.kind == "discrete" else ("mean", "stddev")
            outs = {
                name: Dense(ops, self.mlp.width, space.width, outscale=config.outscale, generator=generator)
                for name in names
            }
            heads[key] = Children(outs)
        self.head = Children(heads)

    @property
    def params(self) -> Actor:
        """The parameters as ops take them."""
        return Actor(self.mlp.layers, tuple(self._head(key) for key in self.spaces))

    def _head(self, key: str) -> ActionHead:
        space, config = self.spaces[key], self.config
        out = tuple(dense.layer for dense in self.head[key].children() if isinstance(dense, Dense))
        kind: Literal["categorical", "bounded_normal"] = (
            "categorical" if space.kind == "discrete" else "bounded_normal"
        )
        return ActionHead(kind, space.size, space.classes, out, config.unimix, config.min_std, config.max_std)

    def forward(self, feat: Tensor) -> Outputs:
        """feat [..., F] -> for every key (logit [..., elements, classes],) or (mean, std) [..., elements]."""
        return actor_outputs(self.params, feat)

    def noise(self, *batch: int, generator: torch.Generator) -> Tensor:
        """Numbers [*batch, M] that draw one action each: uniform for discrete elements, else normal."""
        draw = {"discrete": torch.rand, "vector": torch.randn}
        spaces = self.spaces.values()
        parts = [draw[s.kind](*batch, s.size, generator=generator, device=generator.device) for s in spaces]
        return torch.cat(parts, -1)

    def log_prob(self, outs: Outputs, flat: Tensor) -> Tensor:
        """Log-probability [...] of flat actions [..., A], summed over keys; the actions get no gradient."""
        parts = flat.detach().split([space.width for space in self.spaces.values()], -1)
        logs = [self._log_prob(out, part) for out, part in zip(outs, parts, strict=True)]
        return torch.stack(logs).sum(0)

    def _log_prob(self, out: tuple[Tensor, ...], part: Tensor) -> Tensor:
        if len(out) == 1:
            index = part.reshape(out[0].shape).argmax(-1)
            return categorical_log_prob(out[0], index, self.config.unimix).sum(-1)
        return normal_log_prob(wide(part), wide(out[0]), wide(out[1])).sum(-1)

    def entropy(self, outs: Outputs) -> dict[str, Tensor]:
        """Entropy [...] of every key in nats, summed over its elements."""
        return {key: self._entropy(out) for key, out in zip(self.spaces, outs, strict=True)}

    def _entropy(self, out: tuple[Tensor, ...]) -> Tensor:
        if len(out) == 1:
            return categorical_entropy(out[0], self.config.unimix).sum(-1)
        return normal_entropy(wide(out[1])).sum(-1)

    def entropy_range(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest entropy that every key can have, in nats, summed over its elements."""
        low, high = (
            0.5 * math.log(2 * math.pi * math.e * std**2)
            for std in (self.config.min_std, self.config.max_std)
        )
        return {
            key: (0.0, space.size * math.log(space.classes))
            if space.kind == "discrete"
            else (space.size * low, space.size * high)
            for key, space in self.spaces.items()
        }

    def mode(self, outs: Outputs) -> Tensor:
        """Most likely flat action [..., A]: one-hots of the largest logits and means."""
        parts = []
        for out in outs:
            if len(out) == 1:
                onehot = F.one_hot(out[0].argmax(-1), out[0].shape[-1])
                parts.append(onehot.flatten(-2).to(out[0].dtype))
            else:
                parts.append(out[0])
        return torch.cat(parts, -1)
