"""Where sheeprl's functions remain, and what gradients of ours do not reach."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdream.integrations import sheeprl

from .sheeprl_peer_tools import peer as fixture
from .sheeprl_tools import A, B, C, D, E, S
from .standin_tools import drawn, randomized

peer = fixture


def onehots(*shape: int) -> Tensor:
    return drawn(torch.full((*shape, S, C), 1 / C))


def test_given_initial_states_are_used(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    rssm = randomized(peer.make.v3())
    start, given = (onehots(1, B), torch.randn(1, B, D)), (torch.randn(1, B, D), onehots(1, B))
    step = torch.randn(1, B, A), torch.randn(1, B, E), torch.ones(1, B, 1)
    found = []
    with sheeprl.install():
        for initial in (given, None):
            torch.manual_seed(0)
            found.append(rssm.dynamic(*start, *step, initial, True)[0].value)
            monkeypatch.setattr(rssm, "get_initial_states", lambda shape: given)
    assert torch.equal(*found)


def test_single_steps_of_a_player_are_tensors(peer: SimpleNamespace):
    rssm = randomized(peer.make.v3_5())
    with torch.no_grad(), sheeprl.install():
        inputs = rssm.embed_actions(torch.randn(1, B, A)), rssm.project_observations(torch.randn(1, B, E))
        step = rssm.dynamic(onehots(1, B).flatten(-2), torch.randn(1, B, D), *inputs, torch.ones(1, B, 1))
    assert all(isinstance(x, Tensor) for x in step)


def test_a_dream_of_v3_leads_to_no_parameters_of_the_world(peer: SimpleNamespace):
    world, policy = nn.Module(), randomized(nn.Linear(S * C + D, A), 3)
    world.rssm, world.reward_model, world.continue_model = (
        peer.make.v3(),
        peer.make.head(255),
        peer.make.head(1),
    )
    critic = randomized(peer.make.head(255), 5)
    start = onehots(1, B), torch.randn(1, B, D), torch.zeros(1, B, 1)
    settings = {"horizon": 3, "gamma": 0.99, "lmbda": 0.95, "action_clip": 1.0}
    with sheeprl.install():
        actor = lambda x, clip: ([torch.tanh(policy(x))], None)  # noqa: E731
        *_, values, returns, _ = peer.train.imagine(randomized(world), actor, critic, *start, **settings)
    (values.sum() + returns.sum()).backward()
    assert policy.weight.grad.any()
    assert all(p.grad is None for net in (world, critic) for p in net.parameters())


def test_dreams_of_v3_5_that_no_op_has_are_theirs(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    """Those with gradients, and of an actor without hidden layers."""

    def theirs(
        world_model: Any,
        actor: Any,
        critic: Any,
        target_critic: Any,
        posteriors: Any,
        recurrent_states: Any,
        *,
        horizon: int,
        discount: float,
        lmbda: float,
    ) -> Any:
        return "theirs"

    monkeypatch.setattr(peer.block_train, "imagine", theirs)
    world, actor = nn.Module(), randomized(peer.make.actor(True), 7)
    world.rssm = randomized(peer.make.v3_5())
    world.reward_model, world.continue_model, critic = map(head, (255, 1, 255))
    start = onehots(1, B).flatten(-2), torch.randn(1, B, D)

    def dream() -> Any:
        settings = {"horizon": 2, "discount": 0.9, "lmbda": 0.95}
        return peer.block_train.imagine(world, actor, critic, critic, *start, **settings)

    with sheeprl.install():
        assert dream() == "theirs"
        with torch.no_grad():
            assert dream() != "theirs"
            actor.model = nn.Sequential()
            assert dream() == "theirs"


def head(out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(S * C + D, 6), nn.SiLU(), nn.Linear(6, out))


@pytest.mark.parametrize("case", ["double", "two kinds", "a closure"])
def test_laprop_that_no_op_has_is_theirs(peer: SimpleNamespace, case: str, monkeypatch: pytest.MonkeyPatch):
    called: list[Any] = []
    monkeypatch.setattr(peer.optim.LaProp, "step", lambda self, closure=None: called.append(closure))
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    for p in params[: {"double": 2, "two kinds": 1}.get(case, 0)]:
        p.data = p.data.double()
    for p in params:
        p.grad = torch.ones_like(p)
    closure = (lambda: 0.0) if case == "a closure" else None
    with sheeprl.install():
        peer.optim.LaProp(params, lr=1e-2).step(closure)
    assert called == [closure] and all((p == 1).all() for p in params)


def test_a_target_that_learns_is_theirs(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    kind = peer.train.TwoHotEncodingDistribution
    monkeypatch.setattr(kind, "log_prob", lambda self, x: "theirs")
    target = torch.zeros(2, 3, 1)
    with sheeprl.install():
        dist = peer.train.TwoHotEncodingDistribution(torch.randn(2, 3, 255), dims=1)
        assert dist.log_prob(target).shape == (2, 3)
        assert dist.log_prob(target.requires_grad_()) == "theirs"
