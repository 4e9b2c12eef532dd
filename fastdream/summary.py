"""What a run says of itself before it begins."""

import resource
import sys

import torch

from fastdream import checkpoint, graphs, ops
from fastdream.build import Parts, in_processes
from fastdream.config import Config
from fastdream.datasets import Recorded
from fastdream.offline import split
from fastdream.progress import counted
from fastdream.spaces import Space, Spaces


def header(config: Config, parts: Parts, why: str, kept: bool = True) -> str:
    """What is about to happen, in a few lines.

    why    the device is the one that it is.
    kept   whether the run's directory outlives it.
    """
    agent, driver = parts.agent, parts.driver
    many, threads = driver.n > 1, torch.get_num_threads()
    envs = f"{driver.n} environments, each in a process" if many else "1 environment, in its own process"
    if not in_processes(config):
        envs = f"{counted(driver.n, 'environment')}, in this process"
    from_what = {"task": f"{config.task}, {envs}"}
    if isinstance(driver, Recorded):
        count = len(split(config, driver)[1])
        held = f"; {counted(count, 'episode')} held out" if config.holdout else ""
        from_what = {"dataset": f"{driver.name}: {driver.survey}{held}"}
        from_what["task"] = (
            f"{config.task}, for evaluation" if config.task else "none, so no evaluation (--task)"
        )
    variant = f" {config.variant}" * (config.agent == "dreamer_v3")  # the others have none
    facts = from_what | {
        "observes": spoken(driver.obs_space),
        "acts": spoken(driver.act_space),
        "agent": f"{config.agent}{variant}, preset {config.preset}, size {config.size}, "
        f"{agent.param_count:,} parameters",
        "device": f"{parts.device} ({why}), {str(agent.dtype).removeprefix('torch.')} matrix products, "
        f"{counted(threads, 'thread')}{', CUDA graphs' * graphs.captured(parts.agent)}",
        "ops": served(parts),
        "replay": parts.replay.describe(),
        "run": f"{parts.logdir} ({begun(parts)})" if kept else "tried out; nothing is kept",
    }
    return "\n".join(f"{name:9} {fact}" for name, fact in facts.items())


def begun(parts: Parts) -> str:
    """Whether the directory holds a run already: a mistyped one does not."""
    return "continues" if checkpoint.any_in(parts.logdir / "ckpt") else "new"


def served(parts: Parts) -> str:
    """Which backend serves the ops: most of them, and the others by name."""
    backends: dict[str, list[str]] = {}
    for row in ops.table(parts.agent.ops):
        backends.setdefault(row.backend, []).append(row.op)
    most = max(backends, key=lambda name: len(backends[name]))
    return most + "".join(f"; {name}: {', '.join(names)}" for name, names in backends.items() if name != most)


def spoken(spaces: Spaces) -> str:
    """Spaces for people."""
    return ", ".join(f"{key} ({_kind(space)})" for key, space in spaces.items())


def _kind(space: Space) -> str:
    size = " × ".join(map(str, space.shape))
    if space.kind == "discrete":
        return f"{size} × 1 of {space.classes}" if size else f"1 of {space.classes}"
    if space.kind == "image":
        return f"{size} pixels"
    return f"{size} numbers" if space.size > 1 else "1 number"


def memory(device: torch.device) -> str:
    """Most memory that was used so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e6:,.0f} MB"
    return text
