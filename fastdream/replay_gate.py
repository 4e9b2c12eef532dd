"""Who may touch the replay's memory: any number of readers, or one writer."""

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """A lock for many readers or one writer, where a waiting writer goes before new readers.

    Unlike a plain lock it lets one thread announce a read and another one finish it, which is what a
    prefetched sample does: it is drawn in the learner's thread and copied in the background.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writers = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Announce a read: from here to `leave` no writer proceeds. Waits for writers that came before.

        The body decides what will be read; no other thread enters or writes meanwhile. If it raises, no read
        begins.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._writers == 0)
            yield
            self._readers += 1

    def leave(self) -> None:
        """End a read announced by `enter`, from any thread."""
        with self._changed:
            assert self._readers > 0, self._readers
            self._readers -= 1
            if self._readers == 0:
                self._changed.notify_all()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Hold the memory alone. Waits for announced reads to end, and keeps new ones out."""
        with self._changed:
            self._writers += 1
            try:
                self._changed.wait_for(lambda: self._readers == 0)
                yield
            finally:
                self._writers -= 1
                self._changed.notify_all()
