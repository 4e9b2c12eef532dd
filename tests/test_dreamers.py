"""What the first two Dreamers promise alike: spaces, reproducibility, checkpoints, backends, who learns from what."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdream import agents
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
    make,
    observation,
    pickled,
    same_after_loading,
)

AGENTS = ["dreamer_v1", "dreamer_v2"]
ACTIONS = pytest.mark.parametrize(
    "act", [DISCRETE, CONTINUOUS, MIXED], ids=["discrete", "continuous", "mixed"]
)
BOTH = pytest.mark.parametrize("name", AGENTS)
# Settings under which every parameter learns, those of optional parts included.
ALL: dict[str, dict[str, Any]] = {"dreamer_v1": dict(pcont=True, free_nats=0.0), "dreamer_v2": {}}
# The loss of the head that says whether an episode goes on.
END = {"dreamer_v1": "pcont", "dreamer_v2": "dis"}


@BOTH
@ACTIONS
@pytest.mark.parametrize("obs", [IMAGE, VECTOR, IMAGE | VECTOR], ids=["image", "vector", "both"])
@pytest.mark.parametrize("end", [False, True])
def test_learns_and_acts_in_any_spaces(name: str, obs: Spaces, act: Spaces, end: bool) -> None:
    flag = {"dreamer_v1": "pcont", "dreamer_v2": "pred_discount"}[name]
    agent = make(name, obs, act, **ALL[name] | {flag: end})
    before = {k: p.clone() for k, p in agent.nets.named_parameters()}
    carry, latents, metrics = agent.update(agent.init_train(2), batch(agent))
    assert not latents and not agent.latent_spec and not any(v.any() for v in carry.values())
    assert all(torch.isfinite(v).all() and v.dim() == 0 for v in metrics.values())
    after = dict(agent.nets.named_parameters())
    assert [k for k in before if torch.equal(after[k], before[k])] == []
    assert (f"loss/{END[name]}" in metrics) == end

    for mode in ("sample", "mode"):
        carry, action, latents = agent.policy(agent.init_policy(3), observation(agent, 3), mode)
        assert not latents and carry["action"].shape == (3, sum(space.width for space in act.values()))
        for key, space in act.items():
            assert action[key].shape == (3, *space.shape) and action[key].dtype == space.dtype
            inside = action[key] < space.classes if space.kind == "discrete" else abs(action[key]) <= 1
            assert inside.all()
    with pytest.raises(ValueError, match="mode='best'"):
        agent.policy(agent.init_policy(3), observation(agent, 3), mode="best")


def test_an_action_without_a_choice_is_not_random() -> None:
    """Its least entropy is its largest, too."""
    for name in ("dreamer_v2", "dreamer_v3"):
        agent = make(name, VECTOR, {"stay": Space("discrete", (), 1)})
        data = batch(agent, T=7)
        if latents := agent.latent_spec:
            data |= {key: torch.zeros(2, 7, *shape) for key, (shape, _) in latents.items()}
        _, _, metrics = agent.update(agent.init_train(2), data)
        assert metrics["rand/stay"] == 0, name


@pytest.mark.parametrize("name", [*AGENTS, "dreamer_v3", "offline_dv2"])
def test_gradients_that_someone_looked_at_are_not_learned_from(name: str) -> None:
    """They lie there still, as after a backward pass of one's own, or after an update that was interrupted."""
    learned = []
    for left in (False, True):
        agent = make(name, VECTOR, MIXED)
        for parameter in agent.nets.parameters() if left else ():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        data = batch(agent, T=7) | {k: torch.zeros(2, 7, *s) for k, (s, _) in agent.latent_spec.items()}
        for _ in range(2):  # the learning rate is 0 at the first
            agent.update(agent.init_train(2), data)
        learned.append([p.detach() for p in agent.nets.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*learned, strict=True))


