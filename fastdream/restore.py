"""A trained agent from the folder of its run."""

import json
from pathlib import Path

from fastdream import checkpoint, config
from fastdream.build import Agent, choose_device, make_agent, make_replay, spaces_from_json, step_spec
from fastdream.checkpoint import CheckpointError, Loaded
from fastdream.config import Config
from fastdream.learner import to_device
from fastdream.replay_store import Array


def load_agent(logdir: Path, device: str = "cpu", which: str = "last") -> tuple[Agent, Config, Loaded]:
    """The agent of a run with the parameters of a checkpoint, the run's settings, and what else was saved.

    which   "last", "best", or the folder of one checkpoint.
    Raises ValueError if the folder holds no run, CheckpointError if it holds no sound checkpoint.
    """
    settings = config.load(logdir)
    spaces = json.loads((logdir / "config.json").read_text())["spaces"]
    loaded = checkpoint.load(logdir / "ckpt", which if which in ("last", "best") else Path(which))
    if loaded is None:
        raise CheckpointError(f"{logdir} holds no checkpoint yet")
    place, _ = choose_device(device)
    agent = make_agent(settings, spaces_from_json(spaces["obs"]), spaces_from_json(spaces["act"]), place)
    agent.load_state_dict(loaded.tree["agent"])
    return agent, settings, loaded


def open_loop(logdir: Path, agent: Agent, settings: Config, loaded: Loaded, seed: int) -> dict[str, Array]:
    """Open-loop predictions on sequences of the saved replay: by observation key, see `openloop.open_loop`."""
    spaces = json.loads((logdir / "config.json").read_text())["spaces"]
    spec = step_spec(spaces_from_json(spaces["obs"]), spaces_from_json(spaces["act"]), agent)
    replay = make_replay(settings, spec, agent.replay_context, logdir)
    replay.restore(logdir / "replay", loaded.extra["replay"])
    size = settings.train.batch_size
    carry = agent.init_train(size)
    batch = to_device(replay.sample(size).data, next(iter(carry.values())).device)
    agent.generators["report"].manual_seed(seed)
    return agent.report(carry, batch)[1]
