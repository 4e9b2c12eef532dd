"""Plan2Explore: what the ensemble learns, what it rewards, who acts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream.agents.dreamer_v2 import Config, DreamerV2, size
from fastdream.agents.dreamer_v2_config import ExploreConfig, RSSMConfig
from fastdream.spaces import Spaces

from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    MIXED,
    VECTOR,
    batch,
    double,
    gradients,
    observation,
    same_after_loading,
    unit_normal,
)

B, T, H, K = 2, 6, 3, 4


def make(act: Spaces, seed: int = 0, classes: int = 4, **changes: Any) -> DreamerV2:
    config = size(Config(imag_length=H, explore=ExploreConfig("plan2explore", models=K)), "debug")
    config = replace(config, explore=replace(config.explore, **changes), dyn=RSSMConfig(16, 8, 4, classes))
    return DreamerV2(VECTOR, act, config, fd.load("reference"), seed=seed)


def state(agent: DreamerV2) -> tuple[Any, ...]:
    data = batch(agent, B, T)
    draws = agent.nets.draw(B, T, torch.Generator().manual_seed(3))
    _, post, _ = agent.model_loss(agent.init_train(B), data, draws)
    feat = agent.model.dyn.feat(post.deter.detach(), post.stoch.detach())
    return feat, agent.flat_action(data), agent.start(post, data), draws


def test_the_ensemble_predicts_the_next_state() -> None:
    agent = make(MIXED)
    feat, action, _, _ = state(agent)
    loss = agent.explore.loss(feat, action)
    inputs = torch.cat([feat.deter, feat.stoch, action], -1)[:, :-1]
    preds = [double(head(inputs)) for head in agent.nets.ensemble.heads]
    want = sum(unit_normal(pred, double(feat.stoch[:, 1:]), 1).mean() for pred in preds)
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
    assert len({pred.sum() for pred in preds}) == K  # each begins elsewhere


@pytest.mark.parametrize("extrinsic", [0.0, 2.0])
def test_reward_is_the_disagreement_and_perhaps_the_task_s(extrinsic: float) -> None:
    agent = make(DISCRETE, intrinsic=3.0, extrinsic=extrinsic)
    _, _, start, draws = state(agent)
    dream, feat, reward, _, _ = agent.explore.behavior.imagine(start, draws)
    want = np.zeros((B * T, H + 1))
    for t in range(H + 1):
        led = dream.action[:, t - 1] if t else torch.zeros_like(dream.action[:, 0])
        inputs = torch.cat([feat.deter[:, t], feat.stoch[:, t], led], -1)
        preds = np.stack([double(head(inputs)) for head in agent.nets.ensemble.heads])
        want[:, t] = 3 * np.sqrt(((preds - preds.mean(0)) ** 2).mean(0)).mean(-1)
        task = double(agent.model.rew(fd.Feat(feat.deter[:, t], feat.stoch[:, t])))
        want[:, t] += extrinsic * task
    np.testing.assert_allclose(double(reward), want, rtol=1e-4, atol=1e-5)
    for head in agent.nets.ensemble.heads:
        head.load_state_dict(agent.nets.ensemble.heads[0].state_dict())
    _, _, reward, _, _ = make(DISCRETE).explore.behavior.imagine(start, draws)
    assert reward.abs().max() > 0
    _, _, agreed, _, _ = agent.explore.behavior.imagine(start, draws)
    assert extrinsic or agreed.abs().max() < 1e-6


def test_both_behaviours_dream_dreams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, seen = make(DISCRETE), list[Any]()
    for behavior in (agent.behavior, agent.explore.behavior):
        update = behavior.update
        monkeypatch.setattr(
            behavior, "update", lambda start, draws, f=update: seen.append(draws) or f(start, draws)
        )
    agent.update(agent.init_train(B), batch(agent, B, T))
    task, explore = seen
    assert not torch.equal(task.prior, explore.prior) and not torch.equal(task.action, explore.action)


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
def test_each_loss_reaches_its_own_networks_alone(act: Spaces, classes: int) -> None:
    agent = make(act, classes=classes)
    nets = agent.nets
    modules = {"model": nets.model, "ensemble": nets.ensemble, "task": nets.task}
    modules |= {"pol": nets.explore.pol, "val": nets.explore.val, "slow": nets.explore.slowval}
    feat, action, start, draws = state(agent)
    assert gradients(agent.explore.loss(feat, action), modules) == {"ensemble"}
    losses, _ = agent.explore.behavior.loss(start, draws)
    assert gradients(losses["policy"] + losses["value"], modules) == {"pol", "val"}


def test_everything_learns_and_nothing_else_changes() -> None:
    agent, plain = make(MIXED), DreamerV2(VECTOR, MIXED, replace(make(MIXED).config, explore=ExploreConfig()))
    before = {k: p.clone() for k, p in agent.nets.named_parameters()}
    _, _, metrics = agent.update(agent.init_train(B), batch(agent, B, T))
    assert [k for k, p in agent.nets.named_parameters() if torch.equal(p, before[k])] == []
    assert {"loss/ensemble", "loss/explore_policy", "explore_ret", "opt/explore_value_grad_norm"} <= set(
        metrics
    )
    assert all(torch.isfinite(v) for v in metrics.values())
    assert plain.explore is None and not hasattr(plain.nets, "ensemble")
    _, _, alone = plain.update(plain.init_train(B), batch(agent, B, T))
    torch.testing.assert_close(alone["loss/model"], metrics["loss/model"], rtol=1e-5, atol=1e-5)
    assert (
        agent.param_count
        > plain.param_count
        == sum(p.numel() for k, p in plain.nets.named_parameters() if "slowval" not in k)
    )


def test_who_acts() -> None:
    agent = make(DISCRETE, until=2)
    with torch.no_grad():  # one actor always takes 1, the other 3
        for nets, choice in ((agent.nets.task, 1), (agent.nets.explore, 3)):
            nets.pol.head["action"]._modules["logits"].bias[choice] = 50.0
    obs, seen = observation(agent, 5), []
    for i in range(4):
        _, sampled, _ = agent.policy(agent.init_policy(5), obs)
        _, greedy, _ = agent.policy(agent.init_policy(5), obs, mode="mode")
        seen.append((set(sampled["action"].tolist()), set(greedy["action"].tolist())))
        agent.model_opt.count.fill_(i + 1)
    assert seen == [({3}, {1}), ({3}, {1}), ({1}, {1}), ({1}, {1})]


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened() -> None:
    assert same_after_loading(make(MIXED, until=3), make(MIXED, seed=7, until=3))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 models"):
        ExploreConfig(models=1)
