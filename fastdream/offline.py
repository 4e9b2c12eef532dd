"""Learning from a dataset alone: the loop of a run without environments, and what it needs of the dataset."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdream.build import Parts, environment, in_processes, replay_kind
from fastdream.config import Config
from fastdream.datasets import DatasetError, Recorded, Resized, Source, find
from fastdream.driver import Driver
from fastdream.learner import Agent, Learner, Metrics, step_spec
from fastdream.progress import counted
from fastdream.replay import Replay
from fastdream.replay_store import GIB, Array, available_memory
from fastdream.transfer import Inputs

# Updates of one `advance`: while one runs, the batch of the next is copied, and nothing is on its way at the end.
BLOCK = 10

# Batches of held-out episodes whose losses are reported at once.
UNSEEN = 10


class Updates:
    """Learns: one `advance` is a block of updates on batches of the dataset, and a step of the run is an update.

    A run is saved between blocks alone, wherever it is stopped, so that a resumed one computes the same losses. Blocks
    end at multiples of their size, and the last one where the run does: to go on from there with more steps is to cut
    a block in two, and the batch after the cut may begin from newer latents than that of a run which was not.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.agent, self.replay, self.driver = parts.agent, parts.replay, parts.driver
        self.learner = Learner(parts.agent, parts.replay, config.train.batch_size, parts.device)
        self.step = 0
        self.phase = self._phase()
        assert isinstance(parts.driver, Recorded), parts.driver
        place = parts.driver, parts.agent, parts.logdir, parts.device
        self.unseen = dataset_replay(config, *place, unseen=True) if config.holdout else None

    def advance(self, _: Mapping[str, Array]) -> None:
        """Make the updates of a block."""
        self.learner.request()
        for left in reversed(range(min(BLOCK - self.step % BLOCK, self.config.steps - self.step))):
            if self.phase != self._phase():
                # Another phase of learning has other losses.
                self.learner.metrics.check()
                self.learner.metrics, self.phase = Metrics(), self._phase()
            self.learner.update(more=left > 0)
            self.step += 1

    def _phase(self) -> str:
        """What an agent that learns in phases learns next; "" for all others."""
        phase: str = getattr(self.agent, "phase", "")
        return phase

    def losses_unseen(self) -> dict[str, float]:
        """Mean losses on batches of the episodes that are held out; changes nothing of what is learned."""
        if self.unseen is None:
            return {}
        size, inputs = self.config.train.batch_size, Inputs(self.parts.device)
        batches = (inputs(self.unseen.sample(size).data) for _ in range(UNSEEN))
        found = [self.agent.report(self.agent.init_train(size), batch)[0] for batch in batches]
        losses = [key for key in found[0] if key.startswith("loss/")]
        return {f"unseen/{key}": float(np.mean([float(one[key]) for one in found])) for key in losses}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, apart from the dataset and the replay's own state."""
        return {
            "agent": self.agent.state_dict(),
            "learner": self.learner.state_dict(),
            "loop": {"step": self.step},
            "random": {"torch": torch.get_rng_state(), "numpy": list(np.random.get_state())},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; the replay must have been restored before."""
        self.agent.load_state_dict(state["agent"])
        self.learner.load_state_dict(state["learner"])
        self.step = int(state["loop"]["step"])
        self.phase = self._phase()
        torch.set_rng_state(state["random"]["torch"])
        np.random.set_state(tuple(state["random"]["numpy"]))


def recorded(config: Config) -> Recorded:
    """The dataset of the settings, read and checked once; held to the task's spaces if there is a task.

    Raises DatasetError, a ValueError, for all that is wrong with it, and EnvError for a task that there is not.
    """
    source: Source = find(config.dataset)
    if config.resize:
        source = Resized(source, config.resize)
    if not config.task:
        return Recorded(config.dataset, source)
    with Driver(environment(config), 1, parallel=in_processes(config), task=config.task) as driver:
        spaces = driver.obs_space, driver.act_space
    return Recorded(config.dataset, source, spaces, f"--task {config.task}")


def split(config: Config, data: Recorded) -> tuple[list[int], list[int]]:
    """Numbers of the episodes that are learned from, and of those that are held out.

    Raises DatasetError where there are too few of either.
    """
    count = len(data.survey.lengths)
    held = round(config.holdout * count)
    if config.holdout and not 0 < held < count:
        raise DatasetError(
            f"{data.name} holds {counted(count, 'episode')}, of which --holdout {config.holdout} makes "
            f"{held:,}: choose a share that leaves some on both sides"
        )
    order = np.random.default_rng((config.seed, 2)).permutation(count).tolist()
    return sorted(order[held:]), sorted(order[:held])


def dataset_replay(
    config: Config,
    data: Recorded,
    agent: Agent,
    directory: Path | None,
    device: torch.device,
    unseen: bool = False,
) -> Replay:
    """A replay that holds what is learned from of a dataset, or what is held out.

    Raises ValueError if that has no sequence as long as a batch's, or no room, for a hold-out where sequences begin
    from states that only learning gives, and as `build.replay_kind`.
    """
    context = agent.replay_context
    if config.holdout and context:
        raise ValueError(
            f"--holdout is not for {config.agent}, whose sequences begin from states that it has left in replay"
        )
    sides, length = split(config, data), config.train.batch_length + context
    for episodes in sides:  # both, so that all is refused before there is a directory
        if episodes:
            check_long_enough(config, data, episodes, length)
    chosen = sides[unseen]
    steps = sum(data.survey.lengths[i] + 1 for i in chosen)
    place = directory if config.replay.on_disk else None
    kind = config.replay.windows
    replay = replay_kind(config, device)(
        step_spec(agent),
        steps,
        1,
        length,
        seed=config.seed,
        online=False,
        directory=place,
        windows=kind,
        fixed=True,
    )
    if not config.replay.on_device and place is None and replay.nbytes > available_memory():
        need, have = replay.nbytes / GIB, available_memory() / GIB
        raise DatasetError(
            f"{data.name} takes {need:.2f} GiB of RAM, but {have:.2f} GiB are available: --replay.on-disk"
        )
    data.fill(replay, chosen)
    return replay


def check_long_enough(config: Config, data: Recorded, episodes: list[int], length: int) -> None:
    """Raise DatasetError if these episodes have no sequence of that length."""
    records = [data.survey.lengths[i] + 1 for i in episodes]
    name = f"{data.name} ({len(episodes):,} of its episodes)" if config.holdout else data.name
    if sum(records) < length:
        raise DatasetError(
            f"{name} holds {sum(records)} records, fewer than one sequence of {length}: shorten --train.batch-length"
        )
    # Of a sequence that must not begin at the last place there are two.
    needed = length + (config.replay.windows == "not_last")
    if config.replay.windows != "stream" and max(records) < needed:
        raise DatasetError(
            f"{name} has no episode of {needed} records (the longest has {max(records)}): shorten "
            "--train.batch-length, or sample across episodes with --replay.windows stream"
        )


def refuse_other_data(logdir: Path, data: Recorded) -> None:
    """Raise DatasetError if the run in this directory learned from a dataset with another content."""
    saved = json.loads((logdir / "config.json").read_text()).get("dataset")
    if saved and saved["digest"] != data.survey.digest:
        raise DatasetError(
            f"{data.name} is not what the run in {logdir} learned from: that had {saved['episodes']:,} episodes and "
            f"{saved['steps']:,} records, this one has {data.survey.episodes:,} and {data.survey.steps:,}; give "
            "--dataset as it was, or choose another --logdir"
        )