@pytest.mark.parametrize("name", [*AGENTS, "dreamer_v3", "offline_dv2"])
@pytest.mark.parametrize("acted", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_acts_and_learns_on_its_own(name: str, acted: bool, copied: Callable[[Any], Any]) -> None:
    original, alike = make(name, VECTOR, MIXED), make(name, VECTOR, MIXED)
    data = batch(alike, T=7) | {k: torch.zeros(2, 7, *s) for k, (s, _) in alike.latent_spec.items()}
    for agent in (original, alike) if acted else ():
        agent.policy(agent.init_policy(2), observation(agent, 2))
    other = copied(original)
    for parameter in original.nets.parameters():
        parameter.detach().zero_()
    for agent in (other, alike):
        for _ in range(2):
            agent.update(agent.init_train(2), data)
    acts = [agent.policy(agent.init_policy(2), observation(agent, 2))[0] for agent in (other, alike)]
    assert all(torch.equal(value, acts[1][key]) for key, value in acts[0].items())
    assert not any(parameter.any() for parameter in original.nets.parameters())


@pytest.mark.parametrize("name", [*AGENTS, "dreamer_v3"])
def test_an_agent_acts_by_the_networks_that_it_has_now(name: str) -> None:
    agent, other = make(name, VECTOR, MIXED), make(name, VECTOR, MIXED, seed=1)
    agent.policy(agent.init_policy(2), observation(agent, 2))
    for key in ("task", "model", "pol", "dyn", "enc"):
        if key in agent.nets._modules:
            setattr(agent.nets, key, getattr(other.nets, key))
    agent.generators = other.generators
    state = {name: generator.get_state() for name, generator in other.generators.items()}
    acts = []
    for one in (agent, other):
        one.generators["policy"].set_state(state["policy"])
        acts.append(one.policy(one.init_policy(2), observation(one, 2))[0])
    assert all(torch.equal(value, acts[1][key]) for key, value in acts[0].items())


@pytest.mark.parametrize("name", [*AGENTS, "dreamer_v3"])
def test_an_action_may_be_changed_in_place_without_changing_what_the_agent_did(name: str) -> None:
    """As whoever scales it to the bounds of an environment does."""
    agent = make(name, VECTOR, MIXED)
    carry, action, latents = agent.policy(agent.init_policy(2), observation(agent, 2))
    before = {key: value.clone() for key, value in carry.items()}
    for value in (*action.values(), *latents.values()):
        value[...] = 3
    assert all(torch.equal(value, before[key]) for key, value in carry.items())


def modules(agent: Any) -> dict[str, nn.Module]:
    """The networks by what they are for, those of the dynamics apart."""
    model, dyn = agent.model, agent.model.dyn
    found = {key: getattr(model, key) for key in ("enc", "dec", "rew")} | {"core": dyn.core}
    found |= {"prior": nn.ModuleList([dyn.prior, dyn.priorlogit])}
    found |= {"post": nn.ModuleList([dyn.obs, dyn.obslogit])}
    behavior = agent.nets if hasattr(agent.nets, "pol") else agent.nets.task
    ends = getattr(model, "pcont" if hasattr(model, "pcont") else "dis")
    found |= {"ends": ends, "pol": behavior.pol, "val": behavior.val}
    return found | ({"slow": behavior.slowval} if hasattr(behavior, "slowval") else {})


def losses(agent: Any) -> Iterator[tuple[str, Tensor]]:
    """Every loss of an agent by its name, each from a forward pass of its own."""
    carry, data = agent.init_train(2), batch(agent)
    draws = agent.nets.draw(2, 6, torch.Generator().manual_seed(0))
    weights = dict(agent.scales)
    for name in weights:
        agent.scales = {key: float(key == name) for key in weights}
        yield name, agent.model_loss(carry, data, draws)[0]
    agent.scales = weights
    for name in ("policy", "value"):
        start = agent.start(agent.model_loss(carry, data, draws)[1], data)
        if hasattr(agent, "behavior"):
            yield name, agent.behavior.loss(start, draws)[0][name]
        else:
            yield name, dict(zip(("policy", "value"), agent.behavior_loss(start, draws), strict=False))[name]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dreamer_v1", {}),
        ("dreamer_v1", {"discrete": "score"}),
        ("dreamer_v2", {}),
        ("dreamer_v2", {"actor_grad": "dynamics"}),
        ("dreamer_v2", {"actor_grad": "both"}),
    ],
)
def test_each_loss_reaches_its_own_networks_alone(name: str, changes: dict[str, Any]) -> None:
    agent = make(name, VECTOR, MIXED, "reference", **ALL[name] | changes)
    parts, found = modules(agent), {}
    for key, loss in losses(agent):
        found[key] = gradients(loss, parts)
    state = {"enc", "core", "post"}  # what a posterior state is made by
    assert found == {
        "kl": state | {"prior"},
        "rew": state | {"rew"},
        END[name]: state | {"ends"},
        "position": state | {"dec"},
        "kind": state | {"dec"},
        "policy": {"pol"},
        "value": {"val"},
    }


