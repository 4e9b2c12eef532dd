"""The first stage of a run that learns from a dataset: its episodes stand where those of a random policy would."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np

from fastdream.agents.world_models import WorldModels
from fastdream.config import Config
from fastdream.datasets import DatasetError, Recorded
from fastdream.progress import counted, tenths
from fastdream.recording import Recording
from fastdream.replay_store import Array


def shortest(config: Config) -> int:
    """Records of an episode below which it is left out; a reset alone teaches nothing."""
    return max(2, int(config.dreamer.collect.shortest))


def usable(config: Config, data: Recorded) -> int:
    """How many records of a dataset V and M learn from.

    Raises ValueError where C should not be evolved in dreams, and DatasetError if no episode is long enough, or if none
    of those that are ends in a terminal state, since no dream could end then.
    """
    if config.dreamer.control.where != "dream":
        raise ValueError(
            f"--dreamer.control.where {config.dreamer.control.where}: there is no environment where a dataset is "
            "learned from; evolve C in dreams (--dreamer.control.where dream), or leave --dataset out"
        )
    least, records = shortest(config), [length + 1 for length in data.survey.lengths]
    long = [i for i, count in enumerate(records) if count >= least]
    if not long:
        raise DatasetError(
            f"no episode of {data.name} has the {least} records of --dreamer.collect.shortest; the longest has "
            f"{max(records)}: choose less"
        )
    if not any(data.survey.terminal[i] for i in long):
        raise DatasetError(
            f"none of the {counted(len(long), 'episode')} of {data.name} with at least {least} records ends in a "
            "terminal state, so M learns no end, every dream lasts as long, and nothing tells one controller from "
            "another: give episodes that can end"
        )
    return sum(records[i] for i in long)


class Read:
    """Copies the episodes that are long enough to where rollouts are kept, one with every `advance`."""

    def __init__(self, config: Config, agent: WorldModels, data: Recorded, recording: Recording) -> None:
        self.agent, self.data, self.recording = agent, data, recording
        self.units = config.steps
        long = (episode for episode in data.each() if len(episode["reward"]) >= shortest(config))
        self.left = islice(long, len(recording.episodes), None)

    @property
    def done(self) -> int:
        """Records that are copied."""
        return self.recording.rows

    def advance(self) -> None:
        """One episode."""
        data = next(self.left)
        follow = self.agent.controller.encode({key: data[f"action/{key}"][1:] for key in self.data.act_space})
        episode: dict[str, Array] = {
            "image": data[self.agent.key],
            # Nothing follows the last picture.
            "action": np.concatenate([follow, np.zeros_like(follow[:1])]),
            "first": data["is_first"],
            "terminal": data["is_terminal"],
        }
        score = float(data["reward"].sum(dtype=np.float64))
        self.recording.add(episode, worker=0, score=score, length=len(follow))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is copied is on the disk."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What is copied was read already."""

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def finish(self) -> str:
        """What came of it, which the checkpoints of later stages count on."""
        self.recording.sync()
        episodes = counted(len(self.recording.episodes), "episode")
        mean = tenths(self.data.survey.mean)
        return f"{self.recording.rows:,} steps of {episodes}; mean return of the dataset: {mean}"
