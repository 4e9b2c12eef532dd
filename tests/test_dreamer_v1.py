"""DreamerV1 as a whole: sizes, spaces, exploration, reproducibility, who learns from what; losses are tested apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v1 import Config, DreamerV1, size
from fastdream.agents.dreamer_v1_config import PolicyConfig
from fastdream.agents.dreamer_v1_nets import Networks
from fastdream.spaces import Space, Spaces

from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    MIXED,
    VECTOR,
    WAITS,
    batch,
    gradients,
    observation,
    same_after_loading,
)


def make(obs: Spaces, act: Spaces, seed: int = 0, ops: str = "auto", **changes: Any) -> DreamerV1:
    config = replace(size(Config(imag_length=3), "debug"), **changes)
    return DreamerV1(obs, act, config, fd.load(ops), seed=seed)


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


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS, MIXED], ids=["discrete", "continuous", "mixed"])
@pytest.mark.parametrize("obs", [IMAGE, VECTOR, IMAGE | VECTOR], ids=["image", "vector", "both"])
@pytest.mark.parametrize("pcont", [False, True])
def test_learns_and_acts_in_any_spaces(obs: Spaces, act: Spaces, pcont: bool) -> None:
    agent = make(obs, act, pcont=pcont, free_nats=0.0)  # so that the prior learns from a KL however small
    before = {k: p.clone() for k, p in agent.nets.named_parameters()}
    carry, latents, metrics = agent.update(agent.init_train(2), batch(agent))
    assert not latents and not agent.latent_spec and not any(v.any() for v in carry.values())
    assert all(torch.isfinite(v).all() and v.dim() == 0 for v in metrics.values())
    after = dict(agent.nets.named_parameters())
    assert [k for k in before if torch.equal(after[k], before[k])] == []
    assert ("loss/pcont" in metrics) == pcont

    for mode in ("sample", "mode"):
        carry, action, latents = agent.policy(agent.init_policy(3), observation(agent, 3), mode)
        assert not latents and carry["action"].shape == (3, sum(space.width for space in act.values()))
        for key, space in act.items():
            assert action[key].shape == (3, *space.shape) and action[key].dtype == space.dtype
            inside = action[key] < space.classes if space.kind == "discrete" else abs(action[key]) <= 1
            assert inside.all()


def test_each_loss_reaches_its_own_networks_alone() -> None:
    agent = make(VECTOR, MIXED, pcont=True, free_nats=0.0)
    nets, data = agent.nets, batch(agent)
    modules = {name: getattr(nets.model, name) for name in ("enc", "dyn", "dec", "rew", "pcont")}
    modules |= {"pol": nets.pol, "val": nets.val}
    loss, post, _ = agent.model_loss(agent.init_train(2), data, draws(agent))
    assert gradients(loss, modules) == {"enc", "dyn", "dec", "rew", "pcont"}
    start = (x.detach()[:, :-1].flatten(0, 1) for x in (post.deter, post.stoch))
    actor, value, _ = agent.behavior_loss(*start, draws(agent))
    assert gradients(actor, modules) == {"pol"}
    assert gradients(value, modules) == {"val"}


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


def test_same_seed_is_the_same_agent_to_the_bit() -> None:
    runs = []
    for seed in (1, 1, 2):
        agent = make(VECTOR, MIXED, seed=seed)
        for i in range(3):
            _, _, metrics = agent.update(agent.init_train(2), batch(agent, seed=i))
        _, action, _ = agent.policy(agent.init_policy(2), observation(agent, 2))
        runs.append((metrics["opt/loss"].item(), action["move"].tobytes()))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened() -> None:
    changes = {"expl": "linear(1,0,5)"}
    assert same_after_loading(make(VECTOR, MIXED, **changes), make(VECTOR, MIXED, seed=7, **changes))


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_the_reference_and_auto_give_the_same_losses(act: Spaces) -> None:
    losses = []
    for ops in ("reference", "auto"):
        agent = make(IMAGE | VECTOR, act, ops=ops)
        _, _, metrics = agent.update(agent.init_train(2), batch(agent))
        losses.append({k: v for k, v in metrics.items() if k.startswith("loss/")})
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_half_precision(act: Spaces) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        agent = make(IMAGE | VECTOR, act, dtype=dtype)
        assert agent.init_policy(1)["deter"].dtype == getattr(torch, dtype)
        _, _, metrics = agent.update(agent.init_train(2), batch(agent))
        for mode in ("sample", "mode"):
            _, action, _ = agent.policy(agent.init_policy(3), observation(agent, 3), mode)
            assert np.isfinite(action["action"]).all()
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in agent.nets.parameters())
        losses.append(float(metrics["loss/model"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_report_leaves_the_agent_as_it_was() -> None:
    agent = make(IMAGE | VECTOR, DISCRETE)
    state = {k: v.clone() for k, v in agent.nets.state_dict().items()}
    metrics, pictures = agent.report(agent.init_train(2), batch(agent))
    assert all(torch.equal(v, state[k]) for k, v in agent.nets.state_dict().items())
    assert pictures["image"].shape == (6, 3 * 68, 2 * 68, 3) and pictures["position"].shape == (2, 6, 3)
    assert torch.isfinite(metrics["loss/policy"]) and torch.isfinite(metrics["loss/model"])


def test_an_update_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(IMAGE | VECTOR, MIXED)
    carry, data = agent.init_train(2), batch(agent)
    agent.update(carry, data)
    for name in WAITS:

        def fail(self: Tensor, *args: object, name: str = name) -> None:
            raise AssertionError(f"Tensor.{name} in an update")

        monkeypatch.setattr(Tensor, name, fail)
    _, _, metrics = agent.update(carry, data)
    monkeypatch.undo()
    assert torch.isfinite(metrics["opt/loss"])


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
    agent = make(VECTOR, DISCRETE)
    with pytest.raises(ValueError, match="mode='best'"):
        agent.policy(agent.init_policy(1), observation(agent, 1), mode="best")
