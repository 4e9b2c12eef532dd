"""What a run leaves behind for people: metrics, scores and pictures, sent to every output that is chosen.

In the folder of the run: metrics.jsonl, scores.jsonl (always), media/<name>_<step>.<kind>, TensorBoard's events.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdream import rundir, video
from fastdream.console import Console
from fastdream.curves import plot_curves
from fastdream.outputs import JsonLines, Output, Picture, TensorBoard, Wandb
from fastdream.progress import Goal
from fastdream.rundir import StorageError

DEFAULT = ("jsonl", "tensorboard", "console")
OUTPUTS = (*DEFAULT, "wandb")
Value = float | int | np.generic | np.ndarray | torch.Tensor


class Logger:
    """Sends what happens to all outputs; a failure of one is told after the others have been served.

    outputs   of OUTPUTS; JSON lines are written in any case. Asked for exactly the default ones, it does
              without TensorBoard where that is not installed, and says so.
    project   of Weights & Biases.
    interval  seconds between lines where there is no terminal; 0 shows the first and the last.
    Raises StorageError when the folder cannot be written, ValueError for an output that is unknown or missing.
    """

    def __init__(
        self,
        logdir: Path,
        outputs: Sequence[str] = DEFAULT,
        *,
        project: str = "fastdream",
        config: Mapping[str, Any] | None = None,
        interval: float = 10.0,
    ) -> None:
        self.logdir = rundir.writable(Path(logdir))
        unknown = sorted(set(outputs) - set(OUTPUTS))
        if unknown:
            raise ValueError(f"unknown outputs {', '.join(unknown)}: choose among {', '.join(OUTPUTS)}")
        self.console = Console(interval=interval or math.inf) if "console" in outputs else None
        names = self._available(outputs)
        self._scores = JsonLines(self.logdir / "scores.jsonl")
        self._outputs: list[Output] = [JsonLines(self.logdir / "metrics.jsonl")]
        if "tensorboard" in names:
            self._outputs.append(TensorBoard(self.logdir))
        if "wandb" in names:
            self._outputs.append(Wandb(self.logdir, project, config or {}, self.print))
        self._said: set[str] = set()

    def resume(self, step: int) -> None:
        """Continue from this step (0: a fresh start): what an interrupted run logged after it is dropped."""
        self._scores.resume(step)
        self._each(lambda output: output.resume(step))

    def start(self, goal: Goal) -> None:
        """Begin to show progress on the console."""
        if self.console:
            self.console.start(goal)

    def turn(self, goal: Goal) -> None:
        """Show progress towards the next goal of the same run; for the console alone."""
        if self.console:
            self.console.turn(goal)

    def progress(self, step: int, updates: int) -> None:
        """Where the run is; for the console alone, and cheap enough for every step."""
        if self.console:
            self.console.progress(step, updates)

    def saved(self) -> None:
        """A checkpoint has been written; for the console alone."""
        if self.console:
            self.console.saved()

    def print(self, line: str) -> None:
        """A message for whoever is watching."""
        if self.console:
            self.console.print(line)
        else:
            print(line, flush=True)

    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        """Numbers by name. Tensors (0-d, any device) are fetched together, in one copy from each device."""
        numbers = fetch(values)
        if self.console:
            self.console.metrics(numbers)
        self._each(lambda output: output.scalars(int(step), numbers))

    def episode(
        self, step: int, score: float, length: int, extras: Mapping[str, Value] | None = None
    ) -> None:
        """An episode has ended: a line in scores.jsonl, and with what else is known of it in the metrics."""
        result = {"episode/score": float(score), "episode/length": int(length)}
        if self.console:
            self.console.episode(float(score), int(length))
        extra = fetch({f"episode/{name}": value for name, value in (extras or {}).items()})
        self._all(
            lambda: self._scores.scalars(int(step), result),
            *(partial(output.scalars, int(step), result | extra) for output in self._outputs),
        )

    def video(self, step: int, name: str, frames: np.ndarray) -> Path | None:
        """A clip, uint8 [T, H, W, 1 or 3]: a file in media/, and in every output. Returns the file's path.

        None, and a line that says what to install, when nothing is there that can write clips.
        """
        return self._picture(step, name, frames, video.write_video)

    def image(self, step: int, name: str, image: np.ndarray) -> Path | None:
        """One picture, uint8 [H, W, 1 or 3]; else like `video`."""
        return self._picture(step, name, np.asarray(image)[None], write_png)

    def picture(self, step: int, name: str, data: np.ndarray) -> Path | None:
        """What an agent's report shows of a prediction, next to the truth.

        data  a clip of three rows, truth, model and error, uint8 [T, H, W, 1 or 3], which get labels; or curves
              of the truth and of what the model made of it, real numbers [2, T, N], the second half dreamed.
        """
        try:
            if data.dtype == np.uint8:
                return self.video(step, name, video.label_rows(data))
            return self.image(step, name, plot_curves(data[0], data[1], data.shape[1] // 2))
        except ImportError as error:
            self._missing(error)
            return None

    def close(self) -> None:
        """Bring everything to its place; the last thing that is called. May be called twice."""
        if self.console:
            self.console.close()
        outputs, self._outputs = [self._scores, *self._outputs], []
        self._all(*(output.close for output in outputs))

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _available(self, outputs: Sequence[str]) -> set[str]:
        """The outputs that there will be; those that were chosen by name must be installed."""
        missing = {name for name in ("tensorboard", "wandb") if name in outputs and not find_spec(name)}
        if missing == {"tensorboard"} and set(outputs) == set(DEFAULT):
            self.print("no TensorBoard files: it is not installed (pip install 'fastdream[tensorboard]')")
        elif missing:
            name = min(missing)
            raise ValueError(f"output {name} is not installed: pip install 'fastdream[{name}]'")
        return set(outputs) - missing

    def _picture(
        self, step: int, name: str, frames: np.ndarray, write: Callable[[Path, np.ndarray], Path]
    ) -> Path | None:
        path = self.logdir / "media" / f"{name.replace('/', '_')}_{int(step):09d}"
        try:
            frames = video.as_rgb(frames)
            path = write(path, frames)
            shown = Picture(name, path, frames)
            self._each(lambda output: output.picture(int(step), shown))
        except ImportError as error:
            self._missing(error)
            return None
        except OSError as error:
            raise rundir.refusal(path, error, StorageError) from error
        return path

    def _missing(self, error: ImportError) -> None:
        """Say once that a picture was left out, and what would help."""
        if str(error) not in self._said:
            self._said.add(str(error))
            self.print(f"a picture was left out: {error}")

    def _each(self, call: Callable[[Output], None]) -> None:
        self._all(*(partial(call, output) for output in self._outputs))

    @staticmethod
    def _all(*calls: Callable[[], None]) -> None:
        """Make every call; then raise the first StorageError, if there was any."""
        failed: list[StorageError] = []
        for call in calls:
            try:
                call()
            except StorageError as error:
                failed.append(error)
        if failed:
            raise failed[0]


def write_png(path: Path, frames: np.ndarray) -> Path:
    """Write the first frame as a PNG file and return its path."""
    path = path.with_name(path.name + ".png")
    data = video.png_bytes(frames[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_atomic(path, data)
    return path


def fetch(values: Mapping[str, Value]) -> dict[str, float]:
    """Numbers as Python floats, with one copy from each device; ValueError names what is no single number."""
    numbers: dict[str, float] = {}
    tensors: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            tensors.setdefault(value.device, {})[name] = value.detach().reshape(()).double()
            numbers[name] = 0.0  # keeps the order
        elif isinstance(value, (bool, int, float, np.generic, np.ndarray)) and np.size(value) == 1:
            numbers[name] = float(np.asarray(value).reshape(()))
        else:
            shape = list(getattr(value, "shape", []))
            raise ValueError(
                f"metric {name} must be one number, got {type(value).__name__} {shape or value!r}"
            )
    for named in tensors.values():
        numbers.update(zip(named, torch.stack(list(named.values())).tolist(), strict=True))
    return numbers
