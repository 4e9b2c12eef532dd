"""The first two Dreamers captured: their schedules, target critics and switches go on inside of what is replayed.

A tape stands in for CUDA's graphs; see graph_tools.py.
"""

from typing import Any

import numpy as np
import pytest
import torch

from fastdream import graphs
from fastdream.agents.dreamer_v2_config import ExploreConfig
from fastdream.graphs import capture
from fastdream.normalize import SlowConfig

from .dreamer_tools import CONTINUOUS, DISCRETE, IMAGE, MIXED, VECTOR, batch, make, observation
from .graph_tools import Tapes, assert_equal

# Within the few updates of a test the target critic moves, noise and entropy fall, and the actor that explores ends.
MOVING: dict[str, Any] = dict(slowvalue=SlowConfig(rate=1.0, every=3), actent="linear(1e-1,0,3)")
SEEKING = dict(explore=ExploreConfig("plan2explore", until=3, models=2))
CASES: dict[str, Any] = {
    "v1": ("dreamer_v1", VECTOR, MIXED, dict(expl="linear(1,0,3)", pcont=True)),
    "v1 image": ("dreamer_v1", IMAGE, CONTINUOUS, {}),
    "v1 bfloat16": ("dreamer_v1", VECTOR, CONTINUOUS, dict(dtype="bfloat16")),
    "v2": ("dreamer_v2", VECTOR, DISCRETE, MOVING),
    "v2 image": ("dreamer_v2", IMAGE, CONTINUOUS, {}),
    "v2 both": ("dreamer_v2", VECTOR, MIXED, dict(actor_grad="both", actor_mix="warmup(3,0.5)")),
    "v2 explore": ("dreamer_v2", VECTOR, DISCRETE, SEEKING),
    "v2 bfloat16": ("dreamer_v2", VECTOR, MIXED, dict(dtype="bfloat16")),
}


def lived(agent: Any) -> list[Any]:
    """Everything that updates and policy steps in turns give and change."""
    carry, acting, seen = agent.init_train(2), agent.init_policy(3), []
    for seed in range(5):
        carry, _, metrics = agent.update(carry, batch(agent, 2, 4, seed=seed))
        obs = observation(agent, 3, seed) | {"is_first": np.arange(3) == seed}
        acting, action, _ = agent.policy(acting, obs)
        _, greedy, _ = agent.policy(acting, obs, "mode")
        seen.append((metrics, acting, action, greedy))
    return [*seen, agent.state_dict()]


# No compiled op serves bfloat16 on a CPU.
BACKENDS = [(c, b) for c in CASES for b in ("reference", "auto") if "bfloat16" not in c or b == "reference"]


@pytest.mark.parametrize(("case", "backend"), BACKENDS)
def test_replayed_updates_and_steps_are_the_eager_ones(case: str, backend: str) -> None:
    name, obs, act, changes = CASES[case]
    eager, captured = (make(name, obs, act, backend, length=2, **changes) for _ in range(2))
    capture(captured, recorder := Tapes())
    assert_equal(lived(captured), lived(eager))
    assert len(recorder.tapes) == 3  # updates, steps, and greedy ones


def test_the_actor_that_explores_makes_room_inside_of_a_replay() -> None:
    agent = make("dreamer_v2", VECTOR, DISCRETE, "reference", length=2, **SEEKING)
    capture(agent, recorder := Tapes())
    with torch.no_grad():  # one actor always takes 1, the other 3
        for nets, choice in ((agent.nets.task, 1), (agent.nets.explore, 3)):
            nets.pol.head["action"]._modules["logits"].bias[choice] = 50.0
    seen = []
    for count in range(5):
        agent.model_opt.count.fill_(count)
        _, action, _ = agent.policy(agent.init_policy(4), observation(agent, 4))
        seen.append(set(action["action"].tolist()))
    assert seen == [{3}, {3}, {3}, {1}, {1}] and len(recorder.tapes) == 1


@pytest.mark.parametrize("name", ["dreamer_v1", "dreamer_v2"])
def test_graphs_are_used_on_cuda_unless_switched_off(name: str) -> None:
    kind, cuda = type(make(name, VECTOR, DISCRETE)), torch.device("cuda")
    assert [graphs.wanted(choice, cuda, kind) for choice in ("auto", "on", "off")] == [True, True, False]
