"""What a run has in place of environments when it learns from a dataset."""

from collections.abc import Collection, Iterator

import numpy as np

from fastdream.datasets.check import Survey, survey
from fastdream.datasets.layout import Arrays, DatasetError, Source, episodes, singly
from fastdream.episodes import Episode
from fastdream.replay import Replay
from fastdream.replay_store import Array
from fastdream.spaces import Spaces


class Recorded:
    """A dataset that was found sound. Where a loop asks it for observations, as it would a Driver, there are none.

    name    what the user calls it.
    spaces  that it must fit, and whose they are; None takes its own.
    Raises DatasetError that names all that is wrong.
    """

    n = 1  # the stream that all episodes are read into, as an environment's would be

    def __init__(
        self, name: str, source: Source, spaces: tuple[Spaces, Spaces] | None = None, of: str = ""
    ) -> None:
        self.name, self._source = name, source
        try:
            self.survey: Survey = survey(source, spaces)
        except DatasetError as error:
            fit = f" and what {of} shows and takes" if spaces else ""
            raise DatasetError(f"{name}{fit}: {error}") from error
        self.obs_space, self.act_space = self.survey.obs_space, self.survey.act_space

    def fill(self, replay: Replay, chosen: Collection[int] | None = None) -> None:
        """Add the chosen episodes, by their numbers, or all of them, to an empty replay of one worker.

        Latents begin as zeros.
        """
        blank = {
            key: np.zeros(shape[2:], dtype)
            for key, (shape, dtype) in replay.window_spec(1).items()
            if key in ("deter", "stoch")
        }
        for number, data in enumerate(self.each()):
            if chosen is None or number in chosen:
                for t in range(len(data["reward"])):
                    replay.add(0, blank | {key: value[t] for key, value in data.items()})

    def each(self) -> Iterator[Arrays]:
        """The episodes one by one, in the layout of replay.py; numbers in `survey` are in the same order."""
        for data in episodes(self._source, self.obs_space, self.act_space):
            yield from singly(data)

    def recv(self) -> dict[str, Array]:
        """No observations."""
        return {}

    def episodes(self) -> list[Episode]:
        """No episode ends here."""
        return []

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
