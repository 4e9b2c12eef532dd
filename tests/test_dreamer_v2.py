"""DreamerV2 as a whole: sizes, spaces, reproducibility, who learns from what. Its numbers are elsewhere."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v2 import Config, DreamerV2, size
from fastdream.agents.dreamer_v2_config import KLConfig, RSSMConfig
from fastdream.agents.dreamer_v2_nets import Networks
from fastdream.normalize import SlowConfig
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

NETS = ("enc", "dec", "dyn", "rewhead", "dishead", "policy", "value")


def make(obs: Spaces, act: Spaces, seed: int = 0, ops: str = "auto", **changes: Any) -> DreamerV2:
    config = replace(size(Config(imag_length=3), "debug"), **changes)
    return DreamerV2(obs, act, config, fd.load(ops), seed=seed)


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


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS, MIXED], ids=["discrete", "continuous", "mixed"])
@pytest.mark.parametrize("obs", [IMAGE, VECTOR, IMAGE | VECTOR], ids=["image", "vector", "both"])
@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
def test_learns_and_acts_in_any_spaces(obs: Spaces, act: Spaces, classes: int) -> None:
    agent = make(obs, act, dyn=RSSMConfig(16, 8, 4, classes))
    before = {k: p.clone() for k, p in agent.nets.named_parameters()}
    carry, latents, metrics = agent.update(agent.init_train(2), batch(agent))
    assert not latents and not agent.latent_spec and not any(v.any() for v in carry.values())
    assert all(torch.isfinite(v).all() and v.dim() == 0 for v in metrics.values())
    after = dict(agent.nets.named_parameters())
    assert [k for k in before if torch.equal(after[k], before[k])] == []

    carry, action, latents = agent.policy(agent.init_policy(3), observation(agent, 3))
    assert not latents and carry["action"].shape == (3, sum(space.width for space in act.values()))
    for key, space in act.items():
        assert action[key].shape == (3, *space.shape) and action[key].dtype == space.dtype
        assert (
            (action[key] < space.classes).all() if space.kind == "discrete" else (abs(action[key]) < 1).all()
        )


@pytest.mark.parametrize("actor_grad", ["reinforce", "dynamics", "both"])
def test_each_loss_reaches_its_own_networks_alone(actor_grad: str) -> None:
    agent = make(VECTOR, MIXED, actor_grad=actor_grad, ops="reference")
    nets, data = agent.nets, batch(agent)
    modules = {"model": nets.model, "pol": nets.task.pol, "val": nets.task.val, "slow": nets.task.slowval}
    draws = nets.draw(2, 6, torch.Generator().manual_seed(0))
    loss, post, _ = agent.model_loss(agent.init_train(2), data, draws)
    assert gradients(loss, modules) == {"model"}
    for name, reached in (("policy", "pol"), ("value", "val")):
        losses, _ = agent.behavior.loss(agent.start(post, data), draws)
        assert gradients(losses[name], modules) == {reached}


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
    changes = {"actent": "linear(1e-2,0,5)", "slowvalue": SlowConfig(rate=1.0, every=3)}
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


def test_greedy_actions_are_the_most_likely_ones() -> None:
    agent = make(VECTOR, CONTINUOUS)
    obs = {k: np.repeat(v[:1], 4, 0) for k, v in observation(agent, 4).items()}
    _, sampled, _ = agent.policy(agent.init_policy(4), obs)
    assert len(np.unique(sampled["action"][:, 0])) == 4
    with torch.no_grad():
        agent.nets.task.pol.head["action"]._modules["mean"].weight.zero_()
    _, greedy, _ = agent.policy(agent.init_policy(4), obs, mode="mode")
    assert np.array_equal(greedy["action"], np.zeros_like(greedy["action"]))
    with pytest.raises(ValueError, match="mode='best'"):
        agent.policy(agent.init_policy(4), obs, mode="best")


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


@pytest.mark.parametrize("act", [MIXED, CONTINUOUS], ids=["mixed", "continuous"])
def test_an_update_never_waits_for_the_device(act: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(IMAGE | VECTOR, act)
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
