"""The authors' World Models in ours: variables by their names and layouts, agents of the same sizes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdream import presets
from fastdream.agents.world_models import WorldModels
from fastdream.config import Config
from fastdream.spaces import Space

from .golden_tools import BACKENDS, Golden
from .world_models_draws import weights

FOLDER = Path(__file__).parent / "golden" / "world_models"
TASKS = {"car": "car_racing", "doom": "vizdoom_take_cover"}
FILES = {path.stem: Golden(path) for path in FOLDER.glob("*.npz")}
HELD = pytest.mark.skipif(not FILES, reason="a source distribution leaves golden numbers out")
EACH = pytest.mark.parametrize("which", TASKS)
IMAGE = {"image": Space("image", (64, 64, 3))}
ACTIONS = {"car": {"action": Space("vector", (3,))}, "doom": {"action": Space("discrete", (), 3)}}

LAYERS = {
    **{f"enc_conv{n}": f"down.{n - 1}" for n in (1, 2, 3, 4)},
    "enc_fc_mu": "mean",
    "enc_fc_log_var": "logvar",
    "dec_fc": "seed",
    **{f"dec_deconv{n}": f"up.{n - 1}" for n in (1, 2, 3, 4)},
}
CELL = "RNN/layer_norm_basic_lstm_cell"


def floats(gold: Golden, prefix: str) -> dict[str, Tensor]:
    """Arrays below a prefix, in float32 where they are floats."""
    found = gold.tensors(prefix)
    return {key: x.float() if x.is_floating_point() else x for key, x in found.items()}


def axes(layer: str, dims: int) -> tuple[int, ...]:
    """Of TensorFlow's kernels in our weights: [in, out], HWIO, and HWOI where convolutions are transposed."""
    if dims == 4:
        return (2, 3, 0, 1) if "deconv" in layer else (3, 2, 0, 1)
    return tuple(range(dims))[::-1]


def read_vision(values: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Their variables of V by the names of our parameters."""
    read = {}
    for name, value in values.items():
        layer, kind = name.split("/")
        ours = f"{LAYERS[layer]}.{'weight' if kind == 'kernel' else 'bias'}"
        read[ours] = torch.from_numpy(value.transpose(axes(layer, value.ndim)).copy())
    return read


def write_vision(params: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Our parameters of V, or their gradients, by the names of their variables."""
    written = {}
    for layer, ours in LAYERS.items():
        weight = params[f"{ours}.weight"].detach().numpy()
        written[f"{layer}/kernel"] = weight.transpose(np.argsort(axes(layer, weight.ndim)))
        written[f"{layer}/bias"] = params[f"{ours}.bias"].detach().numpy()
    return written


def read_memory(values: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Their variables of M by the names of our parameters: the kernel is of inputs and, below them, of hidden."""
    kernel, units = values[f"{CELL}/kernel"], len(values["RNN/output_w"])
    read = {"weight_ih": kernel[:-units].T, "weight_hh": kernel[-units:].T, "bias": values[f"{CELL}/bias"]}
    read |= {"out.weight": values["RNN/output_w"].T, "out.bias": values["RNN/output_b"]}
    return {name: torch.from_numpy(value.copy()) for name, value in read.items()}


def write_memory(params: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Our parameters of M, or their gradients, by the names of their variables."""
    found = {name: value.detach().numpy() for name, value in params.items()}
    kernel = np.concatenate([found["weight_ih"].T, found["weight_hh"].T])
    written = {f"{CELL}/kernel": kernel, f"{CELL}/bias": found["bias"]}
    return written | {"RNN/output_w": found["out.weight"].T, "RNN/output_b": found["out.bias"]}


def grads(module: nn.Module) -> dict[str, Tensor]:
    """Of every parameter by its name."""
    found = {name: param.grad for name, param in module.named_parameters()}
    assert None not in found.values(), found
    return {name: grad for name, grad in found.items() if grad is not None}


def variables(gold: Golden) -> dict[str, np.ndarray]:
    """Those that a file was made with, drawn anew."""
    return weights(gold.config["net"], gold.config["shapes"], gold.config["gains"])


def settings(which: str, gold: Golden | None = None) -> Config:
    """Of the experiment; with the sizes and without V's where a file is of a small M."""
    config = presets.resolve(TASKS[which], agent="world_models")
    if gold is None:
        return config
    dreamer, rows = config.dreamer, len(gold["in/z"])
    memory = replace(dreamer.memory, units=gold.config["units"], batch=rows, length=gold["in/z"].shape[1] - 1)
    vision = replace(dreamer.vision, depth=1)
    return replace(
        config, dreamer=replace(dreamer, latents=gold.config["latents"], memory=memory, vision=vision)
    )


def make(which: str, config: Config, backend: str = "reference") -> WorldModels:
    """Our agent."""
    return WorldModels(IMAGE, ACTIONS[which], config.dreamer, BACKENDS[backend])


def with_vision(which: str, gold: Golden, backend: str) -> WorldModels:
    """Our agent with their V."""
    agent = make(which, settings(which), backend)
    agent.vision.load_state_dict(read_vision({k: v for k, v in variables(gold).items() if "RNN" not in k}))
    return agent


def with_memory(which: str, gold: Golden, backend: str, small: bool = False) -> WorldModels:
    """Our agent with their M."""
    agent = make(which, settings(which, gold if small else None), backend)
    agent.memory.load_state_dict(read_memory({k: v for k, v in variables(gold).items() if "RNN" in k}))
    return agent


class Recorded:
    """Rows of episodes in memory, in the place of a recording and of what V made of it: z without noise."""

    def __init__(self, z: np.ndarray, **flags: np.ndarray) -> None:
        self.rows = z[..., 0].size
        self.z = z.reshape(self.rows, -1).astype(np.float16)
        self.flags = {key: x.reshape(self.rows, *x.shape[2:]) for key, x in flags.items()}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.flags[key]

    def starts(self) -> np.ndarray:
        """One episode, so that there is one order of them."""
        return np.array([0])

    def lengths(self) -> np.ndarray:
        return np.array([self.rows])


class Known:
    """The same as encoded pictures: what the deviation of z multiplies is nothing."""

    def __init__(self, recorded: Recorded) -> None:
        self.z = recorded.z

    def rows(self, rows: np.ndarray) -> dict[str, Any]:
        return {"mean": self.z[rows], "logvar": np.full_like(self.z[rows], -np.inf)}