@BOTH
def test_same_seed_is_the_same_agent_to_the_bit(name: str) -> None:
    runs = []
    for seed in (1, 1, 2):
        agent = make(name, VECTOR, MIXED, seed=seed)
        for i in range(3):
            _, _, metrics = agent.update(agent.init_train(2), batch(agent, seed=i))
        _, action, _ = agent.policy(agent.init_policy(2), observation(agent, 2))
        runs.append((metrics["opt/loss"].item(), action["move"].tobytes()))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@BOTH
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(name: str) -> None:
    schedule = {"dreamer_v1": dict(expl="linear(1,0,5)"), "dreamer_v2": dict(actent="linear(1e-2,0,5)")}
    changes: dict[str, Any] = ALL[name] | schedule[name]
    one, other = (make(name, VECTOR, MIXED, seed=seed, **changes) for seed in (0, 7))
    assert same_after_loading(one, other)


@BOTH
@ACTIONS
def test_the_reference_and_auto_give_the_same_first_losses(name: str, act: Spaces) -> None:
    first = []
    for ops in ("reference", "auto"):
        agent = make(name, IMAGE | VECTOR, act, ops, **ALL[name])
        _, _, metrics = agent.update(agent.init_train(2), batch(agent))
        first.append({k: v for k, v in metrics.items() if k.startswith(("loss/", "opt/"))})
    for key, value in first[0].items():
        torch.testing.assert_close(
            value, first[1][key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("obs", [IMAGE, VECTOR], ids=["image", "vector"])
@pytest.mark.parametrize("name", [*AGENTS, "normals"])
@ACTIONS
def test_the_reference_and_auto_act_alike(name: str, act: Spaces, obs: Spaces) -> None:
    """From nothing on, and past ends of episodes; DreamerV2 with latents of either kind."""
    changes: dict[str, Any] = {}
    if name == "normals":
        name, settings = "dreamer_v2", agents.settings("dreamer_v2")
        changes["dyn"] = replace(settings.size(settings.Config(), "debug").dyn, classes=0)
    states = []
    for backend in ("reference", "auto"):
        agent = make(name, obs, act, backend, **changes)
        carry = agent.init_policy(3)
        for step in range(4):
            seen = observation(agent, 3, step) | {"is_first": np.arange(3) == step}
            carry, *_ = agent.policy(carry, seen)
        states.append(carry)
    for key, x in states[0].items():
        torch.testing.assert_close(states[1][key], x, rtol=1e-4, atol=1e-4)


@BOTH
@ACTIONS
def test_half_precision(name: str, act: Spaces) -> None:
    totals = []
    for dtype in ("float32", "bfloat16"):
        agent = make(name, IMAGE | VECTOR, act, dtype=dtype)
        assert agent.init_policy(1)["deter"].dtype == getattr(torch, dtype)
        _, _, metrics = agent.update(agent.init_train(2), batch(agent))
        for mode in ("sample", "mode"):
            _, action, _ = agent.policy(agent.init_policy(3), observation(agent, 3), mode)
            assert all(np.isfinite(value).all() for value in action.values())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in agent.nets.parameters())
        totals.append(float(metrics["loss/model"]))
    assert totals[1] == pytest.approx(totals[0], rel=0.01)


@BOTH
def test_report_leaves_the_agent_as_it_was(name: str) -> None:
    agent = make(name, IMAGE | VECTOR, DISCRETE)
    state = {k: v.clone() for k, v in agent.nets.state_dict().items()}
    metrics, pictures = agent.report(agent.init_train(2), batch(agent))
    assert all(torch.equal(v, state[k]) for k, v in agent.nets.state_dict().items())
    assert pictures["image"].shape == (6, 3 * 68, 2 * 68, 3) and pictures["position"].shape == (2, 6, 3)
    assert torch.isfinite(metrics["loss/policy"]) and torch.isfinite(metrics["loss/model"])


@BOTH
@ACTIONS
def test_an_update_never_waits_for_the_device(
    name: str, act: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(name, IMAGE | VECTOR, act)
    carry, data = agent.init_train(2), batch(agent)
    agent.update(carry, data)
    for wait in WAITS:

        def fail(self: Tensor, *args: object, wait: str = wait) -> None:
            raise AssertionError(f"Tensor.{wait} in an update")

        monkeypatch.setattr(Tensor, wait, fail)
    _, _, metrics = agent.update(carry, data)
    monkeypatch.undo()
    assert torch.isfinite(metrics["opt/loss"])
