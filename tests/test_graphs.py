"""Captured policy steps and updates: replays give what eager calls give, and what would be frozen is found.

A tape stands in for CUDA's graphs here; see graph_tools.py. test_gpu_graphs.py has the graphs themselves.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdream import graphs
from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size, variant
from fastdream.build import make_agent
from fastdream.graphs import capture
from fastdream.ops.native import resident_op

from .agent_tools import DISCRETE, IMAGE, VECTOR, batch
from .graph_tools import CASES, FAST, Tapes, acted, assert_equal, learned, make
from .run_tools import tiny, train


def backends(case: str) -> list[str]:
    return ["reference"] if case == "bfloat16" else ["reference", "auto"]


@pytest.mark.parametrize(("case", "backend"), [(c, b) for c in CASES for b in backends(c)])
def test_replayed_updates_and_steps_are_the_eager_ones(case: str, backend: str) -> None:
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
    wide = {key: x.long() if key == "kind" else x for key, x in data.items()}
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


def test_a_launch_that_gave_up_is_said_at_the_next_replay() -> None:
    agent = make()
    capture(agent, Tapes(), partial(fd.check, agent.device))
    learned(agent, 1)
    failed = resident_op._failed(agent.device)
    failed.fill_(1)
    try:
        with pytest.raises(RuntimeError, match="gave up waiting"):
            learned(agent, 1)
    finally:
        failed.zero_()
    learned(agent, 1)


def test_other_errors_are_not_dressed_up() -> None:
    agent = make()
    capture(agent, Tapes())
    data = batch(agent, 2, 4)
    data["action/move"] = data["action/move"][..., :1]
    with pytest.raises(ValueError, match=r"^batch\['action/move'\] is torch.float32 \[2, 5, 1\], expected"):
        agent.update(agent.init_train(2), data)


def test_graphs_are_used_on_cuda_unless_switched_off() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    assert [graphs.wanted(choice, cuda, DreamerV3) for choice in ("auto", "on", "off")] == [True, True, False]
    assert [graphs.wanted(choice, cpu, DreamerV3) for choice in ("auto", "off")] == [False, False]
    with pytest.raises(ValueError, match="--train.graph on needs a CUDA device, this is cpu"):
        graphs.wanted("on", cpu, DreamerV3)

    class Counting(DreamerV3):
        capturable = False

    assert [graphs.wanted(choice, cuda, Counting) for choice in ("auto", "off")] == [False, False]
    with pytest.raises(ValueError, match="--train.graph on is not possible with Counting"):
        graphs.wanted("on", cuda, Counting)


def test_the_setting_reaches_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(graphs, "CudaGraphs", lambda device: Tapes())
    with pytest.raises(ValueError, match="--train.graph on needs"):
        make_agent(tiny(train=dict(graph="on")), VECTOR, DISCRETE, cpu)
    monkeypatch.setattr(graphs, "wanted", lambda choice, device, kind: choice == "on")
    for choice in ("on", "off"):
        agent = make_agent(tiny(train=dict(graph=choice)), VECTOR, DISCRETE, cpu)
        assert isinstance(agent.update, graphs.Captured) == (choice == "on")
        assert isinstance(agent.act, graphs.Captured) == (choice == "on")  # type: ignore[attr-defined]


def test_a_run_whose_agent_is_captured_is_the_eager_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    monkeypatch.setattr(graphs, "CudaGraphs", lambda device: Tapes())
    monkeypatch.setattr(graphs, "wanted", lambda choice, device, kind: choice == "on")
    for choice in ("on", "off"):
        config = tiny(steps=40, train=dict(graph=choice), ops="reference")
        training = train(config, tmp_path / choice, "real")
        assert training.loop.learner.updates > 3
        states.append(training.loop.state())
    assert_equal(*states)
