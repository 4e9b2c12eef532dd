"""Encoder and decoder with strided convolutions and no padding, as World Models, PlaNet and the first Dreamers have.

A picture of 64 × 64 shrinks to 31, 14, 6 and 2 pixels a side, and grows from 1 to 5, 13, 30 and 64.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdream.convs import Valid
from fastdream.distributions import sum_event, unit_normal_loss
from fastdream.encoder import check_keys, image_spaces, vector_spaces
from fastdream.nets import MLP, Children, Dense, flatten_inputs, layers_of, shaped_vectors, split_images
from fastdream.ops import Ops, categorical_log_prob, mlp_outputs
from fastdream.ops.params import Act, Layers, Norm
from fastdream.ops.reference.images import pixels
from fastdream.ops.reference.layers import upcast
from fastdream.spaces import Space, Spaces


@dataclass(frozen=True)
class StridedEncoderConfig:
    """Encoder: convolutions of stride 2 on images, dense layers on vectors."""

    depth: int = 48
    """Channels of the first convolution; each further one doubles them."""
    kernels: tuple[int, ...] = (4, 4, 4, 4)
    """Kernel sizes; one convolution for each."""
    layers: int = 4
    """Dense layers on the vector observations."""
    units: int = 400
    """Width of the dense layers."""
    norm: Norm = "none"
    """Normalisation of every layer."""
    act: Act = "elu"
    """Activation of the dense layers."""
    conv_act: Act = "elu"
    """Activation of the convolutions."""

    def __post_init__(self) -> None:
        check_kernels(self.kernels, self.depth, self.units)


@dataclass(frozen=True)
class StridedDecoderConfig:
    """Decoder: transposed convolutions of stride 2 to images, dense layers to vectors."""

    depth: int = 48
    """Channels of the last convolution but one; each earlier one doubles them."""
    kernels: tuple[int, ...] = (5, 5, 6, 6)
    """Kernel sizes; one convolution for each. They decide the size of the image."""
    layers: int = 4
    """Dense layers before the vector outputs."""
    units: int = 400
    """Width of the dense layers."""
    norm: Norm = "none"
    """Normalisation of every layer but the outputs."""
    act: Act = "elu"
    """Activation of the dense layers."""
    conv_act: Act = "elu"
    """Activation of the convolutions."""

    def __post_init__(self) -> None:
        check_kernels(self.kernels, self.depth, self.units)


def check_kernels(kernels: tuple[int, ...], depth: int, units: int) -> None:
    """ValueError where nothing is left to convolve with."""
    if not kernels or min(kernels) < 2 or depth < 1 or units < 1:
        raise ValueError(
            f"need kernels of at least 2, depth and units of at least 1, got {kernels}, {depth}, {units}"
        )


class StridedEncoder(nn.Module):
    """obs dictionary, entries [..., *space.shape] -> embed [..., E], vector features before image features.

    Images enter as values in [-0.5, 0.5] and leave flattened as (height, width, channel); vectors enter as they are,
    discrete entries as one-hots. `dtype` is the compute dtype.
    """

    def __init__(
        self,
        ops: Ops,
        obs_space: Spaces,
        config: StridedEncoderConfig,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_keys(obs_space)
        self.ops, self.dtype = ops, dtype
        self.vectors, self.images = vector_spaces(obs_space), image_spaces(obs_space)
        self.embed_width = 0
        if self.vectors:
            width = sum(space.width for space in self.vectors.values())
            self.mlp = MLP(ops, width, config.units, config.layers, config.norm, config.act, generator)
            self.embed_width += self.mlp.width
        if self.images:
            width = sum(space.shape[-1] for space in self.images.values())
            convs = []
            for i, kernel in enumerate(config.kernels):
                out = config.depth * 2**i
                conv = Valid(
                    ops, width, out, kernel, norm=config.norm, act=config.conv_act, generator=generator
                )
                convs.append(conv)
                width = out
            self.convs = nn.Sequential(*convs)
            self.embed_width += width * math.prod(_shrunk(self.images, config.kernels))

    @property
    def vector_layers(self) -> Layers:
        """The layers on vectors, as ops take them."""
        return self.mlp.layers if self.vectors else ()

    def features(self, obs: Mapping[str, Tensor]) -> Tensor:
        """All vectors as one flat one [..., F], as `vector_layers` take it."""
        return flatten_inputs(self.vectors, obs, dtype=self.dtype, join=self.ops.join_inputs)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Entries [..., *space.shape] (images uint8) -> [..., E] in `dtype`. Further keys are ignored."""
        parts = []
        if self.vectors:
            parts.append(self.ops.mlp(self.features(obs), self.vector_layers))
        if self.images:
            parts.append(self._encode_images(obs))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _encode_images(self, obs: Mapping[str, Tensor]) -> Tensor:
        x = torch.cat([obs[key] for key in sorted(self.images)], -1)
        batch = x.shape[:-3]
        x = self.convs(pixels(x, self.dtype).permute(0, 3, 1, 2))
        return x.permute(0, 2, 3, 1).reshape(*batch, -1)


