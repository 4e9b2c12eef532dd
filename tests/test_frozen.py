"""Agents of which a part is frozen, as for fine-tuning: it stays as it is, and the rest learns as ever."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fastdream.optim import Optimiser

from . import agent_tools, dreamer_tools
from .dreamer_tools import DISCRETE, IMAGE, VECTOR

AGENTS = ["dreamer_v1", "dreamer_v2", "dreamer_v3"]


def made(name: str) -> Any:
    """An agent in whose optimisers no parameter's gradient has to do with another's."""
    agent = dreamer_tools.make(name, IMAGE | VECTOR, DISCRETE)
    if name == "dreamer_v3":
        agent.opt.config = replace(agent.opt.config, warmup=0)
    for opt in optimisers(agent):
        if name != "dreamer_v3":
            opt.config = replace(opt.config, clip=0.0)
    return agent


def optimisers(agent: Any) -> list[Any]:
    owners = [agent, getattr(agent, "behavior", agent)]
    found = [value for owner in owners for value in vars(owner).values()] + [
        *getattr(agent, "opts", {}).values()
    ]
    return [value for value in found if isinstance(value, Optimiser)]


def learned(agent: Any) -> dict[str, torch.Tensor]:
    """All parameters after an update."""
    tools = agent_tools if agent.replay_context else dreamer_tools
    agent.update(agent.init_train(2), tools.batch(agent))
    return {name: p.detach().clone() for name, p in agent.nets.named_parameters()}


def encoder(agent: Any) -> nn.Module:
    return getattr(agent, "model", agent.nets).enc  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", AGENTS)
def test_a_frozen_part_stays_and_the_rest_learns(name: str):
    want, agent = learned(made(name)), made(name)
    before = [p.detach().clone() for p in encoder(agent).parameters()]
    encoder(agent).requires_grad_(False)
    got = learned(agent)
    assert all(map(torch.equal, encoder(agent).parameters(), before))
    frozen = {id(p) for p in encoder(agent).parameters()}
    rest = [name for name, p in agent.nets.named_parameters() if id(p) not in frozen]
    assert len(rest) > len(before) > 0
    assert all(torch.equal(got[key], want[key]) for key in rest)
    encoder(agent).requires_grad_(True)
    learned(agent)
    assert not any(map(torch.equal, encoder(agent).parameters(), before))


@pytest.mark.parametrize("name", AGENTS)
def test_everything_frozen_is_refused(name: str):
    agent = made(name)
    agent.nets.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"all \d+ parameters that are learned together are frozen, \S+ and oth"
    ):
        learned(agent)
