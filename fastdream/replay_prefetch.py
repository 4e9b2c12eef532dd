"""Sampling in the background, with samples that do not depend on how fast the threads run."""

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from fastdream.replay import Replay
from fastdream.replay_store import Array, Ids
from fastdream.replay_windows import Draw

T = TypeVar("T")


class Converted(NamedTuple, Generic[T]):
    """A sampled batch after conversion, and the ids of its steps [batch, length] for `Replay.update`."""

    data: T
    ids: Ids


class Prefetch(Generic[T]):
    """Copies and converts the next batches of a replay in one background thread.

    A batch is what `replay.sample` would have returned at the moment of its `request()`: the windows are
    chosen there, in the caller's thread, and a later `add` or `update` waits until they have been copied. So
    the sequence of batches follows from the order of the calls alone. With one request at a time they wait
    for the copy only, never for the conversion; a second request is copied after the first's conversion.

    batch    windows of each batch.
    convert  sampled arrays → what the learner takes, for example tensors on its device; runs in the thread.
    buffers  gives the arrays to copy a batch into, `Replay.window_spec(batch)`; runs in the thread. None: fresh ones.

    Save a replay while nothing is requested (`pending` is 0): what was requested is drawn, and lost to the
    resumed run.
    """

    def __init__(
        self,
        replay: Replay,
        batch: int,
        convert: Callable[[dict[str, Array]], T],
        buffers: Callable[[], Mapping[str, Array] | None] = lambda: None,
    ) -> None:
        self.pending = 0
        self._replay = replay
        self._batch = batch
        self._convert, self._buffers = convert, buffers
        self._jobs: SimpleQueue[Draw | None] = SimpleQueue()
        self._results: SimpleQueue[Converted[T] | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="replay-prefetch", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Choose the windows of one more batch now, and start copying. Raises as `Replay.sample` does."""
        assert self._thread.is_alive(), "request() after close()"
        self._jobs.put(self._replay.draw(self._batch))
        self.pending += 1

    def get(self) -> Converted[T]:
        """The oldest requested batch, waiting for it if need be. Raises what went wrong in the thread."""
        assert self.pending > 0, "get() without request()"
        result = self._results.get()
        self.pending -= 1
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Finish what is requested, drop it, and end the thread."""
        self._jobs.put(None)
        self._thread.join()
        self.pending = 0

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        for draw in iter(self._jobs.get, None):
            try:
                batch = self._replay.read(draw, self._buffers)
                self._results.put(Converted(self._convert(batch.data), batch.ids))
            except BaseException as error:  # every request is answered, or get() would wait for ever
                self._results.put(error)