class StridedDecoder(nn.Module):
    """deter [..., D], stoch [..., S*C] -> one raw output for every observation key.

    Raw outputs are means of normals with variance 1: of an image's values in [-0.5, 0.5] [..., H, W, C], and of a
    vector [..., *shape]; discrete entries give logits [..., *shape, classes].
    """

    def __init__(
        self,
        ops: Ops,
        obs_space: Spaces,
        deter: int,
        stoch_width: int,
        config: StridedDecoderConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_keys(obs_space)
        self.ops, self.config, self.spaces = ops, config, dict(obs_space)
        self.vectors, self.images = vector_spaces(obs_space), image_spaces(obs_space)
        if self.vectors:
            self._make_dense(deter + stoch_width, generator)
        if self.images:
            self._make_convs(deter + stoch_width, generator)

    def _make_dense(self, width: int, generator: torch.Generator | None) -> None:
        config = self.config
        self.mlp = MLP(self.ops, width, config.units, config.layers, config.norm, config.act, generator)
        self.vec = Children(
            {
                key: Dense(self.ops, self.mlp.width, space.width, generator=generator)
                for key, space in self.vectors.items()
            }
        )

    def _make_convs(self, width: int, generator: torch.Generator | None) -> None:
        config = self.config
        side = _grown(config.kernels)
        for key, space in self.images.items():
            if space.shape[:2] != (side, side):
                raise ValueError(
                    f"image {key!r} has size {space.shape[0]}x{space.shape[1]}, but a decoder with kernels "
                    f"{config.kernels} draws {side}x{side}: make it so with --suite.size {side} (a dataset's with "
                    f"--resize {side}), or choose other kernels"
                )
        last = len(config.kernels) - 1
        self.seed = config.depth * 2 ** (last + 2)
        self.space = Dense(self.ops, width, self.seed, generator=generator)
        convs, inp = [], self.seed
        for i, kernel in enumerate(config.kernels):
            inner = i < last
            out = (
                config.depth * 2 ** (last - 1 - i)
                if inner
                else sum(space.shape[-1] for space in self.images.values())
            )
            norm, act = (config.norm, config.conv_act) if inner else ("none", "none")
            convs.append(
                Valid(self.ops, inp, out, kernel, transposed=True, norm=norm, act=act, generator=generator)
            )
            inp = out
        self.convs = nn.Sequential(*convs)

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        """deter [..., D], stoch [..., S*C] of one dtype -> raw outputs in it, keys as in obs_space."""
        feat, outputs = torch.cat([deter, stoch], -1), dict[str, Tensor]()
        if self.vectors:
            outs = layers_of(self.vec.children())
            flat = mlp_outputs(feat, self.mlp.layers, outs, self.ops.mlps)
            outputs |= shaped_vectors(self.vectors, flat)
        if self.images:
            x = self.convs(self.space(feat).reshape(-1, self.seed, 1, 1)).permute(0, 2, 3, 1)
            outputs |= split_images(self.images, x.reshape(*deter.shape[:-1], *x.shape[1:]))
        return {key: outputs[key] for key in self.spaces}

    def loss(self, outputs: Mapping[str, Tensor], obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Negative log probability [...] of every key in float32, summed over the elements of its entry."""
        return {key: self._loss(space, upcast(outputs[key]), obs[key]) for key, space in self.spaces.items()}

    def _loss(self, space: Space, out: Tensor, target: Tensor) -> Tensor:
        if space.kind == "discrete":
            return sum_event(-categorical_log_prob(out, target.long()), len(space.shape))
        target = target.to(out.dtype)
        return unit_normal_loss(
            out, target / 255 - 0.5 if space.kind == "image" else target, len(space.shape)
        )

    def pred(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw outputs -> predictions: images in [0, 1], vectors in their own units, class indices."""
        return {key: self._pred(space, upcast(outputs[key])) for key, space in self.spaces.items()}

    def _pred(self, space: Space, out: Tensor) -> Tensor:
        if space.kind == "discrete":
            return out.argmax(-1)
        return (out + 0.5).clamp(0, 1) if space.kind == "image" else out


def _shrunk(images: Spaces, kernels: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the last feature map; ValueError where images differ or nothing is left."""
    sizes = {space.shape[:2] for space in images.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"all images must have one resolution, got {sorted(sizes)}; resize them or drop some of the keys"
        )
    (size,) = sizes
    height, width = size
    for kernel in kernels:
        height, width = ((n - kernel) // 2 + 1 for n in (height, width))
    if min(height, width) < 1:
        raise ValueError(
            f"images of {size[0]}x{size[1]} are too small for convolutions with kernels {kernels}: make them larger "
            "with --suite.size (a dataset's with --resize), or choose fewer kernels"
        )
    return height, width


def _grown(kernels: tuple[int, ...]) -> int:
    """Pixels a side that transposed convolutions make of one."""
    side = 1
    for kernel in kernels:
        side = (side - 1) * 2 + kernel
    return side
