"""Updates from replay: batches to the device, latents back to replay, metrics kept on the device until asked for."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastdream import ops
from fastdream.ops import Ops
from fastdream.replay import Replay
from fastdream.replay_device import DeviceReplay, Gathering
from fastdream.replay_prefetch import Prefetch
from fastdream.replay_store import Array, Ids, Spec
from fastdream.spaces import FLAGS, Spaces
from fastdream.transfer import Copies, Downloaded, Inputs, Uploads, copies_for

Tensors = dict[str, Tensor]

# Updates between looks at whether the losses are finite. Each waits for the device: on a CPU looking costs nothing.
CHECK_EVERY = {"cpu": 1, "cuda": 100}


class Agent(Protocol):
    """What the loops need of an agent; `dreamer.Dreamer` says what each does."""

    generators: dict[str, torch.Generator]
    ops: Ops
    dtype: torch.dtype
    obs_space: Spaces
    act_space: Spaces

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


def step_spec(agent: Agent) -> Spec:
    """What replay keeps of a step: key -> (shape, dtype). ValueError for observations with the names of latents."""
    if taken := sorted(agent.obs_space.keys() & agent.latent_spec.keys()):
        raise ValueError(
            f"observation keys {taken} are names of what the agent keeps beside them; rename them in the environment"
        )
    flags = {key: ((), np.dtype(bool)) for key in FLAGS}
    obs = {key: (space.shape, space.dtype) for key, space in agent.obs_space.items()}
    act = {f"action/{key}": (space.shape, space.dtype) for key, space in agent.act_space.items()}
    return {**obs, "reward": ((), np.dtype(np.float32)), **flags, **act, **agent.latent_spec}


class NonFinite(RuntimeError):
    """A loss became NaN or infinite: its name, and the update in which that was so first."""

    def __init__(self, name: str, update: int, more: str = "") -> None:
        super().__init__(f"{name} became NaN or infinite in update {update:,}{more}")
        self.name, self.update = name, update


class Metrics:
    """Sums of 0-d metrics on the device, and at which update each was not finite for the first time.

    Adding costs a few small kernels and no wait for the device, whatever the number of metrics; reading is one copy.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.count = 0
        self.state = torch.empty(2, 0, dtype=torch.float64)  # sums, and the first bad update or infinity

    def add(self, metrics: Tensors, update: int) -> None:
        """Add the metrics of one update; the names must be those of the first one."""
        names = list(metrics)
        values = torch.stack([x.detach() if x.is_floating_point() else x.float() for x in metrics.values()])
        if not self.names:
            self.names = names
            self.state = torch.zeros(2, len(names), dtype=torch.float64, device=values.device)
            self.state[1] = torch.inf
        assert names == self.names, (names, self.names)
        sums, bad = self.state
        sums += values
        self.count += 1
        bad.masked_fill_(~values.isfinite() & bad.isinf(), float(update))

    def check(self) -> None:
        """Wait for the device; raise NonFinite for the loss that went wrong first."""
        self._read()

    def fetch(self) -> dict[str, float]:
        """Wait for the device; means since the last call. Raises as `check` does."""
        sums = self._read()
        means = {name: total / self.count for name, total in zip(self.names, sums, strict=True) if self.count}
        self.count = 0
        self.state[0] = 0
        return means

    def _read(self) -> list[float]:
        sums, bad = self.state.tolist()
        losses = [i for i, name in enumerate(self.names) if name.startswith(("loss/", "opt/"))]
        first = min(losses, key=lambda i: (bad[i], self.names[i].startswith("opt/")), default=None)
        if first is not None and bad[first] < float("inf"):
            raise NonFinite(self.names[first], int(bad[first]))
        return list(sums)


class WriteBack:
    """New latents on their way to replay: copied to the host beside the next update, and written after it has begun.

    So that nobody waits for the device. A replay on the device takes them as they are, at the same time. What is on its
    way is part of a checkpoint.
    """

    def __init__(self, replay: Replay, copies: Copies | None = None) -> None:
        self._replay, self._copies = replay, copies
        self._ids: Ids | None = None
        self._values: Callable[[], Mapping[str, Any]] = dict

    def put(self, ids: Ids, values: Tensors) -> None:
        """Start copying these latents, and write those of the last call."""
        arrive = self._start(values)
        self.flush()
        self._ids, self._values = ids, arrive

    def flush(self) -> None:
        """Write what is on its way."""
        if self._ids is not None:
            self._replay.update(self._ids, self._values())
            self._ids = None

    def state_dict(self) -> dict[str, Any]:
        if self._ids is None:
            return {}
        values = {key: torch.as_tensor(value).cpu() for key, value in self._values().items()}
        return {"ids": torch.from_numpy(self._ids), "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._ids = np.asarray(state["ids"]) if state else None
        values = {key: np.asarray(value) for key, value in state.get("values", {}).items()}
        self._values = lambda: values

    def _start(self, values: Tensors) -> Callable[[], Mapping[str, Any]]:
        if isinstance(self._replay, DeviceReplay):
            return lambda: values
        if self._copies is None:
            return lambda: {key: value.numpy() for key, value in values.items()}
        return Downloaded(self._copies, values).arrays


def prefetch(
    replay: Replay, batch_size: int, copies: Copies | None
) -> Prefetch[Callable[[], Tensors]] | Gathering:
    """Batches in the background, as functions that give the tensors: those of the CPU, or the device's."""
    if isinstance(replay, DeviceReplay):
        return Gathering(replay, batch_size)
    if copies is None:
        return Prefetch(replay, batch_size, lambda data: partial(Inputs(torch.device("cpu")), data))
    uploads = Uploads(copies, replay.window_spec(batch_size))
    return Prefetch(replay, batch_size, lambda data: uploads.send().tensors, uploads.buffers)


class Learner:
    """The learning half of a run: `request` a batch early, then make the `update`s that are due.

    batch_size  windows in a batch.
    copies      how batches and latents travel; None is what suits the device.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        batch_size: int,
        device: torch.device,
        copies: Copies | None = None,
    ) -> None:
        self.agent, self.replay, self.batch_size, self.device = agent, replay, batch_size, device
        self.check_every = CHECK_EVERY[device.type]
        self.updates = 0
        self.carry = agent.init_train(batch_size)
        self.batch: Tensors = {}
        self.metrics = Metrics()
        copies = copies_for(device) if copies is None else copies
        self.write_back = WriteBack(replay, copies)
        self.prefetch = prefetch(replay, batch_size, copies)

    def request(self) -> None:
        """Choose the next batch from what replay holds now, and copy it in the background."""
        self.prefetch.request()

    def update(self, more: bool = False) -> None:
        """Learn from the batch that was requested; `more` requests the next one before the work starts."""
        batch = self.prefetch.get()
        if more:
            self.request()
        self.batch = batch.data()
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
        """Raises RuntimeError if an update has failed on the device: what came of it must not be saved."""
        assert self.prefetch.pending == 0, self.prefetch.pending
        state = {
            "updates": self.updates,
            "carry": {key: value.cpu() for key, value in self.carry.items()},
            "write_back": self.write_back.state_dict(),
        }
        ops.check(self.device)  # which has been waited for by now
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        # In the precision of this device's agent, which may be another than that of the device where it was saved.
        self.carry = {key: torch.as_tensor(state["carry"][key]).to(x) for key, x in self.carry.items()}
        self.write_back.load_state_dict(state.get("write_back", {}))

    def close(self) -> None:
        self.prefetch.close()
