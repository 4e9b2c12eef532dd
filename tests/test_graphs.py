"""Captured policy steps and updates: replays give what eager calls give, and what would be frozen is found.

A tape stands in for CUDA's graphs here; see graph_tools.py. test_gpu_graphs.py has the graphs themselves.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import graphs
from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size, variant
from fastdream.build import make_agent
from fastdream.graphs import CaptureError, capture
from fastdream.normalize import NormConfig, SlowConfig
from fastdream.optim import OptConfig

from .agent_tools import CONTINUOUS, DISCRETE, IMAGE, MIXED, VECTOR, batch, observation
from .graph_tools import Tapes, through_the_dispatcher
from .run_tools import tiny, train

FAST = OptConfig(lr=1e-2, warmup=4, schedule="linear", anneal=8)
NORMS = dict(valnorm=NormConfig("meanstd"), advnorm=NormConfig("meanstd", debias=True))
CASES: dict[str, Any] = {
    "vector": (VECTOR, MIXED, {}),
    "image": (IMAGE, DISCRETE, {}),
    "both": (IMAGE | VECTOR, CONTINUOUS, {}),
    "norms": (VECTOR, DISCRETE, NORMS | dict(slowvalue=SlowConfig(every=3))),
    "carried": (VECTOR, DISCRETE, dict(replay_context=0)),
    "bfloat16": (VECTOR, MIXED, dict(dtype="bfloat16")),
}


def make(case: str = "vector", backend: str = "reference", kind: type[DreamerV3] = DreamerV3) -> DreamerV3:
    obs, act, changes = CASES[case]
    config = replace(size(Config(imag_length=2), "debug"), opt=FAST, **changes)
    return kind(obs, act, config, fd.load(backend), seed=3)


def learned(agent: DreamerV3, updates: int, rows: int = 2) -> list[Any]:
    """Everything that so many updates give and change."""
    carry, seen = agent.init_train(rows), []
    for seed in range(updates):
        carry, latents, metrics = agent.update(carry, batch(agent, rows, 4, seed=seed))
        seen.append((carry, latents, metrics))
    return [*seen, agent.state_dict()]


def acted(agent: DreamerV3, steps: int, n: int = 3, mode: str = "sample") -> list[Any]:
    """Everything that so many policy steps give and change."""
    carry, seen = agent.init_policy(n), []
    for seed in range(steps):
        obs = observation(agent, n, seed)
        obs["is_first"] = np.arange(n) == seed
        carry, action, latents = agent.policy(carry, obs, mode)
        seen.append((carry, action, latents))
    return [*seen, agent.state_dict()]


def assert_equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Bit for bit, through everything that is nested."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, (list, tuple)):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}/{i}")
    elif isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    else:
        assert np.array_equal(ours, theirs), where


def backends(case: str) -> list[str]:
    return ["reference"] if case == "bfloat16" else ["reference", "auto"]


@pytest.mark.parametrize(("case", "backend"), [(c, b) for c in CASES for b in backends(c)])
def test_replayed_updates_and_steps_are_the_eager_ones(
    case: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    through_the_dispatcher(monkeypatch)
    eager, captured = make(case, backend), make(case, backend)
    capture(captured, recorder := Tapes())
    for mode in ("sample", "mode"):
        assert_equal(acted(captured, 3, mode=mode), acted(eager, 3, mode=mode))
    assert_equal(learned(captured, 5), learned(eager, 5))
    assert_equal(acted(captured, 3), acted(eager, 3))
    assert len(recorder.tapes) == 3 and recorder.warm_ups == 3 * graphs.WARM_UPS


def test_the_published_variant_is_captured_too() -> None:
    agents = []
    for _ in range(2):
        config = variant(replace(size(Config(imag_length=2), "debug"), opt=FAST), "nature2024")
        agents.append(DreamerV3(IMAGE, DISCRETE, config, fd.load("reference"), seed=3))
    capture(agents[0], Tapes())
    assert_equal(learned(agents[0], 3), learned(agents[1], 3))


def test_results_outlive_later_replays() -> None:
    agent = make()
    capture(agent, Tapes())
    first = agent.update(agent.init_train(2), batch(agent, 2, 4, seed=0))
    kept = [{key: x.clone() for key, x in part.items()} for part in first]
    agent.update(agent.init_train(2), batch(agent, 2, 4, seed=1))
    assert_equal(first, kept)


def test_other_shapes_types_and_options_are_recorded_beside_the_others() -> None:
    agent, eager = make(), make()
    capture(agent, recorder := Tapes())
    for rows in (2, 3, 2, 3):
        assert_equal(learned(agent, 2, rows), learned(eager, 2, rows))
    assert len(recorder.tapes) == 2
    data = batch(agent, 2, 4)
    wide = {key: x.double() if key == "reward" else x for key, x in data.items()}
    agent.update(agent.init_train(2), wide)
    agent.update(agent.init_train(2), wide)
    assert len(recorder.tapes) == 3


def test_the_recording_that_was_not_used_for_longest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    agent = make()
    capture(agent, recorder := Tapes())
    for n in (1, 2, 1, 3, 1, 2):
        acted(agent, 1, n)
    assert len(recorder.tapes) == 4  # 1, 2, 3, and 2 once more
    assert len(agent.act.recordings) == 2


def test_noise_follows_seed_and_state_of_the_generators() -> None:
    agent = make()
    capture(agent, Tapes())
    generator, runs = agent.generators["policy"], []
    for seed in (5, 5, 6):
        generator.manual_seed(seed)
        runs.append(acted(agent, 3)[:3])
    assert_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][2][1]["move"], runs[2][2][1]["move"])
    actions = [action["move"] for _, action, _ in runs[0]]
    assert not np.array_equal(actions[0], actions[1])


def test_a_loaded_checkpoint_is_what_replays_go_on_from() -> None:
    agent, other, eager = make(), make(), make()
    for each in (agent, other):
        capture(each, Tapes())
    learned(agent, 3)
    learned(other, 1)
    for each in (other, eager):
        each.load_state_dict(agent.state_dict())
    assert_equal(learned(other, 2), learned(eager, 2))


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


@pytest.mark.parametrize(
    "kind", [CountsInPython, SchedulesInPython, RebindsState, DrawsElsewhere, KeepsForLater]
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


def test_other_errors_are_not_dressed_up() -> None:
    agent = make()
    capture(agent, Tapes())
    data = batch(agent, 2, 4)
    data["action/move"] = data["action/move"][..., :1]
    with pytest.raises(ValueError, match="'move' has shape"):
        agent.update(agent.init_train(2), data)


def test_graphs_are_used_on_cuda_unless_switched_off() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    assert [graphs.wanted(choice, cuda) for choice in ("auto", "on", "off")] == [True, True, False]
    assert [graphs.wanted(choice, cpu) for choice in ("auto", "off")] == [False, False]
    with pytest.raises(ValueError, match="--train.graph on needs a CUDA device, this is cpu"):
        graphs.wanted("on", cpu)


def test_the_setting_reaches_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(graphs, "CudaGraphs", lambda device: Tapes())
    with pytest.raises(ValueError, match="--train.graph on needs"):
        make_agent(tiny(train=dict(graph="on")), VECTOR, DISCRETE, cpu)
    monkeypatch.setattr(graphs, "wanted", lambda choice, device: choice == "on")
    for choice in ("on", "off"):
        agent = make_agent(tiny(train=dict(graph=choice)), VECTOR, DISCRETE, cpu)
        assert isinstance(agent.update, graphs.Captured) == (choice == "on")
        assert isinstance(agent.act, graphs.Captured) == (choice == "on")  # type: ignore[attr-defined]


def test_a_run_whose_agent_is_captured_is_the_eager_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    monkeypatch.setattr(graphs, "CudaGraphs", lambda device: Tapes())
    monkeypatch.setattr(graphs, "wanted", lambda choice, device: choice == "on")
    for choice in ("on", "off"):
        config = tiny(steps=40, train=dict(graph=choice), ops="reference")
        training = train(config, tmp_path / choice, "real")
        assert training.loop.learner.updates > 3
        states.append(training.loop.state())
    assert_equal(*states)
