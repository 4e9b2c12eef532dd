"""From settings to the parts of a run: device, kernels, environments, replay, agent."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastdream import agents, graphs, ops
from fastdream.checkpoint import Checkpoint
from fastdream.config import Config, to_dict
from fastdream.datasets import Recorded
from fastdream.driver import Driver
from fastdream.envs import make_seeded, suite_of
from fastdream.learner import Agent, step_spec
from fastdream.logger import Logger
from fastdream.replay import Replay
from fastdream.replay_device import DeviceReplay
from fastdream.rundir import StorageError
from fastdream.spaces import Spaces
from fastdream.workers import MakeEnv

# Suites whose steps are cheaper than a message to a process.
CHEAP = ("gym", "dummy")


@dataclass
class Parts:
    """What the loops of run.py work with."""

    agent: Agent
    replay: Replay
    driver: Driver | Recorded
    make_env: MakeEnv
    logger: Logger
    checkpoint: Checkpoint
    device: torch.device
    logdir: Path


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device that `--device` asks for, and why it is this one; ValueError if it is not there."""
    cuda = torch.cuda.is_available()
    missing = f"this PyTorch ({torch.__version__}) finds no CUDA device" if torch.version.cuda else (
        f"this PyTorch ({torch.__version__}) is built without CUDA"
    )  # fmt: skip
    if name == "auto":
        name = "cuda" if cuda else "cpu"
        why = f"auto: {torch.cuda.get_device_name(0)} is there" if cuda else f"auto: {missing}"
    else:
        why = "asked for"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:<n>") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:<n>")
    if device.type == "cuda" and not cuda:
        raise ValueError(f"--device {name}: {missing}; use --device cpu, or install a PyTorch with CUDA")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices")
    return device, why


def environment(config: Config) -> MakeEnv:
    """What makes one environment of the task from a seed; can be sent to another process."""
    options = {} if config.suite is None else asdict(config.suite)
    # A function of envs, so that a worker's process imports neither torch nor an agent.
    return partial(make_seeded, config.task, **options)


def scored(suite: Any) -> Any:
    """A suite's options for evaluation, which may be others than in training."""
    return suite.scored() if hasattr(suite, "scored") else suite


def evaluation(config: Config) -> MakeEnv:
    """As `environment`, to evaluate in."""
    return environment(replace(config, suite=scored(config.suite)))


def in_processes(config: Config) -> bool:
    """Whether each environment gets a process of its own."""
    if config.env.parallel == "auto":
        return suite_of(config.task) not in CHEAP
    return config.env.parallel == "yes"


def make_agent(config: Config, obs_space: Spaces, act_space: Spaces, device: torch.device) -> Agent:
    """The agent of the settings, with fresh parameters; ValueError if it should use graphs that the device lacks."""
    kind = agents.find(config.agent)
    captured = graphs.wanted(config.train.graph, device, kind)
    kernels = ops.load(config.ops, device=device)
    agent: Agent = kind(obs_space, act_space, config.dreamer, kernels, device=device, seed=config.seed)
    if captured:
        graphs.capture(agent, check=partial(ops.check, device))
    return agent


def replay_kind(config: Config, device: torch.device) -> Callable[..., Replay]:
    """What makes a replay where the settings want its steps kept; ValueError if that is a GPU, and there is none."""
    if not config.replay.on_device:
        return Replay
    if device.type != "cuda":
        raise ValueError(f"--replay.on-device needs a CUDA device, this is {device}: leave it out")
    return partial(DeviceReplay, device=device)


def make_replay(config: Config, agent: Agent, directory: Path | None, device: torch.device) -> Replay:
    """The replay of the settings for what the agent observes, does and keeps.

    ValueError if it can never hold the windows of one batch, or as `replay_kind`; StorageError if the disk has no
    place for it.
    """
    length = config.train.batch_length + agent.replay_context
    need, count = min_windows(config), config.env.count
    if config.replay.capacity - count * (length - 1) < need:
        raise ValueError(
            f"--replay.capacity {config.replay.capacity} is too small for one batch: {count} environments and "
            f"{need} windows of {length} steps need at least {need + count * length}"
        )
    place = directory if config.replay.on_disk else None
    try:
        return replay_kind(config, device)(
            step_spec(agent),
            config.replay.capacity,
            count,
            length,
            seed=config.seed,
            online=config.replay.online,
            directory=place,
            windows=config.replay.windows,
        )
    except OSError as error:
        raise StorageError(f"--replay.on-disk in {place}: {error.strerror}") from error


def make_parts(
    config: Config,
    agent: Agent,
    replay: Replay,
    driver: Driver | Recorded,
    device: torch.device,
    logdir: Path,
) -> Parts:
    """All parts of a run, with what it logs to and where it keeps checkpoints; StorageError if the disk refuses."""
    logger = Logger(
        logdir,
        config.log.outputs,
        project=config.log.wandb_project,
        config=to_dict(config),
        interval=config.log.every,
    )
    checkpoint = Checkpoint(logdir / "ckpt")
    return Parts(agent, replay, driver, evaluation(config), logger, checkpoint, device, logdir)


def min_windows(config: Config) -> int:
    """Different windows that replay must hold before the first update.

    As many as a batch has steps, unless a number of steps is asked for.
    """
    return 1 if config.train.prefill else config.train.batch_size * config.train.batch_length
