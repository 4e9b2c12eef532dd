"""DreamerV3 as a whole: sizes, spaces, options, reproducibility. Its numbers are in test_golden.py."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size, variant
from fastdream.agents.dreamer_v3_config import SIZES, LossScales
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.normalize import NormConfig, SlowConfig
from fastdream.optim import OptConfig
from fastdream.spaces import Space, Spaces

from .agent_tools import CONTINUOUS, DISCRETE, IMAGE, MIXED, VECTOR, batch, make, observation
from .watched import watch, watch_ops


@pytest.mark.parametrize(
    ("name", "total", "rssm"),
    [
        ("1m", 687_875, 377_408),
        ("12m", 10_498_259, 5_982_464),
        ("25m", 23_495_475, 13_446_528),
        ("50m", 41_658_259, 23_892_480),
        ("100m", 93_480_531, 53_730_048),
        ("200m", 165_965_075, 95_495_168),
        ("400m", 372_920_979, 214_808_064),
    ],
)
def test_sizes_have_the_official_parameter_counts(name: str, total: int, rssm: int) -> None:
    """Crafter: one image and 17 actions; counts of the official code."""
    act = {"action": Space("discrete", (), 17)}
    with torch.device("meta"):
        nets = Networks(IMAGE, act, size(Config(), name), fd.load("reference"), torch.float32, 0)
    assert sum(p.numel() for p in nets.dyn.parameters()) == rssm
    assert sum(p.numel() for p in nets.learned().values()) == total


def test_walker_and_atari_have_the_official_parameter_counts() -> None:
    with torch.device("meta"):
        walker = {"o": Space("vector", (24,))}, {"action": Space("vector", (6,))}
        small = Networks(*walker, size(Config(), "1m"), fd.load("reference"), torch.float32, 0)
        atari = {"image": Space("image", (96, 96, 1))}, {"action": Space("discrete", (), 18)}
        large = Networks(*atari, Config(), fd.load("reference"), torch.float32, 0)
    assert sum(p.numel() for p in small.learned().values()) == 640_867
    assert round(sum(p.numel() for p in large.learned().values()) / 1e6, 1) == 186.9


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS, MIXED], ids=["discrete", "continuous", "mixed"])
@pytest.mark.parametrize("obs", [IMAGE, VECTOR, IMAGE | VECTOR], ids=["image", "vector", "both"])
def test_learns_and_acts_in_any_spaces(obs: Spaces, act: Spaces) -> None:
    agent = make(obs, act, opt=OptConfig(lr=1e-3, warmup=0))
    carry, data = agent.init_train(2), batch(agent)
    before = [p.clone() for p in agent.nets.learned().values()]
    # Two updates, because heads whose last layer starts at zero pass no gradient on in the first.
    for _ in range(2):
        carry, latents, metrics = agent.update(carry, data)
    spec = agent.latent_spec
    assert {k: (tuple(v.shape[2:]), v.numpy().dtype) for k, v in latents.items()} == spec
    assert all(torch.isfinite(v).all() and v.dim() == 0 for v in metrics.values())
    after = agent.nets.learned().values()
    assert all((a - b).abs().max() > 0 for a, b in zip(after, before, strict=True))

    carry, action, latents = agent.policy(agent.init_policy(3), observation(agent, 3))
    for key, space in act.items():
        assert action[key].shape == (3, *space.shape) and action[key].dtype == space.dtype
        assert space.kind == "vector" or (action[key] < space.classes).all()
    assert {k: (v.shape[1:], v.dtype) for k, v in latents.items()} == spec


def test_images_may_be_grey_several_and_of_another_size() -> None:
    obs = {"left": Space("image", (48, 96, 1)), "right": Space("image", (48, 96, 3))}
    agent = make(obs, DISCRETE)
    _, _, metrics = agent.update(agent.init_train(2), batch(agent))
    assert torch.isfinite(metrics["loss/left"]) and torch.isfinite(metrics["loss/right"])


@pytest.mark.parametrize("name", ["current", "nature2024"])
def test_variants(name: str) -> None:
    config = variant(replace(size(Config(imag_length=3), "debug")), name)
    agent = DreamerV3(IMAGE, DISCRETE, config)
    nature = name == "nature2024"
    assert (agent.nets.dyn.priorlogit.bias is None) == nature
    assert (agent.nets.dyn.obslogit.bias is None) == nature
    assert config.policy.unimix == (0.01 if nature else 0.0)
    assert len(config.enc.mults) == (5 if nature else 4)
    data, calls = batch(agent), watch(agent, "behavior_loss")
    carry, rest, action = agent.context(agent.init_train(2), data)
    draws = agent.nets.draw(2, 6, torch.Generator().manual_seed(0))
    agent.loss(carry, rest, action, draws)
    (_, _, shown) = calls["behavior_loss"][0].result
    start = (shown[key][0][:, 0] for key in ("rew", "con"))
    given = rest["reward"].flatten(), 1 - rest["is_terminal"].flatten().float()
    assert all(torch.equal(a, b) == nature for a, b in zip(start, given, strict=True))


def test_same_seed_is_the_same_agent_to_the_bit() -> None:
    runs = []
    for seed in (1, 1, 2):
        agent = make(VECTOR, MIXED, seed=seed)
        carry = agent.init_train(2)
        for i in range(3):
            carry, _, metrics = agent.update(carry, batch(agent, seed=i))
        _, action, _ = agent.policy(agent.init_policy(2), observation(agent, 2))
        runs.append((metrics["opt/loss"].item(), action["move"].tobytes()))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened() -> None:
    slow = SlowConfig(rate=1.0, every=3)  # moves at the first update and at the fourth
    agent = make(VECTOR, MIXED, slowvalue=slow)
    carry = agent.init_train(2)
    for i in range(2):
        carry, _, _ = agent.update(carry, batch(agent, seed=i))
    agent.policy(agent.init_policy(2), observation(agent, 2))
    other = make(VECTOR, MIXED, seed=7, slowvalue=slow)
    other.load_state_dict(agent.state_dict())
    for one in (agent, other):
        for _ in range(2):
            carry, latents, metrics = one.update(agent.init_train(2), batch(agent, seed=5))
        _, action, _ = one.policy(one.init_policy(2), observation(agent, 2))
        result = [metrics, latents, {k: torch.from_numpy(v) for k, v in action.items()}]
        if one is agent:
            expected = result
    for ours, theirs in zip(result, expected, strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_acting_does_not_change_what_is_learned() -> None:
    losses = []
    for acts in (0, 3):
        agent = make(VECTOR, DISCRETE)
        for _ in range(acts):
            agent.policy(agent.init_policy(2), observation(agent, 2))
        _, _, metrics = agent.update(agent.init_train(2), batch(agent))
        losses.append(metrics["opt/loss"].item())
    assert losses[0] == losses[1]


def test_greedy_actions_are_the_same_every_time_and_sampled_ones_are_not() -> None:
    agent = make(VECTOR, CONTINUOUS)
    obs, carry = observation(agent, 4), agent.init_policy(4)
    # The latent is sampled in both modes, so actions are compared across one batch of equal states.
    obs = {k: np.repeat(v[:1], 4, 0) for k, v in obs.items()}
    _, sampled, _ = agent.policy(carry, obs)
    assert len(np.unique(sampled["action"][:, 0])) == 4
    with torch.no_grad():
        agent.nets.pol.head["action"]._modules["mean"].weight.zero_()
    _, greedy, _ = agent.policy(carry, obs, mode="mode")
    assert np.array_equal(greedy["action"], np.zeros_like(greedy["action"]))
    with pytest.raises(ValueError, match="mode='best'"):
        agent.policy(carry, obs, mode="best")


def test_the_slow_critic_follows_what_an_update_has_made_of_the_fast_one() -> None:
    agent = make(VECTOR, DISCRETE, slowvalue=SlowConfig(rate=1.0))
    agent.update(agent.init_train(2), batch(agent))  # at a learning rate of 0
    before = [p.clone() for p in agent.nets.val.parameters()]
    agent.update(agent.init_train(2), batch(agent))
    fast, slow = (list(module.parameters()) for module in (agent.nets.val, agent.nets.slowval))
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, slow, strict=True))


def test_losses_that_are_switched_off_do_not_train() -> None:
    agent = make(VECTOR, DISCRETE, loss_scales=LossScales(repval=0.0, value=0.0))
    assert "repval" not in agent.scales
    data = batch(agent)
    carry, rest, action = agent.context(agent.init_train(2), data)
    draws = agent.nets.draw(2, 6, torch.Generator().manual_seed(0))
    loss, _, metrics = agent.loss(carry, rest, action, draws)
    loss.backward()
    assert "loss/repval" not in metrics
    assert all(not p.grad.any() for p in agent.nets.val.parameters())


def test_imagination_from_the_last_states_only() -> None:
    agent = make(VECTOR, DISCRETE, imag_last=2)
    calls = watch_ops(agent, "observe", "imagine")
    carry, rest, action = agent.context(agent.init_train(2), batch(agent))
    draws = agent.nets.draw(2, 6, torch.Generator().manual_seed(0))
    agent.loss(carry, rest, action, draws)
    post, dream = (calls[name][0].result for name in ("observe", "imagine"))
    assert dream.deter.shape[:2] == (2 * 2, 3 + 1)
    assert torch.equal(dream.deter[:, 0], post.deter[:, -2:].flatten(0, 1))


@pytest.mark.parametrize("ops", ["reference", "auto"])
@pytest.mark.parametrize(("last", "steps"), [(0, 1), (1, 6)])
def test_a_replayed_return_of_nothing_is_refused(ops: str, last: int, steps: int) -> None:
    """Of one state there is no return, and a mean over none would be NaN."""

    def loss(scales: LossScales) -> Tensor:
        config = replace(size(Config(), "debug"), imag_last=last, loss_scales=scales)
        agent = DreamerV3(VECTOR, DISCRETE, config, fd.load(ops))
        return agent.update(agent.init_train(2), batch(agent, T=steps))[2]["opt/loss"]

    assert loss(LossScales(repval=0.0)).isfinite()
    with pytest.raises(ValueError, match=r"two states of a sequence .* loss_scales.repval=0"):
        loss(LossScales())


def test_report_leaves_the_agent_as_it_was() -> None:
    agent = make(IMAGE | VECTOR, DISCRETE)
    state = {k: v.clone() for k, v in agent.nets.state_dict().items()}
    metrics, pictures = agent.report(agent.init_train(2), batch(agent))
    assert all(torch.equal(v, state[k]) for k, v in agent.nets.state_dict().items())
    assert pictures["image"].shape == (6, 3 * 68, 2 * 68, 3) and pictures["image"].dtype == np.uint8
    assert pictures["position"].shape == (2, 6, 3)
    green, red = pictures["image"][0, 0, 0], pictures["image"][-1, 0, 0]
    assert green.tolist() == [0, 255, 0] and red.tolist() == [255, 0, 0]
    assert torch.isfinite(metrics["opt/loss"])


def test_observation_called_like_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['rew'\] are names of losses"):
        make({"rew": Space("vector", (2,))}, DISCRETE)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (Config, {"horizon": 1}, "horizon"),
        (Config, {"imag_length": 0}, "imag_length"),
        (Config, {"replay_context": 2}, "replay_context"),
        (Config, {"imag_last": 1}, "imag_last=1.* two states of a sequence"),
        (Config, {"lam": 1.5}, "lam"),
        (Config, {"replay_lam": -0.5}, "replay_lam"),
        (OptConfig, {"lr": 0.0}, "lr=0.0 is not positive"),
        (OptConfig, {"beta1": 1.0}, r"beta1=1.0 is not in \[0, 1\)"),
        (OptConfig, {"beta2": 1.5}, r"beta2=1.5 is not in \[0, 1\)"),
        (OptConfig, {"agc": -0.3}, "agc=-0.3 is negative"),
        (OptConfig, {"schedule": "linear", "anneal": 1000}, "anneal > warmup"),
        (NormConfig, {"perclo": 95.0}, "got 95.0 and 95.0"),
        (NormConfig, {"perchi": 100.5}, "got 5.0 and 100.5"),
        (NormConfig, {"rate": 0.0}, r"rate=0.0 is not in \(0, 1\]"),
        (SlowConfig, {"rate": 0.5}, "rate=0.5"),
        (SlowConfig, {"rate": 0.0}, "rate=0.0"),
        (SlowConfig, {"every": 0}, "every=0"),
    ],
)
def test_impossible_settings_are_refused(part: type, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(**changes)


def test_unknown_size_and_variant() -> None:
    with pytest.raises(ValueError, match="unknown size '13m'; choose from .*12m"):
        size(Config(), "13m")
    with pytest.raises(ValueError, match="unknown variant 'old'"):
        variant(Config(), "old")
    assert set(SIZES) >= {"1m", "12m", "25m", "50m", "100m", "200m", "400m"}


@pytest.mark.parametrize("greedy", [False, True])
def test_an_update_and_a_policy_step_never_wait_for_the_device(
    greedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turning a tensor into a Python number or array would wait for the GPU; neither must do it once."""
    agent = make(IMAGE | VECTOR, MIXED)
    carry, data = agent.init_train(2), batch(agent)
    obs = {key: torch.as_tensor(x) for key, x in observation(agent, 3).items()}
    agent.update(carry, data)
    for name in (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "nonzero",
    ):

        def fail(self: Tensor, *args: object, name: str = name) -> None:
            raise AssertionError(f"Tensor.{name} in an update or a policy step")

        monkeypatch.setattr(Tensor, name, fail)
    _, _, metrics = agent.update(carry, data)
    _, made = agent.act(agent.init_policy(3), obs, greedy)
    monkeypatch.undo()
    assert torch.isfinite(metrics["opt/loss"]) and torch.isfinite(made["action"]).all()
