"""DreamerV2 as a whole: sizes, spaces, reproducibility, who learns from what. Its numbers are elsewhere."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v2 import Config, size
from fastdream.agents.dreamer_v2_config import KLConfig
from fastdream.agents.dreamer_v2_nets import Networks
from fastdream.normalize import SlowConfig
from fastdream.spaces import Space, Spaces

from . import dreamer_tools
from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    MIXED,
    VECTOR,
    batch,
    gradients,
    observation,
)

make = partial(dreamer_tools.make, "dreamer_v2")
NETS = ("enc", "dec", "dyn", "rewhead", "dishead", "policy", "value")


def counts(obs: Spaces, act: Spaces, config: Config) -> tuple[int, ...]:
    with torch.device("meta"):
        nets = Networks(obs, act, config, fd.load("reference"), torch.float32, 0)
    modules = nets.model, nets.model.dyn, nets.task.pol, nets.task.val
    return tuple(sum(p.numel() for p in module.parameters()) for module in modules)


def test_parameter_counts_of_atari() -> None:
    grey = {"image": Space("image", (64, 64, 1))}
    model, dyn, pol, val = counts(grey, {"action": Space("discrete", (), 18)}, size(Config(), "22m"))
    assert (model, dyn, model + pol + val) == (19_975_379, 5_664_848, 22_245_398)
    assert (pol, val) == (1_138_418, 1_131_601)


def test_parameter_counts_of_deepmind_control_and_crafter() -> None:
    without = replace(size(Config(), "15m"), pred_discount=False)
    model, _, pol, val = counts(IMAGE, {"action": Space("vector", (6,))}, without)
    assert (model, model + pol + val) == (13_656_772, 15_604_385)
    normed = size(Config(), "31m")
    normed = replace(normed, **{name: replace(getattr(normed, name), norm="layer") for name in NETS})
    model, _, pol, val = counts(IMAGE, {"action": Space("discrete", (), 17)}, normed)
    assert model + pol + val == 31_074_807


def test_heads_outside_of_grad_heads_do_not_shape_the_model() -> None:
    parts = ("enc", "dyn", "dec", "rew", "dis")
    agent = make(VECTOR, DISCRETE, kl=KLConfig(free=1e3))  # so that the KL has no gradient
    model, data = agent.model, batch(agent)
    draws = agent.nets.draw(2, 6, torch.Generator().manual_seed(0))
    for heads, reached in (
        ((), {"dec", "rew", "dis"}),
        (("reward",), set(parts)),
        (("decoder",), set(parts)),
    ):
        agent.config = replace(agent.config, grad_heads=heads)
        loss, _, _ = agent.model_loss(agent.init_train(2), data, draws)
        assert gradients(loss, {name: getattr(model, name) for name in parts}) == reached


def test_reinforce_takes_no_gradient_through_the_dream() -> None:
    for actor_grad, through in (("reinforce", False), ("dynamics", True)):
        agent = make(VECTOR, CONTINUOUS, actor_grad=actor_grad)
        draws = agent.nets.draw(2, 6, torch.Generator().manual_seed(0))
        _, post, _ = agent.model_loss(agent.init_train(2), batch(agent), draws)
        dream, _, rew, _, slow = agent.behavior.imagine(agent.start(post, batch(agent)), draws)
        assert dream.deter.requires_grad == rew.requires_grad == slow.requires_grad == through
    assert make(VECTOR, MIXED).behavior.actor_grad == "reinforce"
    assert make(VECTOR, CONTINUOUS).behavior.actor_grad == "dynamics"


def test_the_target_critic_is_copied_every_so_many_updates() -> None:
    agent = make(VECTOR, DISCRETE, slowvalue=SlowConfig(rate=1.0, every=3))
    assert Config().slowvalue == SlowConfig(rate=1.0, every=100)
    val, slow = (list(module.parameters()) for module in (agent.nets.task.val, agent.nets.task.slowval))
    equal = []
    for i in range(7):
        agent.update(agent.init_train(2), batch(agent, seed=i))
        equal.append(all(torch.allclose(a, b, 1e-6, 1e-7) for a, b in zip(val, slow, strict=True)))
    assert equal == [True, False, False, True, False, False, True]


def test_optimisers_are_those_of_the_paper() -> None:
    config = Config()
    for opt, lr in ((config.model_opt, 1e-4), (config.policy_opt, 8e-5), (config.value_opt, 2e-4)):
        assert opt == AdamConfig(lr=lr, clip=100.0, eps=1e-5, wd=1e-6)


def test_schedules_move_with_the_updates() -> None:
    agent = make(VECTOR, CONTINUOUS, actent="linear(1,0,4)", actor_mix="warmup(2,0.5)", actor_grad="both")
    seen = [agent.update(agent.init_train(2), batch(agent, seed=i))[2] for i in range(5)]
    assert [round(float(m["actent"]), 6) for m in seen] == [1, 0.75, 0.5, 0.25, 0]
    assert [round(float(m["actor_mix"]), 6) for m in seen] == [0, 0.25, 0.5, 0.5, 0.5]


def test_greedy_actions_are_the_most_likely_ones() -> None:
    agent = make(VECTOR, CONTINUOUS)
    obs = {k: np.repeat(v[:1], 4, 0) for k, v in observation(agent, 4).items()}
    _, sampled, _ = agent.policy(agent.init_policy(4), obs)
    assert len(np.unique(sampled["action"][:, 0])) == 4
    with torch.no_grad():
        agent.nets.task.pol.head["action"]._modules["mean"].weight.zero_()
    _, greedy, _ = agent.policy(agent.init_policy(4), obs, mode="mode")
    assert np.array_equal(greedy["action"], np.zeros_like(greedy["action"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imag_length": 1}, "2 imagined steps"),
        ({"discount": 1.0}, "0 < discount < 1"),
        ({"actent": "little"}, "'little' is no number"),
        ({"actor_mix": "linear(1,2)"}, "is no number"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_unknown_size_names_and_images() -> None:
    with pytest.raises(ValueError, match="unknown size '12m'; choose from debug, tiny, 15m"):
        size(Config(), "12m")
    with pytest.raises(ValueError, match=r"\['kl'\] are names of losses"):
        make({"kl": Space("vector", (2,))}, DISCRETE)
    with pytest.raises(ValueError, match="has size 48x48"):
        make({"image": Space("image", (48, 48, 3))}, DISCRETE)
    with pytest.raises(ValueError, match="kl balance"):
        KLConfig(balance=1.5)
