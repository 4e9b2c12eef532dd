"""The actor: distributions of all actions from the latent state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastdream.distributions import BoundedNormal, Continuous, TanhNormal
from fastdream.nets import MLP, Children, Dense, layers_of
from fastdream.ops import (
    Ops,
    actor_branches,
    actor_mode,
    actor_outputs,
    actor_trunk,
    categorical_entropy,
    categorical_log_prob,
)
from fastdream.ops.params import Act, ActionHead, ActionKind, Actor, Feat, Layers, Norm
from fastdream.ops.reference.layers import upcast
from fastdream.spaces import Spaces

Outputs = Sequence[tuple[Tensor, ...]]


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

    def __post_init__(self) -> None:
        if not 0 < self.min_std <= self.max_std:
            raise ValueError(f"need 0 < min_std <= max_std, got {self.min_std} and {self.max_std}")
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix={self.unimix} is not in [0, 1)")


class ActorHeads(nn.Module):
    """The policy: one MLP, and one distribution for every action key, in the sorted order of the keys.

    Discrete keys: `head.<key>.logits`. Continuous keys: `head.<key>.mean` and `.stddev` of the family `continuous`;
    None takes a BoundedNormal with the limits of the configuration. Actions are flat vectors [..., A] of one-hots
    and raw values, as ops.imagine makes them and `nets.ActionDecoder` reads them. `detach` keeps gradients out of
    the features, also in a dream. `discrete` says whose gradient a discrete sample has: see `ops.ActionHead`.
    """

    def __init__(
        self,
        ops: Ops,
        inp: int,
        act_space: Spaces,
        config: PolicyConfig,
        generator: torch.Generator | None = None,
        continuous: Continuous | None = None,
        detach: bool = False,
        discrete: Literal["categorical", "score"] = "categorical",
    ) -> None:
        super().__init__()
        if not act_space:
            raise ValueError("the action space has no keys; a policy needs at least one action")
        self.ops, self.config, self.detach = ops, config, detach
        self.discrete: ActionKind = discrete
        self.continuous = continuous or BoundedNormal(config.min_std, config.max_std)
        self.spaces = {key: act_space[key] for key in sorted(act_space)}
        draws = {"discrete": _uniform, "vector": self.continuous.noise}
        self._draws = [
            (draws[space.kind], space.size) for space in self.spaces.values() if space.kind in draws
        ]
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
        return Actor(self.mlp.layers, tuple(self._head(key) for key in self.spaces), self.detach)

    def _head(self, key: str) -> ActionHead:
        space, family = self.spaces[key], self.continuous
        out = layers_of(self.head[key].children())
        kind: ActionKind = self.discrete if space.kind == "discrete" else family.kind
        return ActionHead(kind, space.size, space.classes, out, self.config.unimix, **family.limits)

    def forward(self, feat: Tensor | Feat) -> Outputs:
        """feat [..., F] -> for every key (logit [..., elements, classes],) or (mean, std) [..., elements]."""
        return actor_outputs(self.params, feat, self.ops.mlps, self.ops.bounded_normal)

    @property
    def layers(self) -> Layers:
        """The parameters of the layers that all outputs have in common, as ops take them."""
        return actor_trunk(self.params)

    def outputs(self, x: Tensor) -> Outputs:
        """What `forward` returns, from what `layers` gave."""
        return actor_branches(self.params, x, self.ops.mlps, self.ops.bounded_normal)

    def noise(self, *batch: int, generator: torch.Generator) -> Tensor:
        """Numbers [*batch, M] that draw one action each: uniform for discrete elements, else of the family."""
        parts = [draw(*batch, size, generator=generator) for draw, size in self._draws]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def log_prob(self, outs: Outputs, flat: Tensor) -> Tensor:
        """Log-probability [...] of flat actions [..., A], summed over keys; the actions get no gradient."""
        parts = flat.detach().split([space.width for space in self.spaces.values()], -1)
        logs = [self._log_prob(out, part) for out, part in zip(outs, parts, strict=True)]
        return torch.stack(logs).sum(0)

    def _log_prob(self, out: tuple[Tensor, ...], part: Tensor) -> Tensor:
        if len(out) == 1:
            index = part.reshape(out[0].shape).argmax(-1)
            return categorical_log_prob(out[0], index, self.config.unimix).sum(-1)
        return self.continuous.log_prob(upcast(part), upcast(out[0]), upcast(out[1])).sum(-1)

    def reinforce(
        self, outs: Outputs, flat: Tensor, adv: Tensor, weight: Tensor, actent: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the first H of K steps by `ops.reinforce`, and entropy of every key, all [N, H].

        outs as `forward` gives them and flat actions [N, K, ...]; adv and weight [N, H]. Of classes and of normals
        that nothing cuts off. The loss alone has a gradient.
        """
        assert isinstance(self.continuous, BoundedNormal), "its log-probability is that of a normal"
        given = outs, flat, adv, weight, actent, self.config.unimix
        loss, _, entropies = self.ops.reinforce(*given)
        return loss, dict(zip(self.spaces, entropies, strict=True))

    def entropy(self, outs: Outputs) -> dict[str, Tensor]:
        """Entropy [...] of every key in nats, summed over its elements."""
        return {key: self._entropy(out) for key, out in zip(self.spaces, outs, strict=True)}

    def _entropy(self, out: tuple[Tensor, ...]) -> Tensor:
        if len(out) == 1:
            return categorical_entropy(out[0], self.config.unimix).sum(-1)
        assert not isinstance(self.continuous, TanhNormal), "its entropy has no closed form"
        return self.continuous.entropy(upcast(out[0]), upcast(out[1])).sum(-1)

    def entropy_range(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest entropy that every key can have, in nats, summed over its elements."""
        assert not isinstance(self.continuous, TanhNormal), "its entropy has no closed form"
        low, high = self.continuous.entropy_range()
        return {
            key: (0.0, space.size * math.log(space.classes))
            if space.kind == "discrete"
            else (space.size * low, space.size * high)
            for key, space in self.spaces.items()
        }

    def likeliest(self, outs: Outputs, noise: Tensor) -> Tensor:
        """As `ops.actor_mode`, where a family has none: the most likely of K draws of each key, noise [..., K, M]."""
        assert isinstance(self.continuous, TanhNormal), self.continuous
        noises, parts = noise.split([space.size for space in self.spaces.values()], -1), []
        for out, eps in zip(outs, noises, strict=True):
            parts.append(
                actor_mode([out]) if len(out) == 1 else self.continuous.likeliest(out[0], out[1], eps)
            )
        return torch.cat(parts, -1)


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device)
