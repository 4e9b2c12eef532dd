"""A dataset whose pictures are brought to another size, such as V-D4RL's of 84 pixels for nets that see 64."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fastdream.datasets.layout import Array, Raw, Source, is_picture, planes
from fastdream.envs.images import resize
from fastdream.spaces import Spaces


class Resized:
    """Shows every image of another dataset with this height and width."""

    def __init__(self, source: Source, size: int) -> None:
        self._source, self._size = source, size
        self.layout = source.layout
        self.spaces: tuple[Spaces, Spaces] | None = None
        if source.spaces is not None:
            obs, act = source.spaces
            pictures = {
                k: replace(s, shape=(size, size, s.shape[2])) for k, s in obs.items() if s.kind == "image"
            }
            self.spaces = {**obs, **pictures}, act

    def episodes(self) -> Iterator[Raw]:
        """Its episodes."""
        for place, data in self._source.episodes():
            yield Raw(place, {key: self._resized(value) for key, value in data.items()})

    def _resized(self, value: Array) -> Array:
        value = planes(value)
        if not is_picture(value):
            return value
        return np.stack([resize(picture, self._size) for picture in value])
