"""sheeprl's steps, imagination, heads and optimizer, theirs and ours."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdream.integrations import sheeprl

from .integration_tools import wanting
from .sheeprl_peer_tools import peer as fixture
from .sheeprl_peer_tools import unrolled
from .sheeprl_tools import A, B, C, D, E, H, S, T, dense
from .standin_tools import assert_as_good, drawn, randomized, replayed

peer = fixture
KINDS = "v2", "v3", "v3_5"
HORIZON, ROWS = 4, 6


def flags(*times: tuple[int, int]) -> Tensor:
    """[T, B, 1], 1 where a row begins; all of them do at first."""
    first = torch.zeros(T, B, 1)
    first[0] = 1
    for time, row in times:
        first[time, row] = 1
    return first


@pytest.mark.parametrize(
    "first", [flags(), flags((2, 0), (5, 1), (5, 2)), flags((T - 1, 1))], ids=["one", "two", "last"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_scan(peer: SimpleNamespace, kind: str, first: Tensor):
    rssm = randomized(getattr(peer.make, kind)())
    noise, other = torch.rand(2, B, T, S)
    posts, priors = noise.unbind(1), other.unbind(1)
    theirs = [x for pair in zip(priors, posts, strict=True) for x in pair] if kind == "v2" else posts
    inputs = wanting(T, B, E), wanting(T, B, A), first

    def stock(rssm: Any, *inputs: Tensor) -> Any:
        with replayed(theirs, []):
            return unrolled(rssm, kind, *inputs)

    def ours(rssm: Any, *inputs: Tensor) -> Any:
        with pytest.MonkeyPatch.context() as patch, replayed([], [noise]), sheeprl.install():
            patch.setattr(torch, "rand_like", lambda x: other.to(x))
            return unrolled(rssm, kind, *inputs)

    assert_as_good(stock, ours, rssm, inputs)


def test_a_prior_that_nobody_reads_is_not_drawn(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    rssm = randomized(peer.make.v2())
    step = (
        torch.zeros(1, B, S, C),
        torch.zeros(1, B, D),
        torch.randn(1, B, A),
        torch.randn(1, B, E),
        torch.ones(1, B, 1),
    )
    calls = []
    rand_like = torch.rand_like
    monkeypatch.setattr(torch, "rand_like", lambda x: calls.append(x) or rand_like(x))
    with sheeprl.install():
        deter, _, prior, *_ = rssm.dynamic(*step)
        assert deter.shape == (1, B, D) and not calls
        assert prior.shape == (1, B, S, C) and calls


def test_a_promise_is_taken_for_a_tensor(peer: SimpleNamespace):
    rssm = randomized(peer.make.v3())
    step = torch.randn(1, B, A), torch.randn(1, B, E), torch.ones(1, B, 1)
    with sheeprl.install():
        h, z, logit = rssm.dynamic(torch.zeros(1, B, S, C), torch.zeros(1, B, D), *step)
        h2, *_ = rssm.dynamic(z, h, *step)
        looked = h.detach() + 0 * (1 - step[2]) * h
        again, *_ = rssm.dynamic(z, h, *step)  # from a state that was looked at
        assert torch.equal(looked, h[:]) and again.shape == h2.shape and logit.requires_grad


def test_a_promise_has_the_graph_of_its_step(peer: SimpleNamespace):
    """What was asked for without gradient has none, wherever it is looked at, and the other way round."""
    rssm = randomized(peer.make.v3())
    step = torch.randn(1, B, A), torch.randn(1, B, E), torch.ones(1, B, 1)
    with sheeprl.install():
        with torch.no_grad():
            h, z, _ = rssm.dynamic(torch.zeros(1, B, S, C), torch.zeros(1, B, D), *step)
        h2, *_ = rssm.dynamic(z, h, *step)
        with torch.no_grad():
            assert h2.requires_grad
        assert not h.requires_grad


def test_player_and_half_precision(peer: SimpleNamespace):
    """The player's single steps give tensors; other precisions of Fabric and autocast are their own code."""
    rssm = randomized(peer.make.v3_5())
    noise = torch.rand(B, S)
    state = torch.zeros(1, B, S * C), torch.randn(1, B, D)

    def act() -> Any:
        inputs = rssm.embed_actions(action), rssm.project_observations(embed)
        return rssm.dynamic(*state, *inputs)

    action, embed = torch.randn(1, B, A), torch.randn(1, B, E)
    with torch.no_grad():
        with replayed([noise], []):
            theirs = act()
        with replayed([], [noise[:, None]]), sheeprl.install():
            found = act()
        for our, their in zip(found, theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)
        half = SimpleNamespace(precision=SimpleNamespace(precision="bf16-mixed"))
        object.__setattr__(rssm.recurrent_model, "_strategy", half)
        with replayed([noise], []), sheeprl.install():
            for our, their in zip(act(), theirs, strict=True):
                assert torch.equal(our, their)


