"""From a latent state back to the observations (Hafner et al. 2025)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdream.convs import Conv
from fastdream.distributions import sum_event
from fastdream.encoder import check_keys, check_sizes, image_spaces, smallest_map, vector_spaces
from fastdream.nets import MLP, Children, Dense, NormAct, layers_of, shaped_vectors, split_images
from fastdream.ops import Ops, categorical_log_prob, linear, mlp_outputs
from fastdream.ops.params import Act, Layers, Norm
from fastdream.ops.reference.layers import match, upcast
from fastdream.spaces import Space, Spaces


@dataclass(frozen=True)
class DecoderConfig:
    """Decoder of vectors and images; the defaults are the official DreamerV3's."""

    depth: int = 64
    """Channels of the convolutions, to be multiplied by mults."""
    mults: tuple[int, ...] = (2, 3, 4, 4)
    """Widths of the feature maps, from the full resolution down; each stage doubles the resolution."""
    layers: int = 3
    """Dense layers in front of the vector outputs."""
    units: int = 1024
    """Width of the dense layers."""
    kernel: int = 5
    """Size of the convolution kernels."""
    bspace: int = 8
    """Blocks of the layer from the deterministic state to the first feature map; 0 for one dense layer."""
    symlog: bool = True
    """Predict vector observations in symlog space."""
    outer: bool = False
    """Make the last convolution at the full resolution without doubling before it."""
    strided: bool = False
    """Double the resolution by transposed convolutions in place of nearest-neighbour upsampling."""
    outscale: float = 1.0
    """Scale of the initial weights of all outputs."""
    norm: Norm = "rms"
    """Normalisation of every layer."""
    act: Act = "silu"
    """Activation of every layer."""

    def __post_init__(self) -> None:
        check_sizes(self.mults, depth=self.depth, units=self.units, kernel=self.kernel)


