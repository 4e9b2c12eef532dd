"""`python -m tests.triton_agents PRESET SPACES,... CAPABILITY,...`: compile what agents launch, for GPUs not here.

Runs an update and an action of DreamerV3, or of DreamerV1 where the PRESET is dreamer_v1, or planet for its other core,
with the ops that a GPU gets, computes nothing, compiles every launch that this leads to, and writes what its kernels
take as JSON, a list for every SPACES and CAPABILITY. An op's own cases do not show what only an agent's nets have: as
many layers, such heads. Runs in a process of its own, where Triton does not interpret.
"""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastdream import ops
from fastdream.agents import dreamer_v1
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.ops import triton as backend
from fastdream.ops.triton import library

from . import dreamer_tools, triton_compile
from .agent_tools import CONTINUOUS, IMAGE, MIXED, VECTOR, batch, observation

SPACES = {"vectors": (VECTOR, CONTINUOUS), "images": (IMAGE, MIXED)}


def on_tensors_of_the_host(schema: str, kernel: Callable, fake: Callable) -> str:
    """Instead of `library.register`: the kernels' launches run on a CPU."""
    return library.registry.register(f"triton_{schema}", kernel, fake, ("CPU",))


def made(preset: str, spaces: str) -> tuple[Any, Any]:
    """An agent and a batch of a few steps."""
    table = ops.load(device="cuda")
    if preset in ("dreamer_v1", "planet"):
        config = dreamer_v1.Config(dtype="bfloat16", imag_length=2)
        config = replace(config, dyn=replace(config.dyn, reset_after=preset == "dreamer_v1"))
        earlier = dreamer_v1.DreamerV1(*SPACES[spaces], config, table)
        return earlier, dreamer_tools.batch(earlier, 50, 3)
    agent = DreamerV3(*SPACES[spaces], size(Config(dtype="bfloat16", imag_length=2), preset), table)
    return agent, batch(agent, 16, 3)


def launches(preset: str, spaces: str, capabilities: list[int]) -> list[list[triton_compile.Launch]]:
    """Every launch of an agent's update and action, on each GPU."""
    agent, data = made(preset, spaces)
    taken = []
    for capability in capabilities:
        triton_compile.target[0] = capability
        found: list[triton_compile.Launch] = []
        library.run = lambda kernel, grid, args, constants, found=found: found.append(
            triton_compile.specialised(kernel, args, constants)
        )
        with np.errstate(all="ignore"):  # of results that nobody computed
            agent.update(agent.init_train(len(data["reward"])), data)
            agent.policy(agent.init_policy(2), observation(agent, 2))
        taken.append(list(dict.fromkeys(found)))
    return taken


def main(preset: str, spaces: str, capabilities: str) -> None:
    assert not backend.interpreted(), "TRITON_INTERPRET is set"
    library.register, library.capability = on_tensors_of_the_host, lambda device: triton_compile.target[0]
    backend.available = lambda device: None  # type: ignore[assignment]
    gc.freeze()  # as `triton_compile` does
    gpus = [int(capability) for capability in capabilities.split(",")]
    taken = []
    for kind in spaces.split(","):
        for found, gpu in zip(launches(preset, kind, gpus), gpus, strict=True):
            taken.append([triton_compile.resources(launch, gpu) for launch in found])
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
