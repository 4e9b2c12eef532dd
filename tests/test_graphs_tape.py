"""That the stand-in for graphs finds what a graph would freeze, and what would wait for the device."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.graphs import CaptureError, capture

from .agent_tools import IMAGE, MIXED, VECTOR, batch, observation
from .graph_tools import Tapes, assert_equal, learned, make, tensors


class CountsInPython(DreamerV3):
    """Scales its loss by a number that Python counts."""

    calls = 0

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        total, post, metrics = super().loss(*args, **kwargs)
        return total * self.calls, post, metrics


class SchedulesInPython(DreamerV3):
    """A learning rate that Python works out; the update count is read once, and without waiting."""

    lr = 1.0

    def update(self, carry: Any, batch: Any) -> Any:
        self.lr *= 0.5
        self.opt.learning_rate = lambda: torch.full_like(self.opt.count, self.lr, dtype=torch.float32)  # type: ignore[method-assign]
        return super().update(carry, batch)


class RebindsState(DreamerV3):
    """Puts a new tensor in the place of its count, where it should change it."""

    def update(self, carry: Any, batch: Any) -> Any:
        self.slow.count = self.slow.count + 1
        return super().update(carry, batch)


class DrawsElsewhere(DreamerV3):
    """Draws with NumPy."""

    def update(self, carry: Any, batch: Any) -> Any:
        carry, latents, metrics = super().update(carry, batch)
        return carry, latents, metrics | {"luck": carry["deter"].new_full((), np.random.rand())}


class KeepsForLater(DreamerV3):
    """Hands on the last update's loss, from memory that the next one overwrites."""

    last: Tensor | None = None

    def update(self, carry: Any, batch: Any) -> Any:
        carry, latents, metrics = super().update(carry, batch)
        before, self.last = self.last, metrics["opt/loss"]
        return carry, latents, metrics | {"before": metrics["opt/loss"] * 0 if before is None else before}


class KeepsTotal(DreamerV3):
    """Adds up its losses in memory that no checkpoint holds, so that warm-ups stay in it."""

    total: Tensor | None = None

    def update(self, carry: Any, batch: Any) -> Any:
        carry, latents, metrics = super().update(carry, batch)
        self.total = metrics["opt/loss"] * 0 if self.total is None else self.total
        self.total += metrics["opt/loss"]
        return carry, latents, metrics | {"total": self.total.clone()}


@pytest.mark.parametrize(
    "kind", [CountsInPython, SchedulesInPython, RebindsState, DrawsElsewhere, KeepsForLater, KeepsTotal]
)
def test_the_tape_finds_what_a_graph_would_freeze(kind: type[DreamerV3]) -> None:
    eager, captured = make(kind=kind), make(kind=kind)
    capture(captured, Tapes())
    with pytest.raises(AssertionError):
        assert_equal(learned(captured, 6), learned(eager, 6))


class Waits(DreamerV3):
    """Asks for a number, a choice, a selection, or a tensor of Python's numbers in the middle of an update."""

    how: Any = None

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().loss(*args, **kwargs)
        self.how(result[0])
        return result


@pytest.mark.parametrize(
    ("how", "op"),
    [
        (lambda x: x.item(), "_local_scalar_dense"),
        (lambda x: 1 if x > 0 else 2, "is_nonzero|_local_scalar_dense"),
        (lambda x: x.expand(3)[x.expand(3) > 0], "mask"),
        (lambda x: x.expand(3).nonzero(), "nonzero"),
        (lambda x: x * torch.tensor([1.0, 2.0]), "lift_fresh"),
    ],
    ids=["item", "branch", "mask", "nonzero", "constant"],
)
def test_an_update_that_waits_is_refused_and_leaves_everything_as_it_was(how: Any, op: str) -> None:
    eager, agent = make(), make(kind=Waits)
    agent.how = how
    capture(agent, Tapes())
    with pytest.raises(CaptureError, match=rf"(?s)update cannot be recorded .*({op}).*--train.graph off"):
        agent.update(agent.init_train(2), batch(agent, 2, 4))
    assert_equal(agent.state_dict(), eager.state_dict())


class OnlyHere(TorchDispatchMode):
    """Lets operations meet tensors of one device alone."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.count += 1
        elsewhere = [x.device for x in tensors((args, kwargs)) if x.device.type != self.device]
        assert not elsewhere, f"{op} meets a tensor on {elsewhere[0]}, which a graph would read once"
        return op(*args, **(kwargs or {}))


def test_a_step_and_an_update_touch_their_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which computes no numbers: whoever asks for one, or mixes in a CPU tensor, fails."""
    rand = torch.rand

    class Generator:
        device = torch.device("meta")

        def manual_seed(self, seed: int) -> "Generator":
            return self

    with monkeypatch.context() as patch:
        real = torch.Generator
        patch.setattr(torch, "Generator", lambda *device: Generator() if device else real())
        config = replace(size(Config(imag_length=2), "debug"), dtype="bfloat16")
        agent = DreamerV3(IMAGE | VECTOR, MIXED, config, fd.load("reference"), device="meta")
    for name in ("rand", "randn"):
        monkeypatch.setattr(torch, name, lambda *dims, generator, device: rand(*dims, device=device))
    policy = agent.nets.pol
    drawn = [(lambda *dims, generator: rand(*dims, device=generator.device), n) for _, n in policy._draws]
    monkeypatch.setattr(policy, "_draws", drawn)
    data = {key: x.to("meta") for key, x in batch(agent).items()}
    obs = {key: torch.as_tensor(x).to("meta") for key, x in observation(agent, 3).items()}
    with OnlyHere("meta") as watch:
        _, _, metrics = agent.update(agent.init_train(2), data)
        _, made = agent.act(agent.init_policy(3), obs)
    assert watch.count > 1000
    assert all(x.is_meta for x in (*metrics.values(), *made.values()))


def test_a_replay_spoils_what_others_have_allocated() -> None:
    """As another graph may, in the memory that they share: results that are not copied away are lost."""
    recorder, x = Tapes(), torch.ones(2)
    first, given = recorder.record(lambda: x + 1, ())
    second, other = recorder.record(lambda: x * 3, ())
    first()
    assert torch.equal(given, torch.full((2,), 2.0)) and other.isnan().all()
    second()
    assert torch.equal(other, torch.full((2,), 3.0)) and given.isnan().all()
