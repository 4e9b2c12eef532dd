"""Experience replay: the last `capacity` steps of all workers, sampled as windows of consecutive steps.

The time convention of the whole library. Index t holds an observation, the reward and flags that arrived with
it, and the action that LED TO it:

    index            0           1           2           3           4           5
    action           0     ┌──► a1     ┌──► a2     ┌──► a3           0     ┌──► a5
                           │     ▼     │     ▼     │     ▼                 │     ▼     the environment answers
    obs, reward    o0,0    │   o1,r1   │   o2,r2   │   o3,r3  reset► o4,0  │   o5,r5
                     └─────┘     └─────┘     └─────┘                 └─────┘           the policy acts
    is_first       True        False       False       False       True        False
    is_last        False       False       False       True        False       False
    is_terminal    False       False       False       True?       False       False   if the task ended
    deter, stoch   the model's state after it saw o_t: as when acting, or as update() last wrote it

Keys are those of the observation, beside them reward and the flags, and action/<key> of every action: `action/action`
where there is one. `learner.step_spec` gives shapes and types. A number has no dimension of its own: reward is [B, T].

A worker's steps are one stream: index 4 above belongs to the next episode of the same worker, and a window
may hold both. Where is_first is True the action and the state before it mean nothing: the model zeroes them. No action
is 0 for numbers and -1 for classes, of which 0 is one.

A window has `length` steps. With a replay context of one, step 0 only gives the state to start from (deter
and stoch), steps 1 … length-1 are trained on, and their new states go back through `update(ids[:, 1:], …)`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdream import replay_files
from fastdream.progress import counted
from fastdream.replay_episodes import EpisodeWindows
from fastdream.replay_files import CorruptReplay, Files
from fastdream.replay_gate import Gate
from fastdream.replay_store import Array, Ids, Rings, Spec, Store, available_memory
from fastdream.replay_windows import Draw, WindowKind, Windows


class Batch(NamedTuple):
    """Sampled windows: key → [batch, length, ...], the caller's own; the id of each step [batch, length]."""

    data: dict[str, Array]
    ids: Ids


