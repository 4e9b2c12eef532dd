"""The stages between rollouts and evolution: fit V to pictures, encode them all, fit M to what they became.

A batch is a function of the run's seed and of the update's number, so that a resumed run goes on with the same ones.
"""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import rundir
from fastdream.adam import Adam, AdamConfig
from fastdream.agents.world_models import WorldModels
from fastdream.config import Config
from fastdream.learner import Metrics
from fastdream.recording import Recording
from fastdream.replay_store import Array
from fastdream.stages.graphed import graphed

ENCODED = 256  # pictures that are encoded at once


def stream(config: Config, *key: int) -> tuple[np.random.Generator, torch.Generator]:
    """Random numbers that belong to a place in the run: for choosing rows on the host, and for noise, there too."""
    seed = np.random.SeedSequence((config.seed, *key))
    torch_seed = int(seed.generate_state(1, np.uint64)[0]) >> 1
    return np.random.default_rng(seed), torch.Generator().manual_seed(torch_seed)


class FitVision:
    """V, on pictures drawn from all rollouts."""

    def __init__(self, config: Config, agent: WorldModels, recording: Recording) -> None:
        self.config, self.agent, self.recording = config, agent, recording
        self.settings = agent.config.vision
        self.units, self.done = vision_updates(config), 0
        self.opt = Adam(
            dict(agent.vision.named_parameters()), AdamConfig(self.settings.lr, clip=0.0, eps=1e-8)
        )
        self.losses = Metrics()
        self.updated = graphed(self.update, agent.vision, self.opt, agent.device)

    def advance(self) -> None:
        """One update."""
        rng, generator = stream(self.config, 1, self.done)
        rows = np.sort(rng.choice(self.recording.rows, self.settings.batch))
        noise = torch.randn(len(rows), self.agent.config.latents, generator=generator)
        batch = self.agent.inputs({"image": self.recording["image"][rows], "noise": noise.numpy()})
        (metrics,) = self.updated(batch)
        self.losses.add({f"loss/vision_{k}": v for k, v in metrics.items()}, self.done)
        self.done += 1

    def update(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor]]:
        """From image [N, 64, 64, C] and noise [N, Z] to metrics."""
        loss, metrics = self.agent.vision.loss(batch["image"], batch["noise"])
        loss.backward()
        self.opt.step()
        return ({key: value.detach() for key, value in metrics.items()},)

    def state_dict(self) -> dict[str, Any]:
        """Updates so far and the optimiser."""
        self.losses.check()
        return {"done": self.done, "opt": self.opt.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.done = int(state["done"])
        self.opt.load_state_dict(state["opt"])

    def metrics(self) -> dict[str, float]:
        """Mean losses since the last call; raises NonFinite."""
        return self.losses.fetch()

    def finish(self) -> str:
        """What came of it."""
        return f"V has seen {self.done * self.settings.batch:,} pictures"


def vision_updates(config: Config) -> int:
    """Updates that V's passes take."""
    settings = config.dreamer.vision
    return max(1, round(settings.passes * config.steps / settings.batch))


class Encode:
    """Mean and log variance of every picture's latent vector, float16 [rows, 2, Z], into a file in NumPy's format.

    The file grows as pictures are encoded; what a checkpoint counts as done is on the disk before it is counted.
    """

    def __init__(self, agent: WorldModels, recording: Recording, path: Path) -> None:
        self.agent, self.recording, self.path = agent, recording, path
        self.units, self.done = recording.rows, 0
        header = io.BytesIO()
        shape, dtype = (recording.rows, 2, agent.config.latents), np.dtype(np.float16)
        np.lib.format.write_array_header_1_0(
            header, {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        )
        self.header, self.row = header.getvalue(), math.prod(shape[1:]) * dtype.itemsize

    def place(self, row: int) -> int:
        """Where in the file a row begins, in bytes."""
        return len(self.header) + row * self.row

    @torch.no_grad()
    def advance(self) -> None:
        """Some hundred pictures. Raises StorageError when the file cannot be written."""
        rows = slice(self.done, min(self.done + ENCODED, self.units))
        image = torch.from_numpy(np.array(self.recording["image"][rows])).to(self.agent.device)
        encoded = torch.stack(self.agent.vision.encode(image), 1).cpu().numpy().astype(np.float16)
        with self.refusing(), self.path.open("r+b" if self.done else "wb") as file:
            file.write(self.header)
            file.seek(self.place(rows.start))
            file.write(encoded.tobytes())
        self.done = rows.stop

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Errors of the disk as StorageError, with what helps."""
        try:
            yield
        except OSError as error:
            raise rundir.refusal(self.path, error, rundir.StorageError, self.place(self.units)) from error

    def sync(self) -> None:
        """Wait until the disk has them. Raises StorageError."""
        with self.refusing():
            rundir.sync(self.path)
            rundir.sync(self.path.parent)

    def state_dict(self) -> dict[str, Any]:
        """Pictures so far, which are on the disk from now on."""
        if self.done:
            self.sync()
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; from the beginning if the file does not hold so much."""
        done, held = int(state["done"]), self.path.stat().st_size if self.path.exists() else 0
        self.done = done if held >= self.place(done) else 0

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def finish(self) -> str:
        """What came of it, which the checkpoints of later stages count on."""
        self.sync()
        return f"encoded {self.done:,} pictures"


class Latents:
    """What V made of all pictures, mean and logvar [rows, Z], read from the disk as they are used.

    Raises StorageError when the file cannot be read or has other rows than were recorded.
    """

    def __init__(self, path: Path, rows: int) -> None:
        try:
            encoded = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise rundir.StorageError(f"{path} cannot be read: {error}; restore it, or train anew") from error
        if len(encoded) != rows:
            raise rundir.StorageError(
                f"{path} has {len(encoded):,} rows, and {rows:,} were recorded: restore either, or train anew"
            )
        self.mean, self.logvar = encoded[:, 0], encoded[:, 1]

    def rows(self, rows: Array) -> dict[str, Array]:
        """mean and logvar [*rows.shape, Z] in float16."""
        return {"mean": np.asarray(self.mean[rows]), "logvar": np.asarray(self.logvar[rows])}

    def at(self, rows: Array, device: torch.device) -> dict[str, Tensor]:
        """The same as tensors in float32."""
        return {key: torch.from_numpy(value).to(device).float() for key, value in self.rows(rows).items()}


class FitMemory:
    """M, on as many streams as a batch has sequences: all episodes in an order of their own in every pass.

    The LSTM's state is carried from one batch to the next within a pass.
    """

    def __init__(self, config: Config, agent: WorldModels, recording: Recording, latents: Latents) -> None:
        self.config, self.agent, self.recording, self.latents = config, agent, recording, latents
        self.settings = agent.config.memory
        self.units, self.done = memory_updates(config), 0
        self.streams, self.length = memory_batch(config, recording.rows)
        self.width = recording.rows // self.streams  # steps of each stream
        self.chunks = max(1, (self.width - 1) // self.length)
        self.state = agent.memory.initial(self.streams)
        self.opt = Adam(
            dict(agent.memory.named_parameters()), AdamConfig(self.settings.lr, clip=0.0, eps=1e-8)
        )
        self.losses = Metrics()
        self.updated = graphed(self.update, agent.memory, self.opt, agent.device)
        self._order: tuple[int, Array] = -1, np.zeros(0, int)

    @cached_property
    def flags(self) -> dict[str, Array]:
        """What is small enough to be kept in memory."""
        return {key: np.array(self.recording[key]) for key in ("action", "first", "terminal")}

    def rows(self, update: int) -> Array:
        """Rows [streams, length + 1] of an update's batch."""
        sweep, chunk = divmod(update, self.chunks)
        if self._order[0] != sweep:
            rng, _ = stream(self.config, 2, sweep)
            starts, lengths = self.recording.starts(), self.recording.lengths()
            order = rng.permutation(len(starts))
            every = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in order])
            self._order = sweep, every[: self.streams * self.width].reshape(self.streams, self.width)
        begin = chunk * self.length
        return self._order[1][:, begin : begin + self.length + 1]

    def advance(self) -> None:
        """One update."""
        rows, settings = self.rows(self.done), self.settings
        if self.done % self.chunks == 0:
            self.state = self.agent.memory.initial(self.streams)
        _, generator = stream(self.config, 3, self.done)
        noise = torch.randn(*rows.shape, self.agent.config.latents, generator=generator)
        rate = (settings.lr - settings.lr_end) * settings.decay**self.done + settings.lr_end
        data = self.latents.rows(rows) | {key: value[rows] for key, value in self.flags.items()}
        batch = self.agent.inputs(data | {"noise": noise.numpy(), "rate": np.array([rate])})
        hidden, cell = self.state
        after, metrics = self.updated(batch, {"hidden": hidden, "cell": cell})
        self.state = after["hidden"], after["cell"]
        self.losses.add({f"loss/memory_{k}": v for k, v in metrics.items()}, self.done)
        self.done += 1

    def update(
        self, batch: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """From what `memory_loss` takes, noise and the learning rate, float64 [1], to the next state and metrics."""
        floats = {key: batch[key].float() for key in ("mean", "logvar")}
        before = state["hidden"], state["cell"]
        loss, (hidden, cell), metrics = self.agent.memory_loss({**batch, **floats}, batch["noise"], before)
        loss.backward()
        for param in self.opt.params:
            assert param.grad is not None, "no gradient reached M"
            param.grad.clamp_(-self.settings.clip, self.settings.clip)
        self.opt.step(batch["rate"][0])
        return {"hidden": hidden, "cell": cell}, {key: value.detach() for key, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Updates so far, the optimiser, and the LSTM's state."""
        self.losses.check()
        hidden, cell = self.state
        return {"done": self.done, "opt": self.opt.state_dict(), "hidden": hidden, "cell": cell}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.done = int(state["done"])
        self.opt.load_state_dict(state["opt"])
        hidden, cell = (state[key].to(self.agent.device) for key in ("hidden", "cell"))
        self.state = hidden, cell

    def metrics(self) -> dict[str, float]:
        """Mean losses since the last call; raises NonFinite."""
        return self.losses.fetch()

    def finish(self) -> str:
        """What came of it."""
        steps = self.done * self.streams * self.length
        return f"M has seen {steps:,} steps"


def memory_batch(config: Config, rows: int) -> tuple[int, int]:
    """Streams that so many rows make, and steps of each in a batch: few rollouts make short streams, or few."""
    settings = config.dreamer.memory
    streams = max(1, min(settings.batch, rows // 2))
    return streams, max(1, min(settings.length, rows // streams - 1))


def memory_updates(config: Config) -> int:
    """Updates that M's passes take."""
    streams, length = memory_batch(config, config.steps)
    return max(1, round(config.dreamer.memory.passes * config.steps / (streams * length)))
