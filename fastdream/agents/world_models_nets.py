"""The three parts of World Models: V sees (a variational autoencoder), M remembers (an MDN-RNN), C acts (one layer).

Sections of the paper are named by the titles that they have in its interactive version, worldmodels.github.io.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdream.agents.world_models_config import Config
from fastdream.convs import Valid
from fastdream.keras import keras_defaults
from fastdream.nets import Dense
from fastdream.ops import MDNRNN, Control, Ops
from fastdream.ops.reference import controlled, mdn_split
from fastdream.spaces import Spaces

State = tuple[Tensor, Tensor]  # hidden and cell of the LSTM, [N, D] each

SIDE = 64  # pixels: what the convolutions are made for


class Vision(nn.Module):
    """V ("VAE (V) Model"; appendix, "Variational Autoencoder"): pictures [N, 64, 64, C] to normals of z, and back.

    64 pixels a side become 31, 14, 6 and 2; the latent vector becomes 1, 5, 13, 30 and 64.
    """

    def __init__(self, ops: Ops, channels: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        depth, self.tolerance = config.vision.depth, config.vision.tolerance * config.latents
        widths = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        down = [Valid(ops, a, b, 4, act="relu") for a, b in zip(widths, widths[1:], strict=False)]
        self.down = nn.Sequential(*down)
        self.mean, self.logvar = (Dense(ops, 32 * depth, config.latents) for _ in range(2))
        self.seed = Dense(ops, config.latents, 32 * depth)
        self.up = nn.Sequential(
            Valid(ops, 32 * depth, 4 * depth, 5, transposed=True, act="relu"),
            Valid(ops, 4 * depth, 2 * depth, 5, transposed=True, act="relu"),
            Valid(ops, 2 * depth, depth, 6, transposed=True, act="relu"),
            Valid(ops, depth, channels, 6, transposed=True),
        )
        keras_defaults(self, generator)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, 64, 64, C] -> mean and log variance of z, [N, Z] each."""
        x = self.down(unit_pixels(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1)
        return self.mean(x), self.logvar(x)

    def decode(self, latent: Tensor) -> Tensor:
        """[N, Z] -> pictures [N, 64, 64, C] in [0, 1]."""
        x = self.up(self.seed(latent)[:, :, None, None])
        return torch.sigmoid(x).permute(0, 2, 3, 1)

    def loss(self, image: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of pictures uint8 [N, 64, 64, C], summed over pixels, and the KL above what is tolerated.

        noise [N, Z] normal. The authors' code leaves some of the KL free; the paper does not say so.
        Returns the mean over pictures, and metrics.
        """
        mean, logvar = self.encode(image)
        error = (self.decode(draw(mean, logvar, noise)) - unit_pixels(image)).square().sum((1, 2, 3)).mean()
        kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(-1)
        loss = error + kl.clamp_min(self.tolerance).mean()
        return loss, {"loss": loss, "error": error, "kl": kl.mean()}


def unit_pixels(image: Tensor) -> Tensor:
    """uint8 -> values in [0, 1]."""
    return image.float() / 255


def draw(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """A latent vector, all [..., Z], from standard normal noise."""
    return mean + (logvar / 2).exp() * noise


class Memory(nn.Module):
    """M: predicts the next latent vector, as a mixture for each of its dimensions, and whether the episode ends.

    "MDN-RNN (M) Model"; appendix, "Mixture Density Network + Recurrent Neural Network".
    """

    def __init__(self, ops: Ops, actions: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.ops, memory, self.latents = ops, config.memory, config.latents
        self.mixtures, self.ends, self.end_weight = memory.mixtures, memory.ends, memory.end_weight
        width, units = config.latents + actions + memory.ends, memory.units
        self.weight_ih = nn.Parameter(torch.empty(4 * units, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        self.bias = nn.Parameter(torch.empty(4 * units))
        self.out = Dense(ops, units, 3 * config.latents * memory.mixtures + memory.ends)
        keras_defaults(self, generator)
        assert self.out.bias is not None
        # One matrix of both in the authors' code, and Glorot's limit is that matrix's. Their biases are drawn as well:
        # TensorFlow's default for whatever has no initialiser of its own, with as many inputs as outputs.
        matrix = math.sqrt(6 / (width + units + 4 * units))
        limits = [(self.weight_ih, matrix), (self.weight_hh, matrix)]
        limits += [(bias, math.sqrt(3 / len(bias))) for bias in (self.bias, self.out.bias)]
        with torch.no_grad():
            for param, limit in limits:
                param.uniform_(-limit, limit, generator=generator)

    @property
    def params(self) -> MDNRNN:
        """As ops take them."""
        weights = self.weight_ih, self.weight_hh, self.bias, self.out.layer
        return MDNRNN(*weights, self.mixtures, self.ends)

    def initial(self, n: int) -> State:
        """The state before the first step."""
        zero = self.bias.new_zeros(n, self.weight_hh.shape[1])
        return zero, zero

    def unroll(self, latent: Tensor, action: Tensor, restart: Tensor, state: State) -> tuple[Tensor, State]:
        """The LSTM over latent [B, T, Z], action [B, T, A] and restart [B, T], zeroed where an episode begins.

        Returns what it gives out [B, T, D], and its last state.
        """
        flag = [restart[..., None].to(latent.dtype)] if self.ends else []
        entered = F.linear(torch.cat([latent, action, *flag], -1), self.weight_ih, self.bias)
        hidden, cell = self.ops.lstm_scan(entered, self.weight_hh, restart, *state)
        return hidden, (hidden[:, -1], cell)

    def loss(self, hidden: Tensor, target: Tensor, end: Tensor, follows: Tensor) -> dict[str, Tensor]:
        """Losses from the LSTM's output [..., D]: of the next latent [..., Z], and of whether it is an episode's end.

        end, follows [...] bool: where the next step is the end, and where it is of the same episode at all.
        """
        logit_end, logit, mean, logstd = mdn_split(self.out(hidden), self.latents, self.mixtures)
        rows = follows.to(hidden.dtype)
        count = rows.sum().clamp_min(1)
        losses = {"latent": (mixture_loss(logit, mean, logstd, target).mean(-1) * rows).sum() / count}
        if self.ends:
            weight = rows * torch.where(end, self.end_weight, 1.0)
            each = F.binary_cross_entropy_with_logits(
                logit_end, end.to(hidden.dtype), weight, reduction="sum"
            )
            losses["end"] = each / count
        return losses


def mixture_loss(logit: Tensor, mean: Tensor, logstd: Tensor, target: Tensor) -> Tensor:
    """-log probability [...] of target [...] under the mixtures of normals [..., K]."""
    score = (target[..., None] - mean) * torch.exp(-logstd)
    normal = -0.5 * score.square() - logstd - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(torch.log_softmax(logit, -1) + normal, -1)


class Controller:
    """C: a linear map of [z, h], or of [z, c, h], through tanh; its parameters are a vector that evolution chooses.

    "Controller (C) Model"; appendix, "Controller". Each number of a continuous action and each discrete element has one
    output in [-1, 1], which is cut into equal parts for the classes: three of them are left, stay and right as in the
    paper.
    """

    def __init__(self, act_space: Spaces, config: Config) -> None:
        self.act_space, self.cell, self.bias = act_space, config.control.cell, config.control.bias
        self.actions = sum(space.size for space in act_space.values())
        self.features = config.latents + config.memory.units * (1 + self.cell)
        self.count = self.actions * (self.features + self.bias)

    def __call__(self, controls: Tensor, latent: Tensor, state: State) -> Tensor:
        """controls [P], or [N, P] for one controller a row; latent [N, Z] -> action [N, A].

        Biases come first in the vector, then a row of A weights for each feature.
        """
        return controlled(self.params(controls), latent, *state)

    def params(self, controls: Tensor) -> Control:
        """Vectors [N, P], or one [P], as ops take them."""
        bias, weight = controls.split([self.actions * self.bias, self.actions * self.features], -1)
        return Control(weight.unflatten(-1, (self.features, self.actions)), bias if self.bias else None)

    def decode(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """[N, A] in [-1, 1] -> what the environments take."""
        decoded, start = {}, 0
        for key, space in sorted(self.act_space.items()):
            x, start = action[:, start : start + space.size], start + space.size
            if space.kind == "discrete":
                part = np.floor((x + 1) / 2 * space.classes).astype(np.int32)
                x = np.clip(part, 0, space.classes - 1)
            decoded[key] = x.reshape(-1, *space.shape)
        return decoded

    def encode(self, actions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions [N, ...] by key, as environments take them -> [N, A] that `decode` makes them of.

        Of a class, the middle of its part.
        """
        parts = []
        for key, space in sorted(self.act_space.items()):
            x = actions[key].reshape(-1, space.size)
            parts.append((2 * x + 1) / space.classes - 1 if space.kind == "discrete" else x)
        return np.concatenate(parts, 1).astype(np.float32)


def picture_key(obs_space: Spaces) -> str:
    """The one picture among the observations; ValueError where there is none, or several, or another size."""
    pictures = [key for key, space in obs_space.items() if space.kind == "image"]
    if len(pictures) != 1 or obs_space[pictures[0]].shape[:2] != (SIDE, SIDE):
        shown: Mapping[str, tuple[int, ...]] = {key: space.shape for key, space in obs_space.items()}
        raise ValueError(
            f"world_models sees one picture of {SIDE} × {SIDE} pixels, and the environment shows {shown}; "
            f"choose a task with pictures, or resize them (--suite.size {SIDE}; of a dataset, --resize {SIDE})"
        )
    return pictures[0]