def test_imagination_of_v3(peer: SimpleNamespace):
    noise = torch.rand(ROWS, HORIZON, S)
    policy = randomized(nn.Linear(S * C + D, A), 3)
    world = nn.Module()
    world.rssm, world.reward_model, world.continue_model = (
        peer.make.v3(),
        peer.make.head(255),
        peer.make.head(1),
    )
    world = randomized(world)
    critic = randomized(peer.make.head(255), 5)
    stoch = drawn_state().view(2, ROWS // 2, S, C)
    inputs = stoch, torch.randn(2, ROWS // 2, D), torch.tensor([0.0, 1, 0, 0, 0, 0]).view(2, -1, 1)
    settings = {"horizon": HORIZON, "gamma": 0.99, "lmbda": 0.95, "action_clip": 0.7}

    def dream(policy: nn.Module, *inputs: Tensor) -> Any:
        def actor(x: Tensor, clip: bool) -> Any:
            assert not clip and not x.requires_grad
            return [2 * torch.tanh(policy(x))], None

        nets = [copy.deepcopy(net).to(inputs[0]) for net in (world, critic)]
        return peer.train.imagine(nets[0], actor, nets[1], *inputs, **settings)

    def stock(policy: nn.Module, *inputs: Tensor) -> Any:
        with replayed(noise.unbind(1), []):
            return dream(policy, *inputs)

    def ours(policy: nn.Module, *inputs: Tensor) -> Any:
        with replayed([], [noise]), sheeprl.install():
            return dream(policy, *inputs)

    assert_as_good(stock, ours, policy, inputs)


def drawn_state() -> Tensor:
    return drawn(torch.full((ROWS, S, C), 1 / C))


@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "discrete"])
def test_imagination_of_v3_5(peer: SimpleNamespace, continuous: bool):
    """Its outcome has the moments of theirs, and every state follows from the one before by their own step."""
    many = 3000
    world = nn.Module()
    world.rssm = peer.make.v3_5()
    nets = [randomized(dense_net(peer, out), out) for out in (255, 1, 255, 255)]
    world.reward_model, world.continue_model = nets[:2]
    actor = randomized(peer.make.actor(continuous), 7)
    randomized(world.rssm)
    start = (
        drawn_state()[:1].expand(many, S, C).reshape(1, many, S * C),
        torch.randn(1, 1, D).expand(1, many, D),
    )
    settings = {"horizon": HORIZON, "discount": 0.9, "lmbda": 0.95}
    with torch.no_grad():
        theirs = peer.block_train.imagine(world, actor, *nets[2:], *start, **settings)
        with sheeprl.install():
            found = peer.block_train.imagine(world, actor, *nets[2:], *start, **settings)
        states, actions = found[:2]
        stoch, deter = states.split([S * C, D], -1)
        assert actions.shape == (HORIZON + 1, many, A)
        for t in range(HORIZON):
            _, after = world.rssm.imagination(stoch[t : t + 1], deter[t : t + 1], actions[t : t + 1])
            torch.testing.assert_close(after[0], deter[t + 1], rtol=1e-4, atol=1e-4)
    for i, (our, their) in enumerate(zip(found, theirs, strict=True)):
        assert our.shape == their.shape, i
        spread = their.std(1) + 1e-3 * (1 + their.mean(1).abs())  # state 0 is the same for all
        error = (our.mean(1) - their.mean(1)).abs() / spread
        assert float(error.max()) < 7 * (2 / many) ** 0.5, (i, float(error.max()))


