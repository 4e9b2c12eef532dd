"""From an observation dictionary to one embedding: an MLP on vectors, convolutions on images (DreamerV3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdream.convs import Conv
from fastdream.nets import Dense, flatten_inputs
from fastdream.ops import Ops
from fastdream.ops.params import Act, Layers, Norm
from fastdream.spaces import Spaces

MIN_RES, MAX_RES = 3, 16  # of the smallest feature map


@dataclass(frozen=True)
class EncoderConfig:
    """Encoder of vectors and images; the defaults are the official DreamerV3's."""

    depth: int = 64
    """Channels of the convolutions, to be multiplied by mults."""
    mults: tuple[int, ...] = (2, 3, 4, 4)
    """One convolution for each entry; every one halves the resolution."""
    layers: int = 3
    """Dense layers on the vector observations."""
    units: int = 1024
    """Width of the dense layers."""
    kernel: int = 5
    """Size of the convolution kernels."""
    symlog: bool = True
    """Compress vector observations with symlog before the first layer."""
    outer: bool = False
    """Let the first convolution keep the full resolution."""
    strided: bool = False
    """Halve the resolution by stride 2 in place of a 2x2 max-pool."""
    norm: Norm = "rms"
    """Normalisation of every layer."""
    act: Act = "silu"
    """Activation of every layer."""

    def __post_init__(self) -> None:
        check_sizes(self.mults, depth=self.depth, units=self.units, kernel=self.kernel)


def check_sizes(mults: tuple[int, ...], **sizes: int) -> None:
    """ValueError where a size is not positive or no convolution is left."""
    if not mults or min(mults) < 1:
        raise ValueError(f"mults={mults} needs at least one entry and positive ones")
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def vector_spaces(obs_space: Spaces) -> Spaces:
    """The entries that are vectors or discrete, in their own order."""
    return {key: space for key, space in obs_space.items() if space.kind != "image"}


def image_spaces(obs_space: Spaces) -> Spaces:
    """The entries that are images, in their own order."""
    return {key: space for key, space in obs_space.items() if space.kind == "image"}


def check_keys(obs_space: Spaces) -> None:
    """ValueError where there is nothing to encode or to decode."""
    if not obs_space:
        raise ValueError(
            "the observation space has no usable keys (reward, flags and log/ keys do not count); "
            "let the environment show at least one image, vector or discrete observation"
        )


def smallest_map(images: Spaces, stages: int, outer: bool) -> tuple[int, int]:
    """Height and width of the smallest feature map after `stages` convolutions.

    Raises ValueError where the images differ in size, do not divide, or end up outside [3, 16].
    """
    sizes = {key: space.shape[:2] for key, space in images.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"all images must have one resolution, got {sizes}; resize them or drop some of the keys"
        )
    key, (height, width) = next(iter(sizes.items()))
    factor = 2 ** (stages - int(outer))
    low, high = MIN_RES * factor, MAX_RES * factor
    if any(size % factor or not low <= size <= high for size in (height, width)):
        near = min(max(round(min(height, width) / factor) * factor, low), high)
        raise ValueError(
            f"image {key!r} has size {height}x{width}; {stages} convolutions{', the first of which keeps it,' * outer} "
            f"take multiples of {factor} from {low} to {high}: make it {near}x{near} with --suite.size {near} (a "
            f"dataset's with --resize {near})"
        )
    return height // factor, width // factor


class Encoder(nn.Module):
    """obs dictionary, entries [..., *space.shape] -> embed [..., E], vector features before image features.

    Parameters: mlp0.. and cnn0... Image features are flattened as (height, width, channel). `dtype` is the
    compute dtype, which images and vectors are cast to (the vectors after symlog).
    """

    def __init__(
        self,
        ops: Ops,
        obs_space: Spaces,
        config: EncoderConfig,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_keys(obs_space)
        self.ops, self.config, self.dtype = ops, config, dtype
        self.vectors, self.images = vector_spaces(obs_space), image_spaces(obs_space)
        self.embed_width = 0
        prepared = config.symlog and all(space.kind == "vector" for space in self.vectors.values())
        # What `raw` leaves to the op, in its order: keys with their shapes, and widths.
        self._raw = [(key, self.vectors[key].shape) for key in sorted(self.vectors)] if prepared else []
        self._widths = tuple(self.vectors[key].size for key, _ in self._raw)
        if self.vectors:
            self._make_dense(generator)
        if self.images:
            self._make_convs(generator)

    def _make_dense(self, generator: torch.Generator | None) -> None:
        config, width = self.config, sum(space.width for space in self.vectors.values())
        for i in range(config.layers):
            layer = Dense(
                self.ops, width, config.units, norm=config.norm, act=config.act, generator=generator
            )
            self.add_module(f"mlp{i}", layer)
            width = config.units
        self.embed_width += width

    def _make_convs(self, generator: torch.Generator | None) -> None:
        config, width = self.config, sum(space.shape[-1] for space in self.images.values())
        rows, columns = smallest_map(self.images, len(config.mults), config.outer)
        for i, mult in enumerate(config.mults):
            keep = config.outer and i == 0
            layer = Conv(
                self.ops,
                width,
                config.depth * mult,
                config.kernel,
                stride=2 if config.strided and not keep else 1,
                pool=not config.strided and not keep,
                norm=config.norm,
                act=config.act,
                generator=generator,
            )
            self.add_module(f"cnn{i}", layer)
            width = config.depth * mult
        self.embed_width += rows * columns * width

    @property
    def vector_layers(self) -> Layers:
        """The layers on vectors, as ops take them."""
        count = self.config.layers if self.vectors else 0
        return tuple(getattr(self, f"mlp{i}").layer for i in range(count))

    def features(self, obs: Mapping[str, Tensor]) -> Tensor:
        """All vectors as one flat one [..., F], as `vector_layers` take it."""
        return flatten_inputs(self.vectors, obs, self.config.symlog, self.dtype, self.ops.join_inputs)

    def raw(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[int, ...]]:
        """`features` of entries [n, *space.shape] as `ops.policy_step` takes them, with its `vectors`.

        It prepares vectors of float32 itself; those of other types and discrete entries are prepared here.
        """
        parts = []
        for key, shape in self._raw:
            x = obs[key]
            if x.dtype != torch.float32 or x.shape[1:] != shape:
                return self.features(obs), ()
            parts.append(x if len(shape) == 1 else x.reshape(len(x), -1))
        if not parts:
            return self.features(obs), ()
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)), self._widths

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Entries [..., *space.shape] (images uint8) -> [..., E] in `dtype`. Further keys are ignored."""
        parts = []
        if self.vectors:
            parts.append(self.ops.mlp(self.features(obs), self.vector_layers))
        if self.images:
            parts.append(self._encode_images(obs))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _encode_images(self, obs: Mapping[str, Tensor]) -> Tensor:
        parts = [obs[key] for key in sorted(self.images)]
        x = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        batch = x.shape[:-3]
        first, *others = (getattr(self, f"cnn{i}") for i in range(len(self.config.mults)))
        x = first(x, self.dtype)
        for layer in others:
            x = layer(x)
        return x.permute(0, 2, 3, 1).reshape(*batch, -1)
