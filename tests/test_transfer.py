"""Copies between host and GPU: what is packed comes out again, and nobody reads or writes too early."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdream.agents.dreamer_v3 import DreamerV3
from fastdream.build import make_agent
from fastdream.learner import Learner, WriteBack
from fastdream.run import Training
from fastdream.schedule import Stop
from fastdream.transfer import (
    ALIGN,
    DTYPES,
    TORCH,
    Downloaded,
    Inputs,
    Uploads,
    copies_for,
    layout,
    layout_of,
    pack,
)

from .agent_tools import DISCRETE, IMAGE, VECTOR, observation
from .replay_tools import fill
from .replay_tools import make as make_replay
from .run_tools import CPU, parts_of, tiny
from .transfer_tools import Late, LateCopies

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SPECS = st.dictionaries(
    st.text("abc", min_size=1), st.tuples(SHAPES, st.sampled_from(list(DTYPES))), min_size=1
)


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    numbers = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype) if dtype != torch.bool else numbers > 50


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, 3, 5), np.uint8)
    return {"image": image, "reward": rng.random((2, 3), np.float32), "is_first": rng.random((2, 3)) < 0.5}


def spec_of(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return {key: (x.shape, x.dtype) for key, x in data.items()}


def same(ours: Any, theirs: Any) -> bool:
    pairs = [(np.asarray(ours[key]), np.asarray(theirs[key])) for key in theirs]
    return ours.keys() == theirs.keys() and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@settings(deadline=None)
@given(SPECS)
def test_what_is_packed_comes_out_again(spec: dict[str, Any]):
    tensors = {key: random(*entry, seed=i) for i, (key, entry) in enumerate(spec.items())}
    where = layout_of(tensors)
    assert where == layout(spec)
    views = where.views(pack(tensors, where))
    assert views.keys() == tensors.keys()
    for key, x in tensors.items():
        assert views[key].dtype == x.dtype and torch.equal(views[key], x)
    assert all(entry.start % ALIGN == 0 and entry.stop <= where.nbytes for entry in where.entries)
    ends = [0, *(entry.stop for entry in where.entries)]
    assert all(entry.start >= end for entry, end in zip(where.entries, ends, strict=False))


def test_tensors_that_are_not_contiguous_are_packed_in_order():
    x = torch.arange(12.0).view(3, 4).t()
    where = layout_of({"x": x})
    assert torch.equal(where.views(pack({"x": x}, where))["x"], x)


def test_every_type_that_replay_can_keep_travels():
    assert {np.dtype(kind) for kind in ("u1", "?", "f2", "f4", "i4", "i8")} <= TORCH.keys()
    assert all(np.dtype(theirs).itemsize == ours.itemsize for ours, theirs in DTYPES.items())


def test_batches_go_up_in_one_copy_each_and_pinned_memory_is_used_in_turn():
    copies, given = LateCopies(), [arrays(seed) for seed in range(5)]
    uploads = Uploads(copies, spec_of(given[0]))
    sent = [uploads.put(data) for data in given[:2]]
    assert len(copies.begun) == 2 and not any(copy.done for copy in copies.begun)
    assert all(same(upload.tensors(), data) for upload, data in zip(sent, given, strict=False))
    # The third is written where the first was, and may not be before that was copied.
    sent = [uploads.put(data) for data in given]
    assert all(same(upload.tensors(), data) for upload, data in zip(sent, given, strict=True))
    assert copies.hosts == 2 and len(copies.begun) == 7


def test_what_comes_down_is_there_when_it_is_read_and_not_before():
    copies = LateCopies()
    tensors = {"deter": torch.randn(2, 3).half(), "stoch": torch.arange(4, dtype=torch.uint8)}
    down = Downloaded(copies, tensors)
    assert len(copies.begun) == 1 and not copies.begun[0].done
    truth = {key: x.clone() for key, x in tensors.items()}
    tensors["deter"].zero_()  # as a graph does to its results at the next replay
    assert same(down.arrays(), truth)
    assert same(down.arrays(), truth)


def test_inputs_and_results_of_a_step_take_a_copy_each_way():
    copies = LateCopies()
    inputs = Inputs(CPU, copies)
    for seed in range(3):
        data = arrays(seed)
        assert same(inputs(data), data)
        first, second = {"a": torch.ones(2)}, {"a": torch.zeros(3, dtype=torch.bool), "b": torch.ones(())}
        back = inputs.back(first, second)
        assert same(back[0], first) and same(back[1], second)
    assert len(copies.begun) == 6
    larger = {key: np.repeat(x, 2, 0) for key, x in data.items()}
    assert same(inputs(larger), larger) and same(inputs(data), data)


def test_the_cpu_needs_no_copies():
    assert copies_for(CPU) is None
    data = arrays(0)
    assert np.shares_memory(Inputs(CPU)(data)["image"].numpy(), data["image"])


def test_a_policy_acts_alike_whichever_way_its_inputs_travel():
    config = tiny().dreamer
    agents = [DreamerV3(IMAGE | VECTOR, DISCRETE, config) for _ in range(2)]
    agents[0].inputs = Inputs(CPU, copies := LateCopies())
    carries = [agent.init_policy(3) for agent in agents]
    for seed in range(3):
        results = [
            agent.policy(c, observation(agent, 3, seed)) for agent, c in zip(agents, carries, strict=True)
        ]
        carries = [result[0] for result in results]
        assert all(same(*pair) for pair in zip(*results, strict=True))
    assert len(copies.begun) == 6


def test_replay_is_read_into_the_memory_that_is_given():
    replay = make_replay(capacity=24)
    fill(replay, 20)
    spec = replay.window_spec(3)
    buffers = {key: np.empty(shape, dtype) for key, (shape, dtype) in spec.items()}
    batch = replay.read(replay.draw(3), lambda: buffers)
    assert all(batch.data[key] is buffers[key] for key in spec)
    assert batch.data["is_first"][:, 0].all()


def test_the_replay_goes_on_when_there_is_no_memory_to_read_into():
    replay = make_replay(capacity=24)
    fill(replay, 20)

    def none_left() -> None:
        raise MemoryError("no pinned memory")

    with pytest.raises(MemoryError):
        replay.read(replay.draw(1), none_left)
    fill(replay, 1, first=20)
    assert replay.sample(1).ids.shape[0] == 1


def test_latents_are_written_when_the_next_ones_are_on_their_way_and_survive_a_checkpoint():
    replay, copies = make_replay(capacity=24), LateCopies()
    fill(replay, 20)
    batch = replay.sample(2)
    back = WriteBack(replay, copies)
    values = [{key: torch.from_numpy(batch.data[key]) * 0 + i for key in ("deter", "stoch")} for i in (7, 8)]
    back.put(batch.ids, values[0])
    assert not copies.begun[0].done
    state = back.state_dict()
    assert same(state["values"], values[0])
    back.put(batch.ids, values[1])
    ids, stored = batch.ids, read_back(replay, batch.ids)
    assert (stored == 7).all() and not copies.begun[1].done
    other = WriteBack(replay, copies)
    other.load_state_dict(back.state_dict())
    other.flush()
    assert (read_back(replay, ids) == 8).all()


def test_the_next_latents_are_on_their_way_before_the_last_ones_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
):
    replay, copies, begun = make_replay(capacity=24), LateCopies(), []
    fill(replay, 20)
    batch = replay.sample(2)
    wait = Late.synchronize
    monkeypatch.setattr(Late, "synchronize", lambda copy: begun.append(len(copies.begun)) or wait(copy))
    back, values = WriteBack(replay, copies), torch.from_numpy(batch.data["deter"])
    for _ in range(2):
        back.put(batch.ids, {"deter": values})
    assert begun == [2]


def read_back(replay: Any, ids: np.ndarray) -> np.ndarray:
    step, worker = np.divmod(ids, replay.workers)
    rows = replay._store.offsets[worker] + step % replay._store.sizes[worker]
    return replay._store.arrays["deter"][rows]


def test_a_run_learns_the_same_whichever_way_its_batches_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    states = []
    for copies in (LateCopies(), None):
        monkeypatch.setattr("fastdream.learner.copies_for", lambda device, copies=copies: copies)
        config = tiny(steps=60, ops="reference")
        parts = parts_of(config, tmp_path / str(copies is None), "real")
        training = Training(config, parts)
        training.run(Stop())
        training.close()
        parts.driver.close()
        updates = training.loop.learner.updates
        assert updates > 5
        states.append((training.loop.agent.state_dict()["nets"], training.loop.replay.sample(4).data))
        if copies is not None:
            assert len(copies.begun) == 2 * updates, "one copy up and one down for an update"
    (ours, batch), (theirs, other) = states
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert same(batch, other)


def test_the_last_batch_can_be_reported_on_after_later_ones_were_requested(tmp_path: Path):
    config = tiny(steps=60, ops="reference")
    parts = parts_of(config, tmp_path, "real")
    agent = make_agent(config, parts.driver.obs_space, parts.driver.act_space, CPU)
    replay = parts.replay
    rng = np.random.default_rng(0)
    for _ in range(40):
        step = {
            key: rng.integers(0, 2, shape).astype(dtype) for key, (shape, dtype) in replay._store.spec.items()
        }
        replay.add(0, step)
    learner = Learner(agent, replay, 2, CPU, LateCopies())
    learner.request()
    learner.update(more=True)
    learner.request()
    seen = {key: x.clone() for key, x in learner.batch.items()}
    for _ in range(2):
        learner.prefetch.get()
        learner.request()
    assert same(learner.batch, seen) and learner.report() is not None
    while learner.prefetch.pending:
        learner.prefetch.get()
    learner.close()
    parts.driver.close()
