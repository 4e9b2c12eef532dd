"""A trained agent from the folder of its run."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fastdream import agents, checkpoint, config
from fastdream.build import Agent, choose_device, make_agent, make_replay
from fastdream.checkpoint import CheckpointError, Loaded
from fastdream.config import Config
from fastdream.offline import dataset_replay, recorded
from fastdream.replay import CorruptReplay
from fastdream.replay_store import Array
from fastdream.spaces import spaces_from_json
from fastdream.transfer import Inputs


def load_agent(logdir: Path, device: str = "cpu", which: str = "last") -> tuple[Agent, Config, Loaded]:
    """The agent of a run with the parameters of a checkpoint, the run's settings, and what else was saved.

    which   "last", "best", or the folder of one checkpoint.
    Raises ValueError if the folder holds no run, CheckpointError if it holds no sound checkpoint of its agent.
    """
    settings = config.load(logdir)
    spaces = json.loads((logdir / "config.json").read_text())["spaces"]
    loaded = checkpoint.load(logdir / "ckpt", which if which in ("last", "best") else Path(which))
    if loaded is None:
        raise CheckpointError(f"{logdir} holds no checkpoint yet")
    place, _ = choose_device(device)
    settings = suited(settings, place)
    agent = make_agent(settings, spaces_from_json(spaces["obs"]), spaces_from_json(spaces["act"]), place)
    try:
        agent.load_state_dict(loaded.tree["agent"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{loaded.path} is of another agent than {logdir / 'config.json'} describes: one of them is not this run's"
        ) from error
    if settings.agent in agents.STAGED:
        from fastdream.stages import session

        loaded = replace(loaded, notes=(*loaded.notes, *session.lacking(loaded.tree["session"])))
    return agent, settings, loaded


def suited(settings: Config, device: torch.device) -> Config:
    """The settings without what they ask of a GPU, kernels and graphs, where the agent is to act without one."""
    if device.type == "cuda":
        return settings
    kernels = "auto" if settings.ops == "triton" else settings.ops
    graph = "auto" if settings.train.graph == "on" else settings.train.graph
    return replace(settings, ops=kernels, train=replace(settings.train, graph=graph))


def open_loop(
    logdir: Path, agent: Agent, settings: Config, loaded: Loaded, seed: int
) -> tuple[dict[str, Array], int]:
    """Open-loop predictions on sequences of a saved replay: by observation key, see `openloop.open_loop`.

    The replay is the one that was saved with the parameters, or the newest if that is gone: the best parameters
    are kept longer than their replay. Of a run that learned from a dataset it is that. Returns the step that it was
    saved at, too. ValueError if there is none.
    """
    if settings.agent in agents.STAGED:
        from fastdream.stages import pictures

        return pictures.of_run(logdir, agent, seed), loaded.step
    settings = replace(settings, replay=replace(settings.replay, on_device=False))
    make = partial(dataset_replay, data=recorded(settings)) if settings.dataset else make_replay
    replay = make(settings, agent=agent, directory=logdir, device=torch.device("cpu"))

    def fill(saved: Loaded) -> None:
        replay.restore(logdir / "replay", saved.extra["replay"])

    try:
        fill(loaded)
        source: Loaded | None = loaded
    except CorruptReplay:
        source = newest(logdir, fill)
    if source is None:
        raise ValueError(f"no replay in {logdir} can be used")
    size = settings.train.batch_size
    carry = agent.init_train(size)
    batch = Inputs(next(iter(carry.values())).device)(replay.sample(size).data)
    agent.generators["report"].manual_seed(seed)
    return agent.report(carry, batch)[1], source.step


def newest(logdir: Path, fill: Callable[[Loaded], None]) -> Loaded | None:
    """The newest checkpoint whose replay can be restored, if there is one."""
    try:
        return checkpoint.load(logdir / "ckpt", "last", fill)
    except CheckpointError:
        return None
