"""Layers that own parameters, and the way from observation and action dictionaries to flat vectors."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastdream.ops import Ops, linear, reference
from fastdream.ops.params import Act, Layer, Layers, Norm, tensors
from fastdream.spaces import Spaces

T = TypeVar("T")


# From so many on, only the numbers that are too far out are drawn again. PyTorch 2.13 draws all of them again, some
# five times: 17 of the 22 seconds in which a core made size200m. Fewer are left to it, for networks began with its.
MANY = 1 << 20


def trunc_normal_in_(weight: Tensor, fan_in: int, outscale: float, generator: torch.Generator | None) -> None:
    """Fill with a normal truncated at two sigma whose variance is 1 / fan_in, times `outscale`."""
    with torch.no_grad():
        truncated_(weight, generator)
        # 1.1368 makes up for the variance that the truncation takes away.
        weight.mul_(1.1368 * math.sqrt(1 / fan_in) * outscale)


def truncated_(weight: Tensor, generator: torch.Generator | None) -> None:
    """Fill with standard normal numbers from -2 to 2."""
    if weight.numel() < MANY or weight.is_meta:  # which PyTorch leaves as it is: there are no numbers
        nn.init.trunc_normal_(weight, 0.0, 1.0, -2.0, 2.0, generator=generator)
        return
    flat = weight.normal_(generator=generator).view(-1)
    outside = (flat.abs() > 2).nonzero()[:, 0]
    while len(outside):
        again = flat.new_empty(len(outside)).normal_(generator=generator)
        flat[outside] = again
        outside = outside[again.abs() > 2]


class NormAct(nn.Module):
    """Norm over the last axis, then activation.

    scale [width] starts at one, shift [width] (layer norm alone) at zero; neither exists without a norm.
    """

    def __init__(self, ops: Ops, width: int, norm: Norm, act: Act, eps: float = 1e-4) -> None:
        super().__init__()
        self.ops, self.norm, self.act, self.eps = ops, norm, act, eps
        self.scale = None if norm == "none" else nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width)) if norm == "layer" else None

    def normalize(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape and dtype."""
        if self.norm == "none" and self.act == "none":
            return x
        return self.ops.norm_act(x, self.scale, self.shift, self.norm, self.act, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape and dtype."""
        return self.normalize(x)


class Dense(NormAct):
    """Linear map inp -> out, norm over all of out, activation; with blocks > 0 the map is block-diagonal.

    weight is [out, inp], or [blocks, inp / blocks, out / blocks]. Block weights are initialised by the total
    input width, as the official code does, so they start smaller than a block alone would.
    """

    def __init__(
        self,
        ops: Ops,
        inp: int,
        out: int,
        *,
        norm: Norm = "none",
        act: Act = "none",
        blocks: int = 0,
        bias: bool = True,
        outscale: float = 1.0,
        eps: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        if min(inp, out) < 1 or blocks < 0:
            raise ValueError(f"a map from {inp} to {out} features, in {blocks} blocks: widths begin at 1")
        if blocks and (inp % blocks or out % blocks):
            raise ValueError(
                f"a map from {inp} to {out} features does not divide into {blocks} blocks; choose another number"
            )
        super().__init__(ops, out, norm, act, eps)
        shape = (blocks, inp // blocks, out // blocks) if blocks else (out, inp)
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        trunc_normal_in_(self.weight, inp, outscale, generator)

    @property
    def layer(self) -> Layer:
        """The parameters as ops take them."""
        if self._forward_pre_hooks:
            raise RuntimeError(
                "a dense layer has forward pre-hooks, as from torch.nn.utils.prune, the old weight_norm or fully_shard "
                "of it alone, which would not run: ops take parameters and call no module; torch.nn.utils.parametrize "
                "changes what the parameters are"
            )
        return Layer(self.weight, self.bias, self.scale, self.shift, self.norm, self.act, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inp] -> [..., out] in the dtype of x."""
        return self.normalize(linear(x, self.weight, self.bias))


def layers_of(modules: Iterable[nn.Module]) -> Layers:
    """The parameters of dense layers as ops take them. TypeError for other modules, which no op would call."""
    layers = []
    for module in modules:
        if not isinstance(module, Dense):
            raise TypeError(
                f"{type(module).__name__} stands where a Dense has to be: ops take parameters and call no module; "
                "torch.nn.utils.parametrize changes what the parameters are"
            )
        layers.append(module.layer)
    return tuple(layers)


class MLP(nn.Sequential):
    """`layers` dense layers of `units`, each with norm and activation; with no layers the identity."""

    def __init__(
        self,
        ops: Ops,
        inp: int,
        units: int,
        layers: int,
        norm: Norm = "rms",
        act: Act = "silu",
        generator: torch.Generator | None = None,
    ) -> None:
        widths = [inp] + [units] * layers
        make = (
            Dense(ops, a, b, norm=norm, act=act, generator=generator)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        super().__init__(*make)
        self.ops, self.width = ops, widths[-1]

    @property
    def layers(self) -> Layers:
        """The parameters as ops take them."""
        return layers_of(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inp] -> [..., width] in the dtype of x."""
        return self.ops.mlp(x, self.layers)


class Kept(Generic[T]):
    """The value of `make`, made again only after a parameter, a module or a layer's norm, act or eps was replaced.

    module, paths   of which: of the modules at these dotted names in it, those on the way included, or of all of it.

    Collecting parameters from modules takes longer than a small model takes to act. Changes in place, as by an
    optimiser or by load_state_dict, replace nothing. What holds other tensors than parameters, such as weights that
    torch.nn.utils.parametrize computes from some, is made every time.
    """

    def __init__(self, make: Callable[[], T], module: nn.Module, *paths: str) -> None:
        self._make, self._module, self._paths = make, module, paths
        self._seen: tuple[tuple, ...] = (), (), ()  # owners, names, and what these had there
        self._value: T | None = None

    def get(self) -> T:
        """The value."""
        owners, names, parts = self._seen
        if self._value is not None and all(map(is_, map(dict.get, owners, names), parts)):
            return self._value
        self._seen = tuple(zip(*self._look(), strict=True)) or ((), (), ())
        value, known = self._make(), set(map(id, self._seen[2]))
        self._value = value if all(id(x) in known for x in tensors(value)) else None
        return value

    def _look(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        for path in self._paths or ("",):
            module = self._module
            for name in filter(None, path.split(".")):
                yield module._modules, name, module._modules[name]
                module = getattr(module, name)
            for part in module.modules():
                for owner in (part._parameters, part._modules):
                    yield from ((owner, name, x) for name, x in owner.items())
                if isinstance(part, NormAct):
                    yield from ((vars(part), name, getattr(part, name)) for name in ("norm", "act", "eps"))


class Children(nn.Module):
    """Sub-modules under the names of observation or action keys.

    Unlike nn.ModuleDict it takes every name, also those that nn.Module has as attributes ("type", "half") and
    those with a dot, which is written %2E in the names of parameters.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update({name.replace(".", "%2E"): module for name, module in modules.items()})

    def __getitem__(self, name: str) -> nn.Module:
        module = self._modules[name.replace(".", "%2E")]
        assert module is not None, name
        return module

    def __iter__(self) -> Iterator[str]:
        return (name.replace("%2E", ".") for name in self._modules)


def flatten_inputs(
    spaces: Spaces,
    entries: Mapping[str, Tensor],
    squish: bool = False,
    dtype: torch.dtype = torch.float32,
    join: Callable[..., Tensor] = reference.join_inputs,
) -> Tensor:
    """Vector and discrete entries, observed or of an action -> one flat vector [..., sum of widths], keys sorted.

    entries [..., *space.shape]. Discrete ones become one-hots; `squish` compresses others with symlog. An
    entry that holds -1 (integers) or -inf (floats) anywhere is missing: all its features are zero. The result has the
    given dtype. join: `join_inputs` of the ops that serve the device.
    """
    parts, classes = [], []
    for key in sorted(spaces):
        space, x = spaces[key], entries[key]
        batch = x.shape[: x.dim() - len(space.shape)]
        if batch + space.shape != x.shape:
            raise ValueError(f"{key!r} has shape {tuple(x.shape)}, which does not end in {space.shape}")
        parts.append(x if len(space.shape) == 1 else x.reshape(*batch, -1))
        classes.append(space.classes if space.kind == "discrete" else 0)
    return join(parts, classes, squish, dtype)


def shaped_vectors(spaces: Spaces, flat: Sequence[Tensor]) -> dict[str, Tensor]:
    """What is predicted of each space, [..., w], as [..., *space.shape], or [..., *space.shape, classes]."""
    entries = {}
    for (key, space), x in zip(spaces.items(), flat, strict=True):
        shape = (*space.shape, space.classes) if space.kind == "discrete" else space.shape
        entries[key] = x.reshape(*x.shape[:-1], *shape)
    return entries


def split_images(spaces: Spaces, x: Tensor) -> dict[str, Tensor]:
    """All images side by side, [..., H, W, C], by their keys."""
    channels = [space.shape[-1] for space in spaces.values()]
    # Splitting off a single part would copy its gradient.
    parts = x.split(channels, -1) if len(channels) > 1 else (x,)
    return dict(zip(spaces, parts, strict=True))


class ActionDecoder:
    """Flat actions [..., A] -> dictionaries of int32 classes and float32 values, entries [..., *space.shape], copies.

    What the spaces say is asked once: their keys' order and widths take longer to find than a few numbers to convert.
    """

    def __init__(self, act_space: Spaces) -> None:
        self._parts: list[tuple[str, slice, tuple[int, ...], bool]] = []
        start = 0
        for key in sorted(act_space):
            space = act_space[key]
            discrete = space.kind == "discrete"
            shape = (*space.shape, space.classes) if discrete else space.shape
            self._parts.append((key, slice(start, start + space.width), shape, discrete))
            start += space.width

    def __call__(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        batch, action = flat.shape[:-1], {}
        for key, part, shape, discrete in self._parts:
            x = flat[..., part].reshape(batch + shape)
            action[key] = x.argmax(-1).astype(np.int32) if discrete else x.astype(np.float32)
        return action
