"""Offline DV2: its priors, what their disagreement takes off, the phases, and the weight that adapts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdream import ops as fd
from fastdream.agents.dreamer_v2_config import ExploreConfig, RSSMConfig
from fastdream.agents.dreamer_v2_offline import OfflineDV2
from fastdream.agents.dreamer_v2_offline_config import Config, OfflineConfig, size
from fastdream.agents.dreamer_v2_penalties import PENALTIES
from fastdream.ops.params import frozen
from fastdream.spaces import Spaces

from .dreamer_tools import (
    CONTINUOUS,
    DISCRETE,
    MIXED,
    VECTOR,
    batch,
    double,
    gradients,
    log_softmax,
    same_after_loading,
)

B, T, H, K = 2, 6, 3, 4


def make(
    act: Spaces = CONTINUOUS, seed: int = 0, classes: int = 4, ops: str = "reference", **changes: Any
) -> OfflineDV2:
    settings = dict(models=K, model_updates=0) | changes
    config = replace(size(Config(imag_length=H), "debug"), offline=OfflineConfig(**settings))
    config = replace(config, dyn=RSSMConfig(16, 8, 4, classes))
    return OfflineDV2(VECTOR, act, config, fd.load(ops), seed=seed)


def logits(agent: OfflineDV2, deter: torch.Tensor) -> np.ndarray:
    """[K, ..., S, C] (or 2S), in float64."""
    params = agent.priors.params(agent.model.dyn.params)
    return np.stack([double(agent.ops.prior(rssm, deter)) for rssm in params])


def agree(agent: OfflineDV2) -> None:
    """Make all priors equal to the first."""
    first = [agent.model.dyn.prior[0], agent.model.dyn.priorlogit]
    for other in agent.priors.others:
        for dense, source in zip(other, first, strict=True):
            dense.load_state_dict(source.state_dict())


def start_of(agent: OfflineDV2) -> tuple[Any, Any]:
    data = batch(agent, B, T)
    draws = agent.nets.draw(B, T, torch.Generator().manual_seed(3))
    _, post, _ = agent.model_loss(agent.init_train(B), data, draws)
    return agent.start(post, data), draws


def test_the_priors_have_the_same_form_and_begin_elsewhere():
    agent = make()
    values = logits(agent, torch.randn(5, 16))
    assert values.shape == (K, 5, 4, 4) and len({value.sum() for value in values}) == K
    own = sum(
        p.numel() for p in [*agent.model.dyn.prior.parameters(), *agent.model.dyn.priorlogit.parameters()]
    )
    assert sum(p.numel() for p in agent.priors.parameters()) == (K - 1) * own
    for seed in (0, 1):  # which alone decides, also of the priors that will be drawn
        other = make(seed=seed)
        pairs = zip(agent.priors.parameters(), other.priors.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (seed == 0)
        assert (agent.rng.bit_generator.state == other.rng.bit_generator.state) == (seed == 0)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_of_half_precision_are_full(penalty: str):
    agent = make()
    stoch = torch.eye(4).repeat(5, 1, 1).flatten(1)
    given = torch.from_numpy(logits(agent, torch.randn(5, 16))).bfloat16()
    found, full = (PENALTIES[penalty](agent.model.latent, x, stoch.to(x)) for x in (given, given.float()))
    assert torch.equal(found, full)


def test_each_time_step_takes_the_prior_that_was_drawn_for_it():
    agent = make()
    deter = torch.randn(B, T, 16)
    expected = np.random.default_rng(0).integers(K, size=T)  # as the agent's seed draws them
    got, all_of_them = double(agent.prior(deter)), logits(agent, deter)
    for t in range(T):
        np.testing.assert_allclose(got[:, t], all_of_them[expected[t], :, t], rtol=1e-6)
    assert len(set(expected.tolist())) > 1


def states(agent: OfflineDV2, rows: int = 5) -> fd.Feat:
    """States as dreams have them."""
    generator = torch.Generator().manual_seed(4)
    draws = torch.randn(rows, 4, 4, generator=generator)
    stoch = F.one_hot(draws.argmax(-1), 4).float() if agent.config.dyn.classes else draws[:, 0]
    return fd.Feat(torch.randn(rows, 16, generator=generator), stoch.flatten(1))


def expected(agent: OfflineDV2, feat: fd.Feat, penalty: str) -> np.ndarray:
    """The penalty of states [N, F], from what the priors say of each, in NumPy."""
    values, stoch = logits(agent, feat.deter), double(feat.stoch)
    if agent.config.dyn.classes:
        mean, logs = np.exp(log_softmax(values)), log_softmax(values)
        drawn = (logs * stoch.reshape(-1, 4, 4)).sum((-1, -2))
        spread = np.sqrt(mean.mean(0) * (1 - mean.mean(0))).mean((-1, -2))
    else:
        mean, std = values[..., :4, None], 2 / (1 + np.exp(-values[..., 4:] / 2)) + 0.1
        logs = -0.5 * ((stoch - mean[..., 0]) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
        drawn = logs.sum(-1)
        spread = np.sqrt((std**2 + mean[..., 0] ** 2).mean(0) - mean[..., 0].mean(0) ** 2).mean(-1)
    distance = np.sqrt(((mean - mean.mean(0)) ** 2).sum((-1, -2))).mean(0)
    return {"disagreement": distance, "log_prob": drawn.std(0), "mixture": spread}[penalty]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
def test_the_penalty_is_how_unsure_the_priors_are(classes: int, penalty: str):
    agent = make(classes=classes, penalty=penalty)
    feat = states(agent)
    want = expected(agent, feat, penalty)
    np.testing.assert_allclose(double(agent.penalty(feat)), want, rtol=2e-5)
    assert want.min() > 1e-3 and want.std() > 1e-4


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("classes", [4, 0], ids=["categorical", "gaussian"])
def test_priors_that_agree_are_not_unsure_of_themselves(classes: int, penalty: str):
    agent = make(classes=classes, penalty=penalty)
    agree(agent)
    feat = fd.Feat(*(x.requires_grad_() for x in states(agent)))
    values = agent.penalty(feat)
    values.sum().backward()
    if penalty == "mixture":
        np.testing.assert_allclose(double(values), expected(agent, feat, penalty), rtol=2e-5)
        assert values.min() > 1e-3
    else:
        assert values.abs().max() < 1e-6
    grads = [x.grad for x in feat if x.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_a_prior_that_is_certain_has_a_gradient():
    agent = make(penalty="mixture")
    values = torch.full((K, 3, 4, 4), -200.0)
    values[..., 0] = 200.0
    values.requires_grad_()
    penalty = PENALTIES["mixture"](agent.model.latent, values, torch.zeros(3, 16))
    penalty.sum().backward()
    assert values.grad is not None and values.grad.isfinite().all() and penalty.max() < 1e-5


def test_priors_that_agree_dream_as_one():
    agent = make(MIXED)
    agree(agent)
    start, draws = start_of(agent)
    rssm, actor = frozen(agent.model.dyn.params), agent.nets.task.pol.params
    inputs = rssm, actor, start.deter, start.stoch, H, draws.prior, draws.action
    for got, want in zip(agent.imagine(*inputs), agent.ops.imagine(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["reinforce", "dynamics"])
def test_native_ops_compute_the_same_losses(act: Spaces):
    agents = [make(act, ops=ops) for ops in ("reference", "native")]
    ours, theirs = (agent.update(agent.init_train(B), batch(agent, B, T))[2] for agent in agents)
    assert {k: float(x) for k, x in theirs.items()} == pytest.approx(
        {k: float(x) for k, x in ours.items()}, 1e-4, 1e-5
    )


def test_each_step_of_a_dream_is_drawn_from_one_prior():
    agent = make()
    start, draws = start_of(agent)
    agent.rng = np.random.default_rng(5)
    rssm, actor = frozen(agent.model.dyn.params), agent.nets.task.pol.params
    dream = agent.imagine(rssm, actor, start.deter, start.stoch, H, draws.prior, draws.action)
    drawn = np.random.default_rng(5).integers(K, size=H)
    values = logits(agent, dream.deter[:, 1:])
    for t in range(H):
        np.testing.assert_allclose(double(dream.logit[:, t]), values[drawn[t], :, t], rtol=1e-4, atol=1e-5)
    assert dream.action.shape[1] == dream.deter.shape[1] == H + 1


@pytest.mark.parametrize("penalty", [*PENALTIES, "none"])
def test_rewards_of_dreams_are_lowered_where_the_priors_disagree(penalty: str):
    agent = make(penalty=penalty, lam=3.0)
    start, draws = start_of(agent)
    dream, feat, reward, _, _ = agent.behavior.imagine(start, draws)
    task = double(agent.task_reward(feat, dream.action))
    taken = 0.0
    if penalty != "none":
        flat = fd.Feat(*(x.detach().flatten(0, 1) for x in feat))
        taken = 3 * expected(agent, flat, penalty).reshape(task.shape)
    np.testing.assert_allclose(double(reward), task - taken, rtol=1e-4, atol=1e-5)
    if penalty != "none":
        spread = [np.mean(taken) / 3, np.std(taken) / 3]
        np.testing.assert_allclose(double(agent.last_penalty), spread, rtol=1e-3)


@pytest.mark.parametrize("act", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_each_loss_reaches_its_own_networks_alone(act: Spaces):
    agent = make(act)
    nets = agent.nets
    modules = {"pol": nets.task.pol, "val": nets.task.val, "slow": nets.task.slowval, "model": nets.model}
    start, draws = start_of(agent)
    for seed in range(3):  # of which prior each step is drawn from
        agent.rng = np.random.default_rng(seed)
        losses, _ = agent.behavior.loss(start, draws)
        assert gradients(losses["policy"] + losses["value"], modules) == {"pol", "val"}


def test_continuous_actors_feel_the_penalty_through_the_dream():
    agent = make(lam=100.0)
    start, draws = start_of(agent)
    found = []
    for penalty in ("disagreement", "none"):
        agent.config = replace(agent.config, offline=replace(agent.config.offline, penalty=penalty))
        agent.rng = np.random.default_rng(1)
        agent.behavior.loss(start, draws)[0]["policy"].backward()
        found.append(torch.cat([p.grad.flatten().clone() for p in agent.nets.task.pol.parameters()]))
        for p in agent.nets.parameters():
            p.grad = None
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_the_model_learns_first_and_then_stays_as_it_is():
    agent = make(model_updates=2)
    model, task, seen = agent.nets.model, agent.nets.task, []
    for i in range(4):
        before = [{k: p.clone() for k, p in part.named_parameters()} for part in (model, task)]
        phase = agent.phase
        _, latents, metrics = agent.update(agent.init_train(B), batch(agent, B, T, seed=i))
        changed = [
            {k for k, p in part.named_parameters() if not torch.equal(p, old[k])}
            for part, old in zip((model, task), before, strict=True)
        ]
        assert latents == {} and all(value.isfinite() for value in metrics.values())
        seen.append((phase, *map(bool, changed)))
        if phase == "model":
            assert changed[0] == {k for k, _ in model.named_parameters()}  # every prior, too
            assert "penalty" not in metrics
        else:
            assert metrics["penalty"] > metrics["penalty_std"] > 0 and metrics["lam"] == 10
    assert seen == [("model", True, False)] * 2 + [("behavior", False, True)] * 2
    assert make().phase == ""
    together = make()
    _, _, metrics = together.update(together.init_train(B), batch(together, B, T))
    assert {"loss/model", "loss/policy", "loss/value", "penalty"} <= set(metrics)


@pytest.mark.parametrize("wanted", [1e-4, 50.0])
def test_the_weight_adapts_to_what_is_to_be_taken_off(wanted: float):
    agent = make(tune=wanted, tune_lr=0.5)
    assert agent.lam == 1
    weights = []
    for i in range(8):
        _, _, metrics = agent.update(agent.init_train(B), batch(agent, B, T, seed=i))
        weights.append(float(metrics["lam"]))
    assert (np.diff(weights) < 0).all() if wanted < 1 else (np.diff(weights) > 0).all()


def test_a_report_changes_nothing_of_what_comes():
    left, right = make(model_updates=1, tune=1.0), make(model_updates=1, tune=1.0)
    for i in range(3):
        left.report(left.init_train(B), batch(left, B, T, seed=50 + i))
        out = [one.update(one.init_train(B), batch(one, B, T, seed=i))[2] for one in (left, right)]
        assert out[0].keys() == out[1].keys() and all(torch.equal(v, out[1][k]) for k, v in out[0].items())


@pytest.mark.parametrize("model_updates", [0, 3])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(model_updates: int):
    settings: Any = dict(model_updates=model_updates, tune=0.5)
    assert same_after_loading(make(MIXED, **settings), make(MIXED, seed=7, **settings))


def test_what_cannot_be_is_refused():
    for wrong in (dict(models=1), dict(lam=-1.0), dict(tune=-0.1), dict(tune_lr=0.0), dict(model_updates=-1)):
        with pytest.raises(ValueError, match="need models >= 2"):
            OfflineConfig(**wrong)
    with pytest.raises(ValueError, match="tune=1.0 adapts the weight of a penalty, and penalty is none"):
        OfflineConfig(tune=1.0, penalty="none")
    with pytest.raises(ValueError, match="a dataset leaves nothing to explore"):
        Config(explore=ExploreConfig(behavior="plan2explore"))
