"""Updates from replay: batches to the device, latents back to replay, metrics kept on the device until asked for."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastdream.ops import Ops
from fastdream.replay import Replay
from fastdream.replay_prefetch import Prefetch
from fastdream.replay_store import Array, Ids

Tensors = dict[str, Tensor]


class Agent(Protocol):
    """What the loops need of an agent; see agents/dreamer_v3.py for what each does."""

    generators: dict[str, torch.Generator]
    ops: Ops
    dtype: torch.dtype

    @property
    def param_count(self) -> int: ...
    @property
    def replay_context(self) -> int: ...
    @property
    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]: ...

    def init_policy(self, n: int) -> Tensors: ...
    def policy(
        self, carry: Tensors, obs: Mapping[str, Array], mode: str = "sample"
    ) -> tuple[Tensors, dict[str, Array], dict[str, Array]]: ...
    def init_train(self, b: int) -> Tensors: ...
    def update(self, carry: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensors, Tensors, Tensors]: ...
    def report(self, carry: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Array]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class NonFinite(RuntimeError):
    """A loss became NaN or infinite: its name, and the update in which that was so first."""

    def __init__(self, name: str, update: int, more: str = "") -> None:
        super().__init__(f"{name} became NaN or infinite in update {update:,}{more}")
        self.name, self.update = name, update


class Metrics:
    """Sums of 0-d metrics on the device, and at which update each was not finite for the first time.

    Adding costs three small kernels and no wait for the device, whatever the number of metrics.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.count = 0
        self.sum = self.bad = torch.empty(0)

    def add(self, metrics: Tensors, update: int) -> None:
        """Add the metrics of one update; the names must be those of the first one."""
        names = list(metrics)
        values = torch.stack([metrics[name].detach().float() for name in names])
        if not self.names:
            self.names = names
            self.sum, self.bad = (
                torch.zeros_like(values),
                torch.full_like(values, torch.inf, dtype=torch.float64),
            )
        assert names == self.names, (names, self.names)
        self.sum += values
        self.count += 1
        self.bad.masked_fill_(~values.isfinite() & self.bad.isinf(), float(update))

    def check(self) -> None:
        """Wait for the device; raise NonFinite for the loss that went wrong first."""
        losses = [i for i, name in enumerate(self.names) if name.startswith(("loss/", "opt/"))]
        bad = self.bad.tolist()
        first = min(losses, key=lambda i: (bad[i], self.names[i].startswith("opt/")), default=None)
        if first is not None and bad[first] < float("inf"):
            raise NonFinite(self.names[first], int(bad[first]))

    def fetch(self) -> dict[str, float]:
        """Wait for the device; means since the last call."""
        means = (self.sum / max(1, self.count)).tolist() if self.count else []
        self.count = 0
        self.sum = torch.zeros_like(self.sum)
        return dict(zip(self.names, means, strict=True)) if means else {}


class WriteBack:
    """New latents on their way to replay: copied to the host behind the update, written one update later.

    So that nobody waits for the device. What is on its way is part of a checkpoint.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._ids: Ids | None = None
        self._values: Tensors = {}
        self._event: Any = None

    def put(self, ids: Ids, values: Tensors) -> None:
        """Write the latents of the last call, and start copying these."""
        self.flush()
        self._ids = ids
        self._values = {key: _to_host(value) for key, value in values.items()}
        if any(value.is_cuda for value in values.values()):
            self._event = torch.cuda.Event()
            self._event.record()

    def flush(self) -> None:
        """Write what is on its way."""
        if self._ids is not None:
            self._arrive()
            self._replay.update(self._ids, {key: value.numpy() for key, value in self._values.items()})
            self._ids = None

    def state_dict(self) -> dict[str, Any]:
        if self._ids is None:
            return {}
        self._arrive()
        return {"ids": torch.from_numpy(self._ids), "values": dict(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._ids = np.asarray(state["ids"]) if state else None
        self._values = {key: torch.as_tensor(value) for key, value in state.get("values", {}).items()}

    def _arrive(self) -> None:
        if self._event is not None:
            self._event.synchronize()
            self._event = None


def to_device(data: Mapping[str, Array], device: torch.device) -> Tensors:
    """Arrays as tensors of a device; a copy to a GPU waits for nothing."""
    tensors = {key: torch.from_numpy(value) for key, value in data.items()}
    if device.type == "cuda":
        tensors = {key: value.pin_memory().to(device, non_blocking=True) for key, value in tensors.items()}
    return tensors


class Learner:
    """The learning half of a run: `request` a batch early, then make the `update`s that are due.

    batch_size   windows in a batch.
    check_every  updates between looks at whether the losses are finite; each look waits for the device.
    """

    def __init__(
        self, agent: Agent, replay: Replay, batch_size: int, device: torch.device, check_every: int
    ) -> None:
        self.agent, self.replay, self.batch_size, self.device = agent, replay, batch_size, device
        self.check_every = check_every
        self.updates = 0
        self.carry = agent.init_train(batch_size)
        self.batch: Tensors = {}
        self.metrics = Metrics()
        self.write_back = WriteBack(replay)
        self.prefetch = Prefetch(replay, batch_size, lambda data: to_device(data, device))

    def request(self) -> None:
        """Choose the next batch from what replay holds now, and copy it in the background."""
        self.prefetch.request()

    def update(self, more: bool = False) -> None:
        """Learn from the batch that was requested; `more` requests the next one before the work starts."""
        batch = self.prefetch.get()
        if more:
            self.request()
        self.batch = batch.data
        self.carry, latents, metrics = self.agent.update(self.carry, self.batch)
        self.updates += 1
        self.write_back.put(batch.ids[:, self.agent.replay_context :], latents)
        self.metrics.add(metrics, self.updates)
        if self.updates % self.check_every == 0:
            self.metrics.check()

    def report(self) -> tuple[Tensors, dict[str, Array]] | None:
        """Losses and open-loop predictions on the batch that was learned from last; None before the first one."""
        if not self.batch:
            return None
        return self.agent.report(self.agent.init_train(self.batch_size), self.batch)

    def state_dict(self) -> dict[str, Any]:
        assert self.prefetch.pending == 0, self.prefetch.pending
        return {
            "updates": self.updates,
            "carry": {key: value.cpu() for key, value in self.carry.items()},
            "write_back": self.write_back.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.carry = {key: torch.as_tensor(value).to(self.device) for key, value in state["carry"].items()}
        self.write_back.load_state_dict(state.get("write_back", {}))

    def close(self) -> None:
        self.prefetch.close()


def _to_host(value: Tensor) -> Tensor:
    if not value.is_cuda:
        return value
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
