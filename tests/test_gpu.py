"""What a GPU alone can show: CUDA's graphs, streams and pinned memory, and that nothing waits for the device.

    pytest -m gpu tests/test_gpu.py

The same tests run on a CPU with stand-ins for graphs and copies, shorter, so that they cannot fail for a reason of
their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.graphs import CaptureError, CudaGraphs, Recorder, capture, waiting_is_an_error
from fastdream.learner import Learner, step_spec
from fastdream.replay import Replay
from fastdream.replay_device import DeviceReplay
from fastdream.transfer import Copies, CudaCopies, Downloaded, Inputs, Uploads

from .agent_tools import CONTINUOUS, IMAGE, MIXED, VECTOR, batch, observation
from .graph_tools import FAST, Tapes, Watch, assert_equal
from .run_tools import tiny
from .transfer_tools import LateCopies


@dataclass
class Place:
    """Where a test runs, and how long."""

    device: torch.device
    long: int
    short: int

    def recorder(self) -> Recorder:
        return CudaGraphs(self.device) if self.device.type == "cuda" else Tapes()

    def copies(self) -> Copies:
        return CudaCopies(self.device) if self.device.type == "cuda" else LateCopies()

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        if self.device.type == "cuda":
            with waiting_is_an_error():
                yield
        else:
            with Watch():
                yield

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> int:
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def agent(self, obs: Any = VECTOR, act: Any = CONTINUOUS, **changes: Any) -> DreamerV3:
        config = replace(size(Config(imag_length=2), "debug"), opt=FAST, **changes)
        agent = DreamerV3(obs, act, config, fd.load("reference", device=self.device), self.device, seed=3)
        agent.inputs = Inputs(self.device, self.copies())
        return agent

    def batch(self, agent: DreamerV3, seed: int) -> dict[str, torch.Tensor]:
        return {key: x.to(self.device) for key, x in batch(agent, 2, 4, seed=seed).items()}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "cpu":
        return Place(torch.device("cpu"), 6, 4)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return Place(torch.device("cuda", torch.cuda.current_device()), 1000, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("obs", [VECTOR, IMAGE], ids=["vector", "image"])
def test_replays_are_the_eager_calls(place: Place, obs: Any, dtype: str) -> None:
    """Bit for bit: the same kernels on the same numbers."""
    results = []
    for captured in (True, False):
        agent = place.agent(obs, MIXED, dtype=dtype)
        if captured:
            capture(agent, place.recorder())
        carry, train, seen = agent.init_policy(3), agent.init_train(2), []
        for seed in range(place.short):
            carry, *rest = agent.policy(carry, observation(agent, 3, seed))
            train, *learned = agent.update(train, place.batch(agent, seed))
            seen.append((carry, *rest, train, *learned))
        results.append([*seen, agent.state_dict()])
    assert_equal(*results)


def test_many_replays_neither_drift_nor_leak_nor_repeat_their_noise(place: Place) -> None:
    # In bfloat16 two draws of two numbers are the same one now and then.
    captured, eager = place.agent(dtype="float32"), place.agent(dtype="float32")
    capture(captured, place.recorder())
    data = place.batch(eager, 0)
    obs = observation(eager, 2)
    actions, losses, carries, trains = [], [], {}, {}
    for agent in (captured, eager):
        carries[agent], trains[agent] = agent.init_policy(2), agent.init_train(2)
    for i in range(place.long):
        carries[captured], action, _ = captured.policy(carries[captured], obs)
        trains[captured], _, metrics = captured.update(trains[captured], data)
        actions.append(action["action"].copy())
        losses.append(metrics["opt/loss"])
        if i == min(9, place.long // 2):
            place.wait()
            before = place.memory() - 512 * i
    place.wait()
    after = place.memory() - 512 * (place.long - 1)  # a loss is kept of every update
    assert after <= before + 2**16, (before, after)
    assert len(np.unique(np.concatenate(actions), axis=0)) == 2 * place.long
    assert len(torch.stack(losses).unique()) > 0.99 * place.long - 1
    for _ in range(place.long):
        carries[eager], _, _ = eager.policy(carries[eager], obs)
        trains[eager], _, _ = eager.update(trains[eager], data)
    assert_equal(captured.state_dict(), eager.state_dict())


def test_nothing_in_an_update_waits(place: Place) -> None:
    agent = place.agent(IMAGE | VECTOR, MIXED)
    carry, data = agent.init_train(2), place.batch(agent, 0)
    agent.update(carry, data)
    with place.no_waiting():
        carry, _, metrics = agent.update(carry, data)
        agent.act(agent.init_policy(2), {key: x[:, 0] for key, x in data.items()})
    capture(agent, place.recorder())
    agent.update(carry, data)
    with place.no_waiting():
        _, _, metrics = agent.update(carry, data)
    assert metrics["opt/loss"].isfinite()


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_nothing_between_replay_and_agent_waits(place: Place, on_device: bool) -> None:
    agent = place.agent()
    capture(agent, place.recorder())
    spec = step_spec(agent)
    kind = partial(DeviceReplay, device=place.device, copies=place.copies()) if on_device else Replay
    replay = kind(spec, 64, 1, tiny().train.batch_length + agent.replay_context)
    rng = np.random.default_rng(0)
    for _ in range(60):
        replay.add(0, {k: rng.integers(0, 2, dims).astype(dtype) for k, (dims, dtype) in spec.items()})
    learner = Learner(agent, replay, 2, place.device, place.copies())
    learner.check_every = 10**9
    learner.request()
    learner.update(more=True)
    with place.no_waiting():
        for _ in range(place.short):
            learner.update(more=True)
    learner.prefetch.get()
    learner.metrics.check()
    assert learner.updates == 1 + place.short and learner.metrics.fetch()["opt/loss"] > 0
    learner.close()


def test_an_update_that_waits_is_refused_and_the_agent_goes_on(place: Place) -> None:
    agent, eager = place.agent(), place.agent()
    loss, waits = agent.loss, [True]

    def waiting(*args: Any, **kwargs: Any) -> Any:
        result = loss(*args, **kwargs)
        if waits[0]:
            result[0].item()
        return result

    agent.loss = waiting  # type: ignore[method-assign]
    capture(agent, place.recorder())
    data = place.batch(agent, 0)
    with pytest.raises(CaptureError, match="--train.graph off"):
        agent.update(agent.init_train(2), data)
    waits[0] = False
    ours, theirs = (each.update(each.init_train(2), data) for each in (agent, eager))
    assert_equal(ours, theirs)


def test_copies_keep_their_order_beside_work(place: Place) -> None:
    """Large batches up and down while the device is busy: none is read before it has come or spoiled by the next."""
    copies, nbytes = place.copies(), 2**24 if place.device.type == "cuda" else 2**10
    uploads = Uploads(copies, {"x": ((nbytes,), np.uint8), "y": ((3,), np.float32)})
    down = []
    for i in range(place.short * 3):
        sent = uploads.put({"x": np.full(nbytes, i, np.uint8), "y": np.full(3, i, np.float32)})
        if place.device.type == "cuda":
            torch.cuda._sleep(10**7)
        there = sent.tensors()
        results = {"sum": there["x"].long().sum(), "last": there["x"][-9:] + 1, "y": there["y"] * 2}
        down.append(Downloaded(copies, results))
        del sent, there, results  # their memory may be used again at once
    for i, download in enumerate(down):
        found = download.arrays()
        assert found["sum"] == i * nbytes and (found["last"] == i + 1).all() and (found["y"] == 2 * i).all()


@pytest.mark.gpu
def test_host_memory_is_pinned_and_graphs_share_their_pool() -> None:
    place = Place(torch.device("cuda", torch.cuda.current_device()), 0, 0)
    assert place.copies().host(8).is_pinned()
    agent = place.agent(IMAGE, MIXED)
    capture(agent, place.recorder())
    sizes = []
    for rows in (2, 2, 3, 3):
        data = {key: x.to(place.device) for key, x in batch(agent, rows, 4).items()}
        agent.update(agent.init_train(rows), data)
        torch.cuda.synchronize()
        sizes.append(torch.cuda.memory_reserved())
    assert sizes[1] == sizes[0] and sizes[3] == sizes[2]
