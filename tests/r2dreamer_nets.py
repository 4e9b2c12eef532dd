"""The networks and distributions of `r2dreamer_stand_in`."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

Config = SimpleNamespace


def same_size(conv: nn.Conv2d, x: Tensor) -> Tensor:
    before = (conv.kernel_size[0] - 1) // 2
    after = conv.kernel_size[0] - 1 - before
    return F.conv2d(F.pad(x, (before, after) * 2), conv.weight, conv.bias)


def dense(inputs: int, *outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for out in outputs:
        layers += [nn.Linear(inputs, out), nn.RMSNorm(out, eps=1e-4), nn.SiLU()]
        inputs = out
    return layers


class LambdaLayer(nn.Module):
    def __init__(self, lambd: Any) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, x: Tensor) -> Tensor:
        return self.lambd(x)


class BlockLinear(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, blocks: int) -> None:
        super().__init__()
        width = in_ch // blocks
        self.weight = nn.Parameter(torch.randn(out_ch // blocks, width, blocks) / width**0.5)
        self.bias = nn.Parameter(torch.randn(out_ch) / 10)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.weight.shape[2], -1)).unbind(-2)
        maps = self.weight.unbind(2)
        return torch.cat([part @ w.t() for part, w in zip(parts, maps, strict=True)], -1) + self.bias


class MLP(nn.Module):
    def __init__(self, config: Config, inp_dim: int) -> None:
        super().__init__()
        self._symlog_inputs = config.symlog_inputs
        self.layers = nn.Sequential(*dense(inp_dim, *[config.units] * config.layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.sign() * x.abs().log1p() if self._symlog_inputs else x)


class MLPHead(nn.Module):
    def __init__(self, config: Config, inp_dim: int) -> None:
        super().__init__()
        self.mlp = MLP(config, inp_dim)
        settings = dict(vars(config.dist))
        self._dist_name = settings.pop("name")
        out = sum(config.shape) * (2 if self._dist_name == "bounded_normal" else 1)
        if self._dist_name == "multi_onehot":
            settings["shape"] = tuple(config.shape)
        self.last = nn.Linear(config.units, out)
        self._dist = partial(DISTS[self._dist_name], **settings)

    def forward(self, x: Tensor) -> Any:
        return self._dist(self.last(self.mlp(x)))


class ConvEncoder(nn.Module):
    def __init__(self, config: Config, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = input_shape[-1]
        for mult in config.mults:
            out = config.depth * mult
            layers += [nn.Conv2d(channels, out, config.kernel_size), nn.MaxPool2d(2, 2)]
            layers += [nn.RMSNorm(out, eps=1e-4), nn.SiLU()]
            channels = out
        self.layers = nn.Sequential(*layers)

    def forward(self, obs: Tensor) -> Tensor:
        x = (obs - 0.5).flatten(0, -4).permute(0, 3, 1, 2)
        return drawn_through(self.layers, x).flatten(1).unflatten(0, obs.shape[:-3])


def drawn_through(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Images [N, C, H, W] through layers; norms are over the channels."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = same_size(layer, x)
        elif isinstance(layer, nn.RMSNorm):
            x = layer(x.movedim(1, -1)).movedim(-1, 1)
        else:
            x = layer(x)
    return x


class ConvDecoder(nn.Module):
    def __init__(self, config: Config, deter: int, flat_stoch: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        depths = [config.depth * mult for mult in config.mults]
        self.min_shape = (*(n // 2 ** len(depths) for n in shape[1:]), depths[-1])
        self.bspace = config.bspace
        size = self.min_shape[0] * self.min_shape[1] * self.min_shape[2]
        self.sp0 = BlockLinear(deter, size, self.bspace)
        self.sp1 = nn.Sequential(*dense(flat_stoch, 2 * config.units))
        self.sp2 = nn.Linear(2 * config.units, size)
        self.sp_norm = nn.Sequential(nn.RMSNorm(depths[-1], eps=1e-4), nn.SiLU())
        layers: list[nn.Module] = []
        for inp, out in zip(depths[::-1], [*depths[-2::-1], shape[0]], strict=True):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inp, out, config.kernel_size)]
            layers += [nn.RMSNorm(out, eps=1e-4), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, stoch: Tensor, deter: Tensor) -> Tensor:
        lead, (height, width, channels) = deter.shape[:-1], self.min_shape
        x0 = self.sp0(deter.flatten(0, -2)).view(-1, self.bspace, height, width, channels // self.bspace)
        x0 = torch.cat(x0.unbind(1), -1)  # every block gives its own channels
        x1 = self.sp2(self.sp1(stoch.reshape(len(x0), -1))).view(x0.shape)
        x = drawn_through(self.layers, self.sp_norm(x0 + x1).movedim(-1, 1))
        return torch.sigmoid(x).movedim(1, -1).unflatten(0, lead)


def mixed(logit: Tensor, unimix: float) -> Tensor:
    return ((1 - unimix) * logit.softmax(-1) + unimix / logit.shape[-1]).log()


def gumbel(logit: Tensor, unimix: float) -> Tensor:
    return F.gumbel_softmax(mixed(logit, unimix), hard=True)


def onehot(logit: Tensor, unimix_ratio: float) -> Any:
    probs = mixed(logit, unimix_ratio)
    return Config(rsample=lambda: F.gumbel_softmax(probs, hard=True))


def bounded_normal(x: Tensor, min_std: float, max_std: float) -> Any:
    mean, std = x.chunk(2, -1)
    return Independent(Normal(mean.tanh(), min_std + (max_std - min_std) * torch.sigmoid(std + 2)), 1)


def multi_onehot(logit: Tensor, shape: tuple[int, ...], unimix_ratio: float) -> Any:
    parts = [onehot(part, unimix_ratio) for part in logit.split(shape, -1)]
    return Config(rsample=lambda: torch.cat([part.rsample() for part in parts], -1))


DISTS = {"bounded_normal": bounded_normal, "onehot": onehot, "multi_onehot": multi_onehot}
