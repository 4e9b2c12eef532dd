"""Where metrics go: JSON lines, TensorBoard, Weights & Biases. One class each, all with the same methods."""

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastdream import rundir, video
from fastdream.rundir import StorageError


@dataclass(frozen=True)
class Picture:
    """A clip (uint8 [T, H, W, 3]) or, when T is 1, a picture, and the file that holds it."""

    name: str
    path: Path
    frames: np.ndarray


class Output(Protocol):
    """What the logger writes to. Methods raise StorageError when the disk refuses."""

    def resume(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, picture: Picture) -> None: ...

    def close(self) -> None: ...


class Appender:
    """A file that grows record by record and takes each of them whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise rundir.refusal(path, error, StorageError) from error

    def write(self, record: bytes) -> None:
        """Append; StorageError when the disk refuses, and then nothing was appended."""
        end = self._file.tell()
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise rundir.refusal(self.path, error, StorageError) from error

    def flush(self) -> None:
        """Nothing waits: each record is with the system when `write` returns."""

    def close(self) -> None:
        self._file.close()


class JsonLines:
    """metrics.jsonl: an object a line, with "step", "time" in seconds since 1970, and the values by name.

    What is not a finite number is null.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open(math.inf)

    def resume(self, step: int) -> None:
        """Drop what was written for later steps."""
        self._file.close()
        self._file = self._open(step)

    def _open(self, step: float) -> Appender:
        try:
            drop_after(self.path, step)
        except OSError as error:
            raise rundir.refusal(self.path, error, StorageError) from error
        return Appender(self.path)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write(step, {k: v if math.isfinite(v) else None for k, v in values.items()})

    def picture(self, step: int, picture: Picture) -> None:
        """The file's name, relative to the folder of the run."""
        self._write(step, {picture.name: os.path.relpath(picture.path, self.path.parent)})

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        row = {"step": int(step), "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")


def drop_after(path: Path, step: float) -> None:
    """Remove lines of later steps and those that were not written to their end; other lines stay as they are."""
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    dropped = False
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            for row in old:
                if _step_of(row) <= step:
                    new.write(row)
                else:
                    dropped = True
        if dropped:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _step_of(row: bytes) -> float:
    try:
        return float(json.loads(row)["step"]) if row.endswith(b"\n") else math.nan
    except (ValueError, KeyError, TypeError):
        return math.nan


class TensorBoard:
    """An event file: scalars, and clips as animated GIF images (torch's own video writer writes nothing).

    Written by us, record by record, so that a full disk is an error here and not in a thread of the library.
    """

    def __init__(self, logdir: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._writer = RecordWriter(Appender(logdir / name))
        self._add(file_version="brain.Event:2")

    def resume(self, step: int) -> None:
        """Have readers drop what was written for later steps."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        rows = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=rows))

    def picture(self, step: int, picture: Picture) -> None:
        frames = picture.frames
        data = video.gif_bytes(frames) if len(frames) > 1 else video.png_bytes(frames[0])
        image = self._summary.Image(
            height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=data
        )
        self._add(
            step=step, summary=self._summary(value=[self._summary.Value(tag=picture.name, image=image)])
        )

    def close(self) -> None:
        self._writer.close()

    def _add(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())


class Wandb:
    """A run of Weights & Biases, continued when the folder is. When it fails later on, it says so once and rests.

    Where and whether it sends is read from its own WANDB_... variables.
    """

    def __init__(
        self, logdir: Path, project: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        import wandb

        self._wandb, self._say = wandb, say
        identity = logdir / "wandb-id"
        if not identity.exists():
            rundir.write_atomic(identity, secrets.token_hex(8).encode())
        try:
            self._run: Any = wandb.init(
                project=project,
                name=logdir.name,
                dir=str(logdir),
                config=dict(config),
                id=identity.read_text().strip(),
                resume="allow",
                # It would record every frame of the live panel.
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases cannot start ({error}): run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        # Steps of its own must rise for ever; ours go back when a run is resumed.
        self._run.define_metric("*", step_metric="step")

    def resume(self, step: int) -> None:
        """Nothing can be dropped: the later part of a curve is drawn twice."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, lambda: dict(values))

    def picture(self, step: int, picture: Picture) -> None:
        self._log(step, lambda: {picture.name: self._media(picture)})

    def close(self) -> None:
        self._try(lambda: self._run.finish())

    def _media(self, picture: Picture) -> Any:
        # It plays mp4 and gif files, and would need moviepy for arrays.
        if len(picture.frames) > 1 and picture.path.suffix in (".mp4", ".gif"):
            return self._wandb.Video(str(picture.path))
        return self._wandb.Image(str(picture.path))

    def _log(self, step: int, values: Callable[[], dict[str, Any]]) -> None:
        self._try(lambda: self._run.log({"step": step, **values()}))

    def _try(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # Whatever a remote service throws: the run is worth more than its mirror.
            self._run = None
            self._say(f"Weights & Biases has failed and gets nothing more from this run: {error!r}")