class Decoder(nn.Module):
    """deter [..., D], stoch [..., S*C] -> one raw output for every observation key.

    Raw outputs: images the value before the sigmoid [..., H, W, C]; vectors the prediction [..., *shape] (in
    symlog space if config.symlog); discrete entries logits [..., *shape, classes]. Images leave the last
    convolution in the order in which obs_space names them.
    """

    def __init__(
        self,
        ops: Ops,
        obs_space: Spaces,
        deter: int,
        stoch_width: int,
        config: DecoderConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_keys(obs_space)
        self.ops, self.config, self.spaces = ops, config, dict(obs_space)
        self.vectors, self.images = vector_spaces(obs_space), image_spaces(obs_space)
        if self.vectors:
            self._make_dense(deter + stoch_width, generator)
        if self.images:
            self._make_seed(deter, stoch_width, generator)
            self._make_convs(generator)

    def _make_dense(self, width: int, generator: torch.Generator | None) -> None:
        config = self.config
        self.mlp = MLP(self.ops, width, config.units, config.layers, config.norm, config.act, generator)
        outputs = {}
        for key, space in self.vectors.items():
            name = "logits" if space.kind == "discrete" else "pred"
            out = Dense(self.ops, self.mlp.width, space.width, outscale=config.outscale, generator=generator)
            outputs[key] = Children({name: out})
        self.vec = Children(outputs)

    def _make_seed(self, deter: int, stoch_width: int, generator: torch.Generator | None) -> None:
        """Layers of the smallest feature map: sp0, sp1, sp2 and spnorm, or space without blocks."""
        config, channels = self.config, self.config.depth * self.config.mults[-1]
        self.seed = (*smallest_map(self.images, len(config.mults), config.outer), channels)
        width = math.prod(self.seed)
        if not config.bspace:
            self.space = Dense(self.ops, deter + stoch_width, width, generator=generator)
            self.spacenorm = NormAct(self.ops, channels, config.norm, config.act)
            return
        for name, size in (("deter", deter), ("channels of the smallest map, depth * mults[-1],", channels)):
            if size % config.bspace:
                raise ValueError(
                    f"{name} = {size} does not divide into bspace = {config.bspace} blocks; change either"
                )
        self.sp0 = Dense(self.ops, deter, width, blocks=config.bspace, generator=generator)
        self.sp1 = Dense(
            self.ops, stoch_width, 2 * config.units, norm=config.norm, act=config.act, generator=generator
        )
        self.sp2 = Dense(self.ops, 2 * config.units, width, generator=generator)
        self.spnorm = NormAct(self.ops, channels, config.norm, config.act)

    def _make_convs(self, generator: torch.Generator | None) -> None:
        config, width = self.config, self.seed[-1]
        for i in reversed(range(len(config.mults) - 1)):
            layer = self._conv(width, config.depth * config.mults[i], True, generator, inner=True)
            self.add_module(f"conv{i}", layer)
            width = config.depth * config.mults[i]
        channels = sum(space.shape[-1] for space in self.images.values())
        self.imgout = self._conv(width, channels, not config.outer, generator, inner=False)

    def _conv(
        self, inp: int, out: int, double: bool, generator: torch.Generator | None, *, inner: bool
    ) -> Conv:
        config = self.config
        return Conv(
            self.ops,
            inp,
            out,
            config.kernel,
            stride=2 if double and config.strided else 1,
            transposed=double and config.strided,
            upsample=double and not config.strided,
            norm=config.norm if inner else "none",
            act=config.act if inner else "none",
            outscale=1.0 if inner else config.outscale,
            generator=generator,
        )

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        """deter [..., D], stoch [..., S*C] of one dtype -> raw outputs in it, keys as in obs_space."""
        outputs: dict[str, Tensor] = {}
        if self.vectors:
            flat = mlp_outputs(torch.cat([stoch, deter], -1), self.mlp.layers, self.outs, self.ops.mlps)
            outputs |= shaped_vectors(self.vectors, flat)
        if self.images:
            outputs |= split_images(self.images, self._decode_images(deter, stoch))
        return {key: outputs[key] for key in self.spaces}

    @property
    def outs(self) -> Layers:
        """The layers that give vectors, as ops take them."""
        return layers_of(part for key in self.vectors for part in self.vec[key].children())

    def _decode_images(self, deter: Tensor, stoch: Tensor) -> Tensor:
        batch = deter.shape[:-1]
        deter, stoch = deter.reshape(-1, deter.shape[-1]), stoch.reshape(-1, stoch.shape[-1])
        x = self._seed_map(deter, stoch).permute(0, 3, 1, 2)
        for i in reversed(range(len(self.config.mults) - 1)):
            x = getattr(self, f"conv{i}")(x)
        x = self.imgout(x).permute(0, 2, 3, 1)
        return x.reshape(*batch, *x.shape[1:])

    def _seed_map(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """[N, D], [N, S*C] -> the smallest feature map [N, h, w, channels]."""
        height, width, channels = self.seed
        if not self.config.bspace:
            x: Tensor = self.space(torch.cat([stoch, deter], -1))
            return self.spacenorm(x.reshape(-1, *self.seed))
        blocks = self.config.bspace
        of_block = blocks, height, width, channels // blocks
        # Each block of sp0 gives its own channels of the whole map. Its bias is added with that of sp2, in one product.
        assert self.sp0.bias is not None and self.sp2.bias is not None
        bias = self.sp2.bias + self.sp0.bias.view(of_block).permute(1, 2, 0, 3).flatten()
        x1 = linear(self.sp1(stoch), self.sp2.weight, bias)
        weight = match(self.sp0.weight, deter.dtype)
        x0 = torch.bmm(deter.unflatten(-1, (blocks, -1)).transpose(0, 1), weight)
        x0 = x0.unflatten(-1, of_block[1:]).permute(1, 2, 3, 0, 4)
        return self.spnorm((x1.view(x0.shape) + x0).reshape(-1, *self.seed))

    def loss(self, outputs: Mapping[str, Tensor], obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss [...] of every key in float32, summed over the elements of its entry.

        Images: squared error of values in [0, 1]; vectors: squared error (in symlog space if config.symlog);
        discrete entries: cross-entropy.
        """
        spaces = {key: space for key, space in self.spaces.items() if space.kind == "vector"}
        found: dict[str, Tensor] = {}
        if spaces:
            outs, targets = ([_flat(x[key], space) for key, space in spaces.items()] for x in (outputs, obs))
            losses = self.ops.vector_losses(outs, targets, self.config.symlog)
            found = dict(zip(spaces, losses, strict=True))
        others = {k: self._loss(s, outputs[k], obs[k]) for k, s in self.spaces.items() if k not in found}
        return {key: (found | others)[key] for key in self.spaces}

    def _loss(self, space: Space, out: Tensor, target: Tensor) -> Tensor:
        if space.kind == "image":
            return self.ops.image_loss(out, target)
        return sum_event(-categorical_log_prob(upcast(out), target.long()), len(space.shape))

    def pred(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw outputs -> predictions: images in [0, 1], vectors in their own units, class indices."""
        return {key: self._pred(space, upcast(outputs[key])) for key, space in self.spaces.items()}

    def _pred(self, space: Space, out: Tensor) -> Tensor:
        if space.kind == "discrete":
            return out.argmax(-1)
        if space.kind == "image":
            return out.sigmoid()
        return self.ops.symexp(out) if self.config.symlog else out


def _flat(x: Tensor, space: Space) -> Tensor:
    """[..., *space.shape] as [..., w]."""
    dims = len(space.shape)
    return x if dims == 1 else x.reshape(*x.shape[: x.dim() - dims], -1)
