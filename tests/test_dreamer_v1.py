"""DreamerV1 as a whole: sizes, spaces, exploration, reproducibility, who learns from what; losses are tested apart."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v1 import Config, DreamerV1, size
from fastdream.agents.dreamer_v1_config import PolicyConfig
from fastdream.agents.dreamer_v1_nets import Networks
from fastdream.driver import no_actions
from fastdream.spaces import Space, Spaces

from . import dreamer_tools
from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    MIXED,
    VECTOR,
    batch,
    double,
    observation,
)

make = partial(dreamer_tools.make, "dreamer_v1")


def draws(agent: DreamerV1, B: int = 2, T: int = 6) -> Any:
    return agent.nets.draw(B, T, torch.Generator().manual_seed(0))


def test_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        act = {"action": Space("vector", (6,))}
        nets = Networks(IMAGE, act, size(Config(), "6m"), fd.load("reference"), torch.float32, 0)

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    model = nets.model
    parts = [count(part) for part in (model.dyn, model.enc, model.dec, model.rew)]
    assert parts == [557_920, 690_144, 3_795_555, 253_201]
    assert (count(model), count(nets.val), count(nets.pol)) == (5_296_820, 413_601, 578_412)


def test_the_last_state_is_no_start_where_it_may_be_terminal() -> None:
    assert make(VECTOR, DISCRETE, pcont=True).nets.draw(2, 6, torch.Generator()).prior.shape[0] == 10
    assert make(VECTOR, DISCRETE).nets.draw(2, 6, torch.Generator()).prior.shape[0] == 12


def test_a_sequence_starts_with_the_action_that_led_to_it_and_later_episodes_with_none() -> None:
    agent = make(VECTOR, CONTINUOUS)
    data = {k: v[:, :4] for k, v in batch(agent).items()}
    data["is_first"] = torch.tensor([[True, False, True, False]] * 2)
    changed = []
    for t in range(4):
        other = {k: v.clone() for k, v in data.items()}
        other["action/action"][:, t] += 0.5
        posts = [agent.model_loss(agent.init_train(2), d, draws(agent, T=4))[1].deter for d in (data, other)]
        changed.append([not torch.equal(posts[0][:, k], posts[1][:, k]) for k in range(4)])
    assert changed == [
        [True, True, False, False],
        [False, True, False, False],
        [False] * 4,
        [False] * 3 + [True],
    ]


@pytest.mark.parametrize("act", [DISCRETE, MIXED], ids=["discrete", "mixed"])
def test_an_episode_begins_with_no_class_in_training_as_in_acting(act: Spaces) -> None:
    agent = make(VECTOR, act)
    data, first = batch(agent, T=3), observation(agent, 2) | {"is_first": np.ones(2, bool)}
    led = {f"action/{key}": torch.from_numpy(x) for key, x in no_actions(act, 2).items()}
    for key, x in led.items():
        data[key][:, 0] = x
    acted, _ = agent.act(agent.init_policy(2), agent.inputs(first))
    deter = agent.model_loss(agent.init_train(2), data, draws(agent, T=3))[1].deter[:, 0]
    torch.testing.assert_close(deter, acted["deter"], rtol=1e-6, atol=1e-7)
    for key, x in led.items():
        data[key][:, 0] = x.clamp_min(0)
    other = agent.model_loss(agent.init_train(2), data, draws(agent, T=3))[1].deter[:, 0]
    assert (other - deter).abs().amax(1).min() > 1e-3  # class 0 is an action


def test_the_gru_of_tensorflow_1_begins_as_there() -> None:
    D, H, after = 24, 40, make(VECTOR, CONTINUOUS).config.dyn
    for reset_after in (True, False):
        dyn = replace(after, deter=D, hidden=H, reset_after=reset_after)
        core = make(VECTOR, CONTINUOUS, dyn=dyn).model.dyn.core
        # Keras: one input matrix of all gates, an orthogonal recurrent one, biases 0. GRUBlockCell: Glorot's limits of
        # [input, state] to both gates, with biases 1, and of [input, state] to the candidate.
        bias = np.zeros(3 * D)
        bias[: 2 * D] = not reset_after
        assert double(core.bias_ih).tolist() == bias.tolist() and not core.bias_hh.any()
        gates, cand = (np.sqrt(6 / (H + D + outs)) for outs in (2 * D, D))
        if reset_after:
            limits = [(core.weight_ih, gates)]
            np.testing.assert_allclose(double(core.weight_hh.T @ core.weight_hh), np.eye(D), atol=1e-5)
        else:
            weights = core.weight_ih, core.weight_hh
            limits = [x for w in weights for x in ((w[: 2 * D], gates), (w[2 * D :], cand))]
        for weight, limit in limits:
            assert 0.97 * limit < weight.abs().max() <= limit and abs(weight.mean()) < 0.1 * limit


def test_optimisers_are_those_of_the_official_code() -> None:
    config = Config()
    assert config.model_opt == AdamConfig(lr=6e-4, clip=100.0, eps=1e-7, wd=0.0)
    assert config.policy_opt == config.value_opt == AdamConfig(lr=8e-5, clip=100.0, eps=1e-7, wd=0.0)
    assert config.policy == PolicyConfig(4, 400, "elu", 5.0, 1e-4)


def test_exploration_adds_noise_to_continuous_actions_and_replaces_discrete_ones() -> None:
    agent, generator = make(VECTOR, MIXED), torch.Generator().manual_seed(0)
    n = 4000
    flat = torch.zeros(n, 2 + 2 + 12)
    # fire: class 1; keys: class 3 of each; move: 0.4 and -0.9
    flat[:, 1] = flat[:, 2 + 3] = flat[:, 2 + 7] = flat[:, 2 + 11] = 1.0
    flat[:, 14:] = torch.tensor([0.4, -0.9])
    explored = agent.nets.explored(flat, torch.tensor(0.3), generator)
    noise = explored[:, 14] - 0.4
    assert abs(float(noise.std()) - 0.3) < 0.02 and explored[:, 14:].abs().max() == 1
    assert float((explored[:, 15] == -1).float().mean()) == pytest.approx(0.37, abs=0.03)
    same = (explored[:, 2:14] == flat[:, 2:14]).all(-1).float().mean()
    assert float(same) == pytest.approx(0.7 + 0.3 / 64, abs=0.03)
    assert torch.equal(explored[:, :14].sum(-1), torch.full((n,), 4.0))
    assert torch.equal(agent.nets.explored(flat, 0.0, generator), flat)


def test_exploration_follows_its_schedule_and_is_off_in_evaluation() -> None:
    agent = make(VECTOR, DISCRETE, expl="linear(1,0,2)")
    metrics = [agent.update(agent.init_train(2), batch(agent, seed=i))[2] for i in range(3)]
    assert [float(m["expl"]) for m in metrics] == [1, 0.5, 0]
    with torch.no_grad():  # an actor that knows what it wants
        out = agent.nets.pol.head["action"]._modules["logits"]
        out.bias.copy_(torch.tensor([0.0, 50.0, 0.0, 0.0, 0.0]))
    carry, obs = agent.init_policy(64), observation(agent, 64)
    assert (agent.policy(carry, obs)[1]["action"] == 1).all()
    wild = make(VECTOR, DISCRETE, expl="1", expl_eval=0.0)
    wild.nets.load_state_dict(agent.nets.state_dict())
    assert len(set(wild.policy(carry, obs)[1]["action"].tolist())) == 5
    assert (wild.policy(carry, obs, "mode")[1]["action"] == 1).all()


def test_the_most_likely_of_many_draws_is_near_the_peak() -> None:
    policy = PolicyConfig(layers=1, units=8, init_std=0.3)
    agent = make(VECTOR, CONTINUOUS, policy=policy, mode_draws=500)
    with torch.no_grad():
        head = agent.nets.pol.head["action"]._modules["mean"]
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.5, -0.2]))
    _, action, _ = agent.policy(agent.init_policy(20), observation(agent, 20), mode="mode")
    # Density of the squashed action: of the normal over 1 - a^2, largest where (x - m) / s^2 = 2 tanh(x).
    x = np.linspace(-3, 3, 60_001)
    for value, mean in zip(action["action"].mean(0), (0.5, -0.2), strict=True):
        log = -0.5 * ((x - 5 * np.tanh(mean / 5)) / 0.3) ** 2 - np.log1p(-(np.tanh(x) ** 2))
        assert abs(value - np.tanh(x[log.argmax()])) < 0.12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imag_length": 1}, "imag_length >= 2"),
        ({"discount": 0.0}, "0 < discount < 1"),
        ({"expl": "some"}, "'some' is no number"),
        ({"expl_eval": -0.1}, "expl_eval=-0.1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown size '12m'; choose from debug, tiny, 6m"):
        size(Config(), "12m")
    with pytest.raises(ValueError, match=r"\['pcont'\] are names of losses"):
        make({"pcont": Space("vector", (2,))}, DISCRETE)
    with pytest.raises(ValueError, match="init_std and min_std > 0"):
        PolicyConfig(init_std=0.0)