class Replay:
    """A ring of steps per worker, `capacity` steps together; safe to use from several threads.

    spec       key → (shape of one step, dtype).
    capacity   steps kept, exactly: later ones overwrite the worker's oldest. The first `capacity % workers`
               workers keep one step more than the others.
    workers    number of streams, one for each environment.
    length     steps of a sampled window.
    seed       of the choice of windows.
    windows    which windows there are. stream: any consecutive steps of a worker. Or those within one finished
               episode, each episode as often as any other: episode, with any start; ends, with the last start as
               often as `length` others; not_last, with any start but the last.
    online     hand out each new stretch of `length` steps of a worker once, first in first out, before
               windows that are chosen uniformly. A stretch that is overwritten before its turn is dropped.
    directory  keep the steps in files of this directory instead of RAM, for capacities above it. The files
               have no names and vanish with the process; what outlives it is what `save` writes.
    latents    the keys that `update` may rewrite; those that spec lacks are ignored.
    chunk      steps of one worker in one saved file.
    fixed      the steps are those of a dataset: `save` keeps the latents alone, and whoever restores has added the
               same steps before.
    Raises ValueError when a ring cannot hold one window or RAM cannot hold the steps, OSError when `directory`
    is too full.
    """

    def __init__(
        self,
        spec: Spec,
        capacity: int,
        workers: int,
        length: int,
        *,
        seed: int = 0,
        online: bool = True,
        directory: Path | None = None,
        latents: Collection[str] = ("deter", "stoch"),
        chunk: int = 1024,
        windows: WindowKind = "stream",
        fixed: bool = False,
    ) -> None:
        if min(workers, length, chunk) < 1:
            raise ValueError(
                f"replay needs workers, length and chunk of at least 1, got {workers}, {length}, {chunk}"
            )
        if capacity // workers < length:
            raise ValueError(
                f"a replay of {capacity} steps has {capacity // workers} for each of {workers} workers, "
                f"less than one window of {length}: choose --replay.capacity of at least {workers * length}"
            )
        self.workers, self.length, self.online = workers, length, online
        self._store = self._memory(spec, capacity, workers, None if directory is None else Path(directory))
        self._latents = frozenset(latents) & self._store.spec.keys()
        self._fixed = fixed
        self._files = Files(self._store, self._latents, chunk, ("latents",) if fixed else ("data", "latents"))
        self._chunk = chunk
        self._kind, sizes = windows, self._store.sizes.tolist()
        self._windows: Windows | EpisodeWindows
        if windows == "stream":
            self._windows = Windows(sizes, length, online, seed)
        elif online:
            raise ValueError(
                f"windows {windows!r} lie within episodes, but the online queue hands out streams: --replay.no-online"
            )
        else:
            extra = {"episode": 0, "ends": length, "not_last": -1}[windows]
            self._windows = EpisodeWindows(sizes, length, extra, seed)
        self._gate = Gate()

    @property
    def capacity(self) -> int:
        """Steps that are kept at the most."""
        return self._store.capacity

    @property
    def steps(self) -> int:
        """Steps that are stored now."""
        return sum(self._windows.filled())

    @property
    def nbytes(self) -> int:
        """Bytes of all steps when the replay is full."""
        return self._store.nbytes

    def __len__(self) -> int:
        """Number of different windows that can be sampled now."""
        return len(self._windows)

    def add(self, worker: int, step: Mapping[str, object]) -> None:
        """Append a copy of one step to a worker's stream; its keys, shapes and dtypes are those of the spec.

        Raises ValueError, and keeps nothing, for a step that does not fit or whose reward is not finite.
        """
        if not 0 <= worker < self.workers:
            raise ValueError(f"replay has workers 0 to {self.workers - 1}, got a step of worker {worker}")
        values = self._store.check_step(step)
        if "reward" in values and not np.isfinite(values["reward"]).all():
            raise ValueError(f"worker {worker} gave the reward {values['reward']}; rewards must be finite")
        with self._gate.write():
            index = self._windows.counts[worker] % int(self._store.sizes[worker])
            self._store.write(worker, index, values)
            self._files.touch(worker, index)
            first, last = (bool(values.get(flag, False)) for flag in ("is_first", "is_last"))
            self._windows.advance(worker, first, last)

    def sample(self, batch: int) -> Batch:
        """Copy `batch` windows: new stretches that no one has seen first, then uniformly among all windows.

        In the copy, is_first of index 0 is True, since the model starts there, and is_last is True also
        before an is_first, since an episode that was abandoned has no step that says so. Raises ValueError
        while there is no window to sample.
        """
        return self.read(self.draw(batch))

    def draw(self, batch: int) -> Draw:
        """Choose the windows of one `sample` now, and hold their steps as they are until `read` copied them.

        Each draw must be read, once, in any thread: `add`, `update`, `save` and `restore` wait for it.
        """
        with self._gate.enter():
            return self._windows.choose(batch)

    def window_spec(self, batch: int) -> Spec:
        """What a batch of so many windows is: key → (shape [batch, length, ...], dtype)."""
        return {
            key: ((batch, self.length, *shape), dtype) for key, (shape, dtype) in self._store.spec.items()
        }

    def read(self, draw: Draw, buffers: Callable[[], Mapping[str, Array] | None] = lambda: None) -> Batch:
        """Copy the windows that were drawn, and let changes of the replay go on.

        buffers   gives the arrays of `window_spec` to copy to, pinned memory for example; None stands for fresh ones.
        """
        try:
            start = draw.start % self._store.sizes[draw.worker]
            data = self._store.read(draw.worker, start, self.length, buffers())
        finally:
            self._gate.leave()
        if "is_first" in data:
            if "is_last" in data:
                last = data["is_last"][:, :-1]
                np.logical_or(last, data["is_first"][:, 1:], out=last)
            data["is_first"][:, 0] = True
        return Batch(data, self._ids(draw))

    def update(self, ids: Ids, values: Mapping[str, Any]) -> None:
        """Write latents of sampled steps back: ids [...], values key → [..., *shape].

        Steps that were overwritten meanwhile are skipped. Of a step that occurs several times the last one
        stays. Raises ValueError for keys that are not latents, values that do not fit the spec, and ids that
        no sample gave.
        """
        if not values.keys() <= self._latents:
            raise ValueError(
                f"update may write {sorted(self._latents)}, got {sorted(values.keys() - self._latents)}"
            )
        for key, value in values.items():
            self._store.check(key, value, (*ids.shape, *self._store.spec[key][0]))
        with self._gate.write():
            step, worker = np.divmod(ids.reshape(-1), self.workers)
            counts = np.array(self._windows.counts)[worker]
            unknown = (step < 0) | (step >= counts)
            if unknown.any():
                raise ValueError(f"update got the id {ids.reshape(-1)[unknown][0]}, which no step has")
            index = step % self._store.sizes[worker]
            stored = step >= counts - self._store.sizes[worker]
            self._store.rewrite(worker, index, stored, values)
            if values:
                self._files.touch_latents(worker[stored], index[stored])

    def stream(self, worker: int) -> dict[str, Array]:
        """Copies of all steps of a worker that are stored, oldest first: key → [steps, *shape]."""
        with self._gate.write():
            filled, size = self._windows.filled()[worker], int(self._store.sizes[worker])
            begin = np.array([(self._windows.counts[worker] - filled) % size])
            data = self._store.read(np.array([worker]), begin, filled)
        return {key: value[0] for key, value in data.items()}

    def describe(self) -> str:
        """One line on size and place, to be printed at the start of a run."""
        online = "on" if self.online else "off"
        streams = f"{counted(self.workers, 'worker')}, windows of {counted(self.length, 'step')}, online queue {online}"
        return f"{self._store.describe()}; {streams}"

    def check_memory(self, available: int | None = None) -> None:
        """Raise ValueError when the full replay exceeds `available` bytes of RAM (None: asks the system)."""
        self._store.check_memory(available_memory() if available is None else available)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write what changed since the last save into `directory`, durably, and return the manifest.

        The manifest holds JSON types only. The directory is shared by all saves of a run. A save never
        touches the files of an earlier one; `prune` removes those that are no longer wanted. Nothing that is
        drawn and not yet read is part of it. Raises OSError when the disk is full or cannot be written, and
        then leaves nothing behind.
        """
        with self._gate.write():
            files = self._files.save(Path(directory), self._windows.filled())
            return {"replay": self._identity(), **self._windows.state(), "files": files}

    def restore(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        """Become the replay that was saved: the same steps, ids, online queue and coming samples.

        Raises ValueError with the differences when this replay was built with other settings, and
        CorruptReplay naming the file when one is missing or damaged; then the replay is empty, and another
        manifest can be tried.
        """
        saved, mine = manifest["replay"], self._identity()
        changed = [name for name in {**mine, **saved} if saved.get(name) != mine.get(name)]
        if changed:
            differences = "; ".join(f"{name} was {saved.get(name)}, is {mine.get(name)}" for name in changed)
            raise ValueError(f"the saved replay does not fit this one: {differences}")
        with self._gate.write():
            self._windows.clear()
            filled = np.minimum(manifest["counts"], self._store.sizes).tolist()
            self._files.restore(Path(directory), manifest["files"], filled)
            self._windows.restore(manifest)

    @staticmethod
    def prune(directory: Path, keep: Sequence[Mapping[str, Any]]) -> None:
        """Remove the saved files of `directory` that no manifest in `keep` needs; the newest should be among these."""
        replay_files.prune(Path(directory), keep)

    def _memory(self, spec: Spec, capacity: int, workers: int, directory: Path | None) -> Rings:
        return Store(spec, capacity, workers, directory)

    def _ids(self, draw: Draw) -> Ids:
        """The id of each step of the windows: [batch, length]."""
        steps = draw.start[:, None] + np.arange(self.length)
        ids: Ids = steps * self.workers + draw.worker[:, None]
        return ids

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a saved replay to be restored, in JSON types."""
        spec = {key: [list(shape), dtype.str] for key, (shape, dtype) in self._store.spec.items()}
        # Streams are not named, so that replays which were saved before there was a choice still fit.
        kind: dict[str, Any] = {} if self._kind == "stream" else {"windows": self._kind}
        kind |= {"fixed": True} if self._fixed else {}
        return kind | {
            "spec": spec,
            "capacity": self.capacity,
            "workers": self.workers,
            "length": self.length,
            "online": self.online,
            "latents": sorted(self._latents),
            "chunk": self._chunk,
        }


__all__ = ["Batch", "CorruptReplay", "Replay"]
