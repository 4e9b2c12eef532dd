"""dreamerv3-torch's scan, imagination and heads, theirs and ours."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdream.integrations import dreamerv3_torch

from .dreamerv3_torch_tools import A, B, C, D, E, S, T
from .dreamerv3_torch_tools import peer as fixture
from .integration_tools import wanting
from .standin_tools import assert_as_good, drawn, randomized, replayed

peer = fixture
ROWS, HORIZON = 6, 5


def onehots(*shape: int) -> Tensor:
    return drawn(torch.full((*shape, S, C), 1 / C))


def pair(call: Any, theirs: list[Tensor], ours: list[Tensor]) -> tuple[Any, Any]:
    """The call with their functions and with ours, each with its way through the same numbers."""

    def stock(module: nn.Module, *inputs: Tensor) -> Any:
        with replayed(theirs, []):
            return call(module, *inputs)

    def new(module: nn.Module, *inputs: Tensor) -> Any:
        with replayed([], ours), dreamerv3_torch.install():
            return call(module, *inputs)

    return stock, new


FLAGS = {
    "none": (),
    "unsaid": (),
    "one row": ((3, 1),),
    "all rows": tuple((4, i) for i in range(B)),
    "often": ((1, 0), (2, 2), (6, 1)),
}


@pytest.mark.parametrize("given", [False, True], ids=["start", "state"])
@pytest.mark.parametrize("flags", FLAGS)
def test_observe(peer: SimpleNamespace, flags: str, given: bool):
    noise = torch.rand(2, B, T, S)
    theirs = [noise[which][:, t] for t in range(T) for which in (1, 0)]
    first = torch.zeros(B, T)
    first[:, 0] = float(not given and flags != "unsaid")  # which begins without a state all the same
    for time, row in FLAGS[flags]:
        first[row, time] = 1

    def observe(
        rssm: nn.Module, embed: Tensor, action: Tensor, first: Tensor, deter: Tensor, stoch: Tensor
    ) -> Any:
        state = {"stoch": stoch, "deter": deter, "logit": torch.zeros_like(stoch)}
        return rssm.observe(embed, action.clone(), first, state if given else None)

    inputs = wanting(B, T, E), wanting(B, T, A), first, wanting(B, D), onehots(B).requires_grad_()
    assert_as_good(*pair(observe, theirs, [noise]), randomized(peer.rssm()), inputs)


def test_the_batch_of_actions_stays_as_it_is(peer: SimpleNamespace):
    first, action = torch.zeros(B, T), torch.randn(B, T, A)
    first[:, 0] = first[1, 3] = 1
    kept = action.clone()
    with dreamerv3_torch.install():
        randomized(peer.rssm()).observe(torch.randn(B, T, E), action, first)
    assert torch.equal(action, kept)


def test_open_loop(peer: SimpleNamespace):
    noise = torch.rand(B, T, S)

    def imagine(rssm: nn.Module, action: Tensor, deter: Tensor, stoch: Tensor) -> Any:
        return rssm.imagine_with_action(action, {"stoch": stoch, "deter": deter, "logit": stoch})

    inputs = wanting(B, T, A), wanting(B, D), onehots(B)
    assert_as_good(*pair(imagine, list(noise.unbind(1)), [noise]), randomized(peer.rssm()), inputs)


def test_imagination(peer: SimpleNamespace):
    noise = list(torch.rand(HORIZON, ROWS, S))
    policy, rssm = randomized(nn.Linear(S * C + D, A), 3), randomized(peer.rssm())

    def imagine(policy: nn.Module, deter: Tensor, stoch: Tensor) -> Any:
        net = copy.deepcopy(rssm).to(deter).requires_grad_(False)

        def act(x: Tensor) -> Any:
            assert not x.requires_grad
            return SimpleNamespace(sample=lambda: torch.tanh(policy(x)))

        agent = SimpleNamespace(_world_model=SimpleNamespace(dynamics=net))
        start = {"stoch": stoch, "deter": deter, "logit": stoch}
        return peer.models.ImagBehavior._imagine(agent, start, act, HORIZON)

    inputs = torch.randn(2, ROWS // 2, D), onehots(2, ROWS // 2)
    assert_as_good(*pair(imagine, noise, noise[:-1]), policy, inputs)


@pytest.mark.parametrize("free", [0.0, 3.0])
def test_kl(peer: SimpleNamespace, free: float):
    rssm = peer.rssm()

    def kl(module: nn.Module, post: Tensor, prior: Tensor) -> Any:
        states = ({"logit": x, "deter": x.flatten(-2)} for x in (post, prior))
        return rssm.kl_loss(*states, free, 0.5, 0.1)

    assert_as_good(*pair(kl, [], []), nn.Module(), [wanting(B, T, S, C), wanting(B, T, S, C)])


def test_bins(peer: SimpleNamespace):
    target = torch.tensor([0.0, 3.7, -1e4, 1e12, 0.2, -0.9]).view(2, 3, 1)

    def both(module: nn.Module, logits: Tensor, target: Tensor) -> Any:
        dist = peer.disc(logits)
        return dist.mean() / 1e3, dist.mode() / 1e3, dist.log_prob(target)

    assert_as_good(*pair(both, [], []), nn.Module(), [wanting(2, 3, 255), target])


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_logits_of_another_precision_than_bins_are_theirs(peer: SimpleNamespace, precision: torch.dtype):
    dist = peer.disc(torch.randn(2, 3, 255).to(precision))
    dist.buckets, target = dist.buckets.float(), torch.randn(2, 3, 1)
    theirs = dist.mean(), dist.log_prob(target)
    with dreamerv3_torch.install():
        assert torch.equal(dist.mean(), theirs[0]) and torch.equal(dist.log_prob(target), theirs[1])


def test_under_autocast_it_is_theirs(peer: SimpleNamespace):
    rssm, states = (
        peer.rssm(),
        [{"logit": torch.randn(B, S, C), "deter": torch.zeros(B, D)} for _ in range(2)],
    )
    with torch.autocast("cpu", torch.bfloat16):
        theirs = rssm.kl_loss(*states, 0.0, 0.5, 0.1)
        with dreamerv3_torch.install():
            for our, their in zip(rssm.kl_loss(*states, 0.0, 0.5, 0.1), theirs, strict=True):
                assert torch.equal(our, their)


def test_other_models_are_theirs(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    """And steps that draw nothing, or of other shapes."""
    theirs = lambda self, prev_state, prev_action, sample=True: "theirs"  # noqa: E731
    monkeypatch.setattr(peer.networks.RSSM, "img_step", theirs)
    state, action = {"stoch": onehots(B), "deter": torch.randn(B, D)}, torch.randn(B, A)
    with dreamerv3_torch.install():
        assert peer.rssm().img_step(state, action)["stoch"].shape == (B, S, C)
        assert peer.rssm().img_step(state, action, sample=False) == "theirs"
        longer = {key: x.unsqueeze(1) for key, x in state.items()}
        assert peer.rssm().img_step(longer, action.unsqueeze(1)) == "theirs"
        changes = {"_discrete": 0, "_rec_depth": 2, "_cell._update_bias": -2, "_cell._act": torch.relu}
        for name, value in changes.items():
            rssm = peer.rssm()
            owner, _, last = name.rpartition(".")
            setattr(getattr(rssm, owner) if owner else rssm, last, value)
            assert rssm.img_step(state, action) == "theirs", name


def test_a_step_keeps_the_actions_that_it_saw(peer: SimpleNamespace):
    """Their own step of the posterior changes in place what it is given."""
    rssm, action = randomized(peer.rssm()), torch.randn(B, A)
    with dreamerv3_torch.install():
        step = rssm.img_step({"stoch": onehots(B), "deter": torch.randn(B, D)}, action)
    action.zero_()
    step["deter"].sum().backward()
    assert rssm._cell.layers[0].weight.grad.any()


def test_a_target_that_learns_is_theirs(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    dist = peer.disc(torch.randn(2, 3, 255))
    monkeypatch.setattr(type(dist), "log_prob", lambda self, x: "theirs")
    target = torch.zeros(2, 3, 1)
    with dreamerv3_torch.install():
        assert dist.log_prob(target).shape == (2, 3)
        assert dist.log_prob(target.requires_grad_()) == "theirs"


def test_puts_back_and_refuses_twice(peer: SimpleNamespace):
    stock = peer.networks.RSSM.observe
    with dreamerv3_torch.install() as patch:
        assert "RSSM.observe" in patch.describe("cpu")
        with pytest.raises(ValueError, match=r"RSSM\.observe is replaced already"):
            dreamerv3_torch.install()
    assert peer.networks.RSSM.observe is stock


def test_without_a_checkout_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dreamerv3_torch, "MODULES", ("no_such_module",))
    with pytest.raises(ImportError, match="dreamerv3-torch is not found"):
        dreamerv3_torch.install()
