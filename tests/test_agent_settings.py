"""DreamerV3's settings: which losses each of them touches, and which losses reach the world model."""

import pytest
import torch
from torch import Tensor

from fastdream.agents.dreamer_v3 import DreamerV3
from fastdream.heads import TwoHotConfig
from fastdream.policy import PolicyConfig

from .agent_tools import DISCRETE, MIXED, VECTOR, batch, losses, make
from .watched import watch_ops


def livened(**changes: object) -> DreamerV3:
    """An agent whose heads do not begin with zeros, which nothing would pass."""
    heads = {key: TwoHotConfig(layers=1, units=8, outscale=1.0) for key in ("rewhead", "value")}
    policy = PolicyConfig(layers=1, units=8, outscale=1.0)
    return make(VECTOR, DISCRETE, policy=policy, **heads, **changes)


def learned(agent: DreamerV3) -> dict[str, Tensor]:
    """The losses of a batch."""
    calls = watch_ops(agent, "summarize")
    carry, rest, action = agent.context(agent.init_train(2), batch(agent))
    agent.loss(carry, rest, action, agent.nets.draw(2, 6, torch.Generator().manual_seed(0)))
    return losses(agent, calls)


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"lam": 0.5}, "policy value repval"),
        ({"replay_lam": 0.5}, "repval"),
        ({"slowreg": 0.0}, "value"),
        ({"replay_slowreg": 0.0}, "repval"),
        ({"actent": 0.1}, "policy"),
        ({"contdisc": False}, "con policy value repval"),
        ({"horizon": 5}, "con repval"),
        ({"horizon": 5, "contdisc": False}, "con policy value repval"),
    ],
)
def test_which_losses_a_setting_touches(changes: dict[str, object], touched: str) -> None:
    before, after = (learned(livened(**x)) for x in ({}, changes))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {*touched.split()}


@pytest.mark.parametrize("contdisc", [True, False])
def test_the_discount_is_learned_if_it_is_to_be(contdisc: bool) -> None:
    agent = make(VECTOR, DISCRETE, contdisc=contdisc, horizon=5)
    target = agent.continuation({"is_terminal": torch.tensor([[False, True]])})
    assert target.tolist() == [[pytest.approx(0.8) if contdisc else 1, 0]]


def test_entropy_is_shown_as_a_share_of_its_range_too() -> None:
    agent = make(VECTOR, MIXED)
    _, _, metrics = agent.update(agent.init_train(2), batch(agent))
    for key, (low, high) in agent.nets.pol.entropy_range().items():
        assert metrics[f"rand/{key}"] == pytest.approx(float((metrics[f"ent/{key}"] - low) / (high - low)))
        assert low != 0 or key != "move"


@pytest.mark.parametrize(
    ("changes", "closed", "opened"),
    [
        ({}, "policy value", "rew repval con dyn rep position"),
        ({"reward_grad": False}, "policy value rew", "repval con"),
        ({"repval_grad": False}, "policy value repval", "rew con"),
        ({"reward_grad": False, "repval_grad": False, "imag_last": 2}, "policy value rew repval", "con"),
        ({"ac_grads": True}, "", "policy value rew repval con"),
    ],
)
def test_which_losses_reach_the_world_model(changes: dict[str, object], closed: str, opened: str) -> None:
    agent = livened(**changes)
    found = learned(agent)
    params = [*agent.nets.enc.parameters(), *agent.nets.dyn.parameters()]
    for name in (*closed.split(), *opened.split()):
        loss = found[name].sum()
        grads = torch.autograd.grad(loss, params, allow_unused=True, retain_graph=True)
        assert any(x is not None and x.any() for x in grads) == (name in opened.split()), name
