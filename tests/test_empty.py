"""Batches of nothing, and of less than something can be made of: refused with the value and what would do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.agents.dreamer_v2_config import ExploreConfig

from . import agent_tools, dreamer_tools
from .dreamer_tools import DISCRETE, VECTOR

AGENTS = ["dreamer_v1", "dreamer_v2", "dreamer_v3"]


@pytest.mark.parametrize(
    ("what", "count", "steps", "least"),
    [("update", 0, 6, 1), ("update", 2, 0, 1), ("report", 0, 6, 2), ("report", 2, 0, 2), ("report", 2, 1, 2)],
)
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_names_the_shape_of_a_batch_that_is_too_small(
    name: str, what: str, count: int, steps: int, least: int
):
    agent = dreamer_tools.make(name, VECTOR, DISCRETE)
    tools, context = (agent_tools if agent.replay_context else dreamer_tools), agent.replay_context
    batch = {key: value[:count, : steps + context] for key, value in tools.batch(agent).items()}
    message = (
        rf"shape \[{count}, {steps + context}\] of sequences and steps: expected \[1, {least + context}\]"
    )
    with pytest.raises(ValueError, match=message):
        getattr(agent, what)(agent.init_train(count), batch)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("dreamer_v1", {"pcont": True}), ("dreamer_v2", {"explore": ExploreConfig("plan2explore", models=2)})],
)
def test_what_learns_from_pairs_of_states_takes_no_single_ones(name: str, changes: dict[str, Any]):
    agent = dreamer_tools.make(name, VECTOR, DISCRETE, **changes)
    agent.update(agent.init_train(2), dreamer_tools.batch(agent, T=2))
    with pytest.raises(ValueError, match=r"shape \[2, 1\] of sequences and steps: expected \[1, 2\]"):
        agent.update(agent.init_train(2), dreamer_tools.batch(agent, T=1))


def scans(agent: Any, ops: fd.Ops, steps: int) -> dict[str, Any]:
    """Calls of the ops that go through time, by name."""
    dyn = agent.nets.dyn
    deter, stoch = dyn.initial(2, device="cpu", dtype=torch.float32)
    draws = agent.nets.draw(2, 6, torch.Generator())
    cut = {k: x if x is None else x[:, :steps] for k, x in draws._asdict().items()}
    embed = agent.nets.enc(agent_tools.batch(agent))[:, :steps]
    action, reset = torch.zeros(2, steps, 5), torch.zeros(2, steps, dtype=torch.bool)
    dreamed: list[Tensor] = [draws.prior[:2, :steps], draws.action[:2, : steps + 1]]
    return {
        "observe": lambda: ops.observe(dyn.params, deter, stoch, action, embed, reset, cut["post"]),
        "rollout": lambda: ops.rollout(dyn.params, deter, stoch, action, cut["post"]),
        "imagine": lambda: ops.imagine(dyn.params, agent.nets.pol.params, deter, stoch, steps, *dreamed),
    }


@pytest.mark.parametrize("op", ["observe", "rollout", "imagine"])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_scan_of_no_steps_is_refused(backend: str, op: str):
    agent = dreamer_tools.make("dreamer_v3", VECTOR, DISCRETE, ops="reference")
    ops = fd.load(backend)
    with torch.no_grad():
        scans(agent, ops, 1)[op]()
    for grad in (False, True):
        refused = pytest.raises(ValueError, match=f"{op}: there are 0 time steps, expected 1 or more")
        with torch.set_grad_enabled(grad), refused:
            scans(agent, ops, 0)[op]()


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_there_are_no_returns_of_no_steps(backend: str):
    reward, *others = (torch.zeros(2, 0, requires_grad=True) for _ in range(4))
    ret = fd.load(backend).lambda_return(reward, *others)
    ret.sum().backward()
    assert ret.shape == (2, 0) and reward.grad is not None
