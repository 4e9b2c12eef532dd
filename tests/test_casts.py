"""Weights cast once an update: the same numbers, gradients in their dtype, parameters back in their places."""

import copy
from dataclasses import replace

import pytest
import torch

from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.casts import Casts
from fastdream.nets import Dense
from fastdream.ops import load
from fastdream.ops.triton.dense_nets import in_one_piece
from fastdream.ops.triton.padding import padded_rows

from .agent_tools import CONTINUOUS, VECTOR, batch


def small(dtype: str) -> DreamerV3:
    config = size(Config(imag_length=3), "debug")
    config = replace(config, dtype=dtype, opt=replace(config.opt, lr=1e-2, warmup=0))
    return DreamerV3(VECTOR, CONTINUOUS, config, load("reference"))


def test_full_precision_casts_nothing():
    agent = small("float32")
    assert all(agent.casts.leaf(p) is p for p in agent.nets.parameters())
    with agent.casts:
        assert all(isinstance(p, torch.nn.Parameter) for p in agent.nets.parameters())


def test_losses_are_those_without_casts():
    losses = []
    for enter in (False, True):
        agent = small("bfloat16")
        carry, data, action = agent.context(agent.init_train(2), batch(agent))
        draws = agent.nets.draw(*action.shape[:2], agent.generators["train"])
        if enter:
            with agent.casts:
                losses.append(agent.loss(carry, data, action, draws)[0])
        else:
            losses.append(agent.loss(carry, data, action, draws)[0])
        losses[-1].backward()
    assert torch.equal(*losses)


def test_gradients_come_to_the_casts():
    agents = small("bfloat16"), small("bfloat16")
    for agent, casts in zip(agents, (agents[0].casts, None), strict=True):
        carry, data, action = agent.context(agent.init_train(2), batch(agent))
        draws = agent.nets.draw(*action.shape[:2], agent.generators["train"])
        if casts is not None:
            with casts:
                loss = agent.loss(carry, data, action, draws)[0]
        else:
            loss = agent.loss(carry, data, action, draws)[0]
        loss.backward()
    found = 0
    for ours, theirs in zip(*(agent.nets.learned().values() for agent in agents), strict=True):
        leaf = agents[0].casts.leaf(ours)
        assert leaf.grad is not None and theirs.grad is not None
        if leaf is not ours:
            assert ours.grad is None and leaf.grad.dtype == torch.bfloat16
            found += 1
        # Two products' gradients are added in half precision, where they were in full.
        torch.testing.assert_close(leaf.grad.float(), theirs.grad, rtol=2**-6, atol=1e-6)
    assert found > 20


def test_updates_learn_and_keep_the_parameters():
    agent = small("bfloat16")
    names = {name: id(p) for name, p in agent.nets.named_parameters()}
    before = {name: p.detach().clone() for name, p in agent.nets.learned().items()}
    carry = agent.init_train(2)
    for _ in range(2):
        carry, _, _ = agent.update(carry, batch(agent))
    assert names == {name: id(p) for name, p in agent.nets.named_parameters()}
    assert all(not torch.equal(p, before[name]) for name, p in agent.nets.learned().items())
    assert all(agent.casts.leaf(p).grad is None for p in agent.nets.parameters())


def test_casts_follow_changes_in_place_and_leave_after_an_error():
    net = Dense(load("reference"), 3, 2)
    casts, weight = Casts(net, torch.bfloat16), net.weight
    with torch.no_grad():
        net.weight.fill_(2)
    with pytest.raises(ZeroDivisionError), casts:
        assert net.weight is casts.leaf(weight) and torch.equal(
            net.weight, torch.full((2, 3), 2.0).bfloat16()
        )
        raise ZeroDivisionError
    assert net.weight is weight


def test_a_copy_of_a_module_and_its_casts_is_on_its_own():
    net = Dense(load("reference"), 3, 2)
    casts = Casts(net, torch.bfloat16)
    other, others = copy.deepcopy((net, casts))
    with torch.no_grad():
        other.weight.fill_(2)
    with others:
        assert torch.equal(other.weight, torch.full((2, 3), 2.0).bfloat16())
        assert isinstance(net.weight, torch.nn.Parameter)
    assert isinstance(other.weight, torch.nn.Parameter) and others.leaf(other.weight).dtype == torch.bfloat16
    assert not torch.equal(casts.leaf(net.weight), others.leaf(other.weight))


def test_joined_weights_lie_together():
    nets = torch.nn.ModuleList(Dense(load("reference"), 64, n, norm="rms") for n in (3, 5, 2))
    chosen = [nets[i].weight for i in (2, 0)]
    casts = Casts(nets, torch.bfloat16, [chosen])
    joined = in_one_piece([casts.leaf(x) for x in chosen])
    with casts:
        expected = torch.zeros(16, 64)
        expected[:2], expected[8:11] = chosen
        assert joined is not None and torch.equal(joined, expected.bfloat16())
        alone = padded_rows(casts.leaf(nets[1].weight))
        assert alone is not None and torch.equal(alone[:5], nets[1].weight) and not alone[5:].any()
    for others in ((0, 2), (2,), (0, 0)):
        assert in_one_piece([casts.leaf(nets[i].weight) for i in others]) is None
