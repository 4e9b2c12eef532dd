"""What an episode came to: counted while it runs, handed out when it is over."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    score    sum of rewards; length in steps (the observation after the reset is none).
    crashed  whether it ended because its environment died.
    extras   "name/sum", "name/max" and "name/last" of every "log/name" that the environment gave.
    frames   pictures, uint8 [T, H, W, 3], if they were asked for.
    """

    worker: int
    score: float
    length: int
    crashed: bool = False
    extras: dict[str, float] = field(default_factory=dict)
    frames: np.ndarray | None = None


class Tally:
    """Counts one episode."""

    def __init__(self) -> None:
        self.score = 0.0
        self.length = 0
        self.extras: dict[str, float] = {}

    def add(self, obs: dict[str, Any]) -> None:
        """Counts an observation and takes its "log/..." entries out."""
        if not obs["is_first"]:
            self.length += 1
            self.score += float(obs["reward"])
        for key in [key for key in obs if key.startswith("log/")]:
            name, given = key.removeprefix("log/"), obs.pop(key)
            for value in map(float, given if isinstance(given, tuple) else (given,)):
                self.extras[f"{name}/sum"] = self.extras.get(f"{name}/sum", 0.0) + value
                self.extras[f"{name}/max"] = max(self.extras.get(f"{name}/max", value), value)
                self.extras[f"{name}/last"] = value

    def finish(self, worker: int, crashed: bool, frames: list[np.ndarray] | None) -> Episode:
        """The episode that was counted."""
        pictures = np.stack(frames) if frames else None
        return Episode(worker, self.score, self.length, crashed, dict(self.extras), pictures)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as numbers and texts."""
        names = sorted(self.extras)
        values = np.array([self.extras[name] for name in names], np.float64)
        return {"score": self.score, "length": self.length, "names": "\n".join(names), "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.score, self.length = float(state["score"]), int(state["length"])
        names = str(state["names"]).splitlines()
        self.extras = dict(zip(names, np.asarray(state["values"]).tolist(), strict=True))
