"""Random numbers of agents in checkpoints, which another kind of device may read."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

Generators = Mapping[str, torch.Generator]


def separate(device: torch.device, seed: int) -> dict[str, torch.Generator]:
    """One each to act, to learn and to report from, so that none depends on how often another is asked."""
    names = enumerate(("policy", "train", "report"), start=1)
    return {name: torch.Generator(device).manual_seed(seed + offset) for offset, name in names}


def states(generators: Generators) -> dict[str, Tensor]:
    """Where each of them stands, as a checkpoint keeps it."""
    return {name: generator.get_state() for name, generator in generators.items()}


def restore(generators: Generators, saved: Mapping[str, Tensor]) -> None:
    """Let each of them go on from where `states` found it.

    States of a GPU and of a CPU are of different kinds. From one of the other kind comes a seed: the draws are then
    others than they would have been there, and not those that the run began with.
    """
    for name, generator in generators.items():
        state = saved[name].cpu()
        if state.shape == generator.get_state().shape:
            generator.set_state(state)
        else:
            generator.manual_seed(zlib.crc32(bytes(state.tolist())))