def dense_net(peer: SimpleNamespace, out: int) -> nn.Module:
    if peer.real:
        return nn.Sequential(*peer.block.mlp(S * C + D, H, 1), peer.block.Linear(H, out))
    return dense(S * C + D, nn.Linear(H, out))


def test_twohot_of_v3(peer: SimpleNamespace):
    target = torch.tensor([0.0, 3.7, -1e4, 1e12, 0.2, -0.9]).view(2, 3, 1)

    def both(module: Any, logits: Tensor, target: Tensor) -> Any:
        dist = peer.train.TwoHotEncodingDistribution(logits, dims=1)
        return dist.mean / 1e3, dist.log_prob(target)

    def ours(module: Any, *inputs: Tensor) -> Any:
        with sheeprl.install():
            return both(module, *inputs)

    logits = wanting(2, 3, 255)
    assert_as_good(both, ours, nn.Module(), [logits, target])
    with sheeprl.install():
        other = peer.train.TwoHotEncodingDistribution(logits, dims=2)
        assert other.log_prob(target).shape == (2,)


def test_twohot_of_v3_5(peer: SimpleNamespace):
    target = torch.tensor([0.0, 3.7, -1e4, 1e12, 0.2, -0.9]).view(2, 3)

    def both(module: Any, logits: Tensor, target: Tensor) -> Any:
        dist = peer.block_train.TwoHot(logits)
        return dist.mean / 1e6, dist.loss(target)

    def ours(module: Any, *inputs: Tensor) -> Any:
        with sheeprl.install():
            assert float(peer.block_train.TwoHot(torch.zeros(1, 255)).mean) == 0
            return both(module, *inputs)

    assert_as_good(both, ours, nn.Module(), [wanting(2, 3, 255), target])


def test_returns(peer: SimpleNamespace):
    def both(module: Any, *inputs: Tensor) -> Any:
        reward, value, live, last = inputs
        old = peer.train.compute_lambda_values(reward, value, live, lmbda=0.9)
        flat = (last, 1 - live, reward, value)
        return old, peer.block_train.lambda_return(*(x.squeeze(-1) for x in flat), 0.97, 0.9)

    def ours(module: Any, *inputs: Tensor) -> Any:
        with sheeprl.install():
            return both(module, *inputs)

    live = torch.rand(T, ROWS, 1).requires_grad_()
    assert_as_good(
        both,
        ours,
        nn.Module(),
        [wanting(T, ROWS, 1), wanting(T, ROWS, 1), live, (torch.rand(T, ROWS, 1) < 0.2).float()],
    )


@pytest.mark.parametrize("warmup", [0, 3])
def test_laprop(peer: SimpleNamespace, warmup: int):
    runs = []
    for new in (False, True):
        net = randomized(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)))
        optimizer = peer.optim.LaProp(net.parameters(), lr=1e-2, warmup=warmup, weight_decay=0.1)
        stream = torch.Generator().manual_seed(2)
        for _ in range(5):
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=stream)
            if new:
                with sheeprl.install():
                    optimizer.step()
            else:
                optimizer.step()
        runs.append([*net.parameters(), *(x for state in optimizer.state.values() for x in state.values())])
        assert optimizer.param_groups[0]["step"] == 5
    for their, our in zip(*runs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


def test_installs_once_and_puts_back(peer: SimpleNamespace):
    stock = peer.v3.RSSM.dynamic
    patch = sheeprl.install()
    with pytest.raises(ValueError, match=r"project_observations is replaced already"):
        sheeprl.install()
    assert "dynamic" in patch.describe("cpu") and peer.v3.RSSM.dynamic is not stock
    patch.undo()
    assert peer.v3.RSSM.dynamic is stock


def test_without_sheeprl_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(sheeprl.layernorm, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install sheeprl==0\.8\.4"):
        sheeprl.install()
