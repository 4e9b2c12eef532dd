"""r2dreamer's model, imagination and precision, theirs and ours."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastdream.integrations import r2dreamer
from fastdream.ops import twohot_bins

from .integration_tools import randomized, wanting
from .r2dreamer_tools import (
    HEADS,
    NAMES,
    A,
    B,
    D,
    E,
    K,
    S,
    T,
    actor,
    check_alike,
    config,
    onehots,
    rssm,
)


@pytest.mark.parametrize("layers", [1, 2])
def test_deter(peer: SimpleNamespace, layers: int):
    net = rssm(peer, dyn_layers=layers)._deter_net
    check_alike(
        peer, peer.rssm.Deter, "forward", net, onehots(B).requires_grad_(), wanting(B, D), wanting(B, A)
    )


@pytest.mark.parametrize("flags", [(B, T), (B, T, 1)], ids=str)
def test_observe_with_their_estimator(peer: SimpleNamespace, flags: tuple[int, ...]):
    start = onehots(B).requires_grad_(), wanting(B, D)
    reset = torch.rand(flags) < 0.3
    assert reset.any()
    inputs = wanting(B, T, E), wanting(B, T, A), start, reset
    check_alike(peer, peer.rssm.RSSM, "observe", rssm(peer), *inputs, rounds=True)


def test_observe_of_no_row_and_of_one_step(peer: SimpleNamespace):
    with r2dreamer.install():
        net = rssm(peer)
        for batch, length in ((0, 2), (1, 1)):
            start = onehots(batch), torch.randn(batch, D)
            reset = torch.zeros(batch, length, dtype=torch.bool)
            embed, action = torch.randn(batch, length, E), torch.randn(batch, length, A)
            stoch, deter, logit = net.observe(embed, action, start, reset)
            assert stoch.shape == logit.shape == (batch, length, S, K) and deter.shape == (batch, length, D)


def test_a_step_and_the_prior(peer: SimpleNamespace):
    step = onehots(B).requires_grad_(), wanting(B, D), wanting(B, A), wanting(B, E), torch.rand(B) < 0.4
    check_alike(peer, peer.rssm.RSSM, "obs_step", rssm(peer), *step, rounds=True)
    check_alike(peer, peer.rssm.RSSM, "prior", rssm(peer), wanting(B, T, D), rounds=True)


def test_draws_through_probabilities_where_that_is_asked_for(peer: SimpleNamespace):
    net = rssm(peer)
    inputs = (
        torch.randn(B, T, E),
        torch.randn(B, T, A),
        (onehots(B), torch.randn(B, D)),
        torch.zeros(B, T) > 0,
    )
    with r2dreamer.install(straight_through="probabilities") as patch:
        assert any(
            line.split()[0].endswith("RSSM.observe") and "observe (" in line
            for line in patch.describe("cpu").splitlines()
        )
        stoch, deter, logit = net.observe(*inputs)
        weight = torch.randn(B, S, K)
        found = torch.autograd.grad(
            (stoch[:, -1] * weight).sum(), logit, retain_graph=True, allow_unused=True
        )
        last = net._obs_net.obs_net_logit if peer.rounds else net._obs_net[-2]
        bias = torch.autograd.grad((stoch[:, 0] * weight).sum(), last.bias)[0]
    assert found[0] is None or found[0].shape == logit.shape
    raw = logit[:, 0].detach().requires_grad_()
    (0.99 * raw.softmax(-1) * weight).sum().backward()
    torch.testing.assert_close(bias, raw.grad.sum(0).flatten())
    for t in range(1, T):
        state = net._deter_net(stoch[:, t - 1], deter[:, t - 1], inputs[1][:, t])
        torch.testing.assert_close(state, deter[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_imagination_follows_their_model_and_actor(peer: SimpleNamespace, kind: str):
    """Every state is what their own step makes of the one before and the action; draws have their distribution."""
    width = HEADS[kind][0]
    net = randomized(peer.rssm.RSSM(config(), E, width))
    head, many = actor(peer, kind), 4000
    agent = SimpleNamespace(_frozen_rssm=net, _frozen_actor=head, rssm=net, actor=head)
    start = onehots(1).expand(many, S, K), torch.randn(1, D).expand(many, D)
    stock = peer.dreamer.Dreamer._imagine
    torch.manual_seed(1)
    with r2dreamer.install():
        feats, actions = peer.dreamer.Dreamer._imagine(agent, start, 4)
    theirs = stock(agent, start, 4)
    assert (feats.shape, actions.shape) == (theirs[0].shape, theirs[1].shape) and not feats.requires_grad
    stoch, deter = feats.split([S * K, D], -1)
    torch.testing.assert_close(feats[:, 0], torch.cat([start[0].flatten(1), start[1]], -1))
    with torch.no_grad():
        for t in range(3):
            after = net._deter_net(stoch[:, t].unflatten(-1, (S, K)), deter[:, t], actions[:, t])
            torch.testing.assert_close(after, deter[:, t + 1], rtol=1e-4, atol=1e-5)
    # The mean over so many has a deviation of 1 / sqrt(4000) of one draw's, which is at most 1.
    for ours, their in zip((feats, actions), theirs, strict=True):
        torch.testing.assert_close(ours.mean(0), their.mean(0), rtol=0, atol=7 * 2**0.5 / many**0.5)
        torch.testing.assert_close(ours.std(0), their.std(0), rtol=0, atol=0.12)


def test_imagination_that_no_op_has_is_theirs(peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    """Under autocast, and of an actor that looks at logarithms."""
    monkeypatch.setattr(peer.dreamer.Dreamer, "_imagine", lambda self, start, imag_horizon: "theirs")
    head = actor(peer, "normal")
    agent = SimpleNamespace(_frozen_rssm=rssm(peer), _frozen_actor=head)
    start = onehots(B), torch.randn(B, D)
    with r2dreamer.install():
        imagine = peer.dreamer.Dreamer._imagine
        assert imagine(agent, start, 3)[0].shape == (B, 3, S * K + D)
        with torch.autocast("cpu", torch.bfloat16):
            assert imagine(agent, start, 3) == "theirs"
        head.mlp._symlog_inputs = True
        assert imagine(agent, start, 3) == "theirs"


def test_under_autocast_products_are_theirs(peer: SimpleNamespace):
    net, inputs = rssm(peer)._deter_net, (onehots(B), torch.randn(B, D), torch.randn(B, A))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = net(*inputs)
        with r2dreamer.install():
            assert torch.equal(net(*inputs), theirs)


def test_no_autocast_on_a_cpu_alone(peer: SimpleNamespace):
    with r2dreamer.install():
        with peer.dreamer.autocast(device_type="cpu", dtype=torch.float16):
            assert not torch.is_autocast_enabled("cpu")
        with peer.dreamer.autocast("cuda", dtype=torch.float16, enabled=False):
            assert not torch.is_autocast_enabled("cuda")
    with peer.dreamer.autocast(device_type="cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")


def test_compiled_without_a_break(peer: SimpleNamespace):
    net = rssm(peer)
    inputs = (
        torch.randn(B, 2, E),
        torch.randn(B, 2, A),
        (onehots(B), torch.randn(B, D)),
        torch.zeros(B, 2) > 0,
    )
    bins, target = twohot_bins(255), torch.randn(B, 1)

    def loss(scale: Tensor) -> Tensor:
        stoch, deter, logit = net.observe(*inputs)
        _, prior = net.prior(deter)
        parts = net.kl_loss(logit, prior, 0.1)
        dist = peer.distributions.TwoHot(scale * deter[:, 0].repeat(1, 16)[:, :255], bins)
        return torch.cat([*(x.flatten() for x in parts), dist.log_prob(target), stoch.flatten()]).sum()

    scale = torch.ones((), requires_grad=True)
    with r2dreamer.install():
        torch.manual_seed(0)
        eager = torch.autograd.grad(loss(scale), [scale, *net.parameters()])
        torch.manual_seed(0)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(scale), [scale, *net.parameters()])
    for ours, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match="r2dreamer is not found.*its folder"):
        r2dreamer.install()
    with pytest.raises(ValueError, match="straight_through='gumble'; choose 'gumbel' or 'probabilities'"):
        r2dreamer.install("gumble")  # type: ignore[arg-type]
