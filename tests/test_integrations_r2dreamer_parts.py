"""r2dreamer's networks, losses, returns and optimiser, theirs and ours."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.integrations import r2dreamer
from fastdream.ops import twohot_bins

from .integration_tools import assert_as_good, randomized, wanting
from .r2dreamer_tools import B, D, K, S, T, actor, check_alike, config, onehots, rssm


@pytest.mark.parametrize("free", [0.0, 1.0, 100.0])
def test_kl_of_raw_logits(peer: SimpleNamespace, free: float):
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.post, self.prior = (torch.nn.Parameter(3 * torch.randn(B, T, S, K)) for _ in range(2))

    torch.manual_seed(0)
    stock = peer.rssm.RSSM.kl_loss
    with r2dreamer.install():
        ours = peer.rssm.RSSM.kl_loss
        both: Callable[..., Any] = lambda f: lambda m: f(None, m.post, m.prior, free)  # noqa: E731
        assert_as_good(both(stock), both(ours), Both(), ())


@pytest.mark.parametrize("symlog", [False, True])
def test_nets_on_features(peer: SimpleNamespace, symlog: bool):
    torch.manual_seed(0)
    net = randomized(peer.networks.MLP(config(symlog_inputs=symlog), 9))
    check_alike(peer, peer.networks.MLP, "forward", net, wanting(B, T, 9))
    stock, head = peer.networks.MLPHead.forward, actor(peer, "normal")
    spread: Callable[..., Any] = lambda f: lambda m, x: (f(m, x).mean, f(m, x).stddev)  # noqa: E731
    with r2dreamer.install():
        ours = peer.networks.MLPHead.forward
        assert_as_good(spread(stock), spread(ours), head, (wanting(B, T, S * K + D),), peer.rounds)


def test_images(peer: SimpleNamespace):
    torch.manual_seed(0)
    encoder = randomized(peer.networks.ConvEncoder(config(), (16, 24, 3)))
    check_alike(
        peer, peer.networks.ConvEncoder, "forward", encoder, torch.rand(B, 2, 16, 24, 3, requires_grad=True)
    )
    decoder = randomized(peer.networks.ConvDecoder(config(), D, S * K, (3, 16, 24)))
    inputs = onehots(B, 2).requires_grad_(), wanting(B, 2, D)
    check_alike(peer, peer.networks.ConvDecoder, "forward", decoder, *inputs)


@pytest.mark.parametrize("count", [255, 7])
def test_twohot(peer: SimpleNamespace, count: int):
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.randn(8, count))

    torch.manual_seed(0)
    net, bins = Logits(), twohot_bins(count)
    target = torch.tensor([0.0, 1.3, -2e5, 1e12, -1e12, bins[2].item(), bins[-1].item(), 0.5])[:, None]

    def both(cls: Any) -> Callable[..., Any]:
        def call(module: Any, target: Tensor) -> Any:
            dist = cls(module.logits, bins.to(module.logits.dtype))
            return dist.mode() / 1e8, dist.log_prob(target)

        return call

    stock = dict(vars(peer.distributions.TwoHot))
    plain = type("TwoHot", (), {name: stock[name] for name in ("__init__", "mode", "log_prob")})
    with r2dreamer.install():
        assert_as_good(both(plain), both(peer.distributions.TwoHot), net, (target,), peer.rounds)
        maps = {"squash": torch.sign, "unsquash": torch.exp}
        for squashed in (
            peer.distributions.TwoHot(net.logits, bins, *maps.values()),
            peer.distributions.TwoHot(net.logits, bins, **maps),
        ):
            assert torch.equal(squashed.mode(), plain(net.logits, bins, **maps).mode())
        flat = peer.distributions.TwoHot(torch.ones(2, count), bins)
        assert not flat.mode().any(), "equal logits are exactly 0"


def test_returns(peer: SimpleNamespace):
    torch.manual_seed(0)
    last, term = (torch.rand(2, B, T, 1) < 0.3).float().unbind()
    inputs = last, term, *(torch.randn(B, T, 1) for _ in range(3)), 0.997, 0.95
    stock = peer.dreamer.Dreamer._lambda_return
    with r2dreamer.install():
        ours = peer.dreamer.Dreamer._lambda_return(None, *inputs)
    assert ours.shape == (B, T - 1, 1)
    torch.testing.assert_close(ours, stock(None, *inputs), rtol=1e-5, atol=1e-5)


def test_laprop_while_the_rate_changes(peer: SimpleNamespace):
    """Also of turned blocks, and from a checkpoint of theirs."""

    def learn(dtype: torch.dtype, ours: bool, half: int = 4) -> list[Tensor]:
        stream = torch.Generator().manual_seed(0)
        made = [torch.randn(s, generator=stream).to(dtype) for s in ((4, 3, 2), (5, 4), (7,), ())]
        params = [torch.nn.Parameter(x) for x in made]
        if ours:
            params[0].data = params[0].data.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        opt = peer.laprop.LaProp(params, lr=1e-2, betas=(0.9, 0.99), eps=1e-20)
        for step in range(8):
            opt.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 5)
            for p in params:
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=stream))
            if ours and step >= half:
                with r2dreamer.install():
                    opt.step()
            else:
                opt.step()
        means = [opt.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq")]
        assert all(opt.state[p]["step"] == 8 for p in params)
        return [x.detach().double() for x in (*params, *means)]

    truth, theirs = learn(torch.float64, False), learn(torch.float32, False)
    for half in (0, 4):
        for our, their, true in zip(learn(torch.float32, True, half), theirs, truth, strict=True):
            floor = 16 * torch.finfo(torch.float32).eps * (1e-4 + true.abs().max())
            assert (our - true).abs().max() <= 2 * (their - true).abs().max() + floor


def test_laprop_that_no_op_has_is_theirs(peer: SimpleNamespace):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = peer.laprop.LaProp([p], lr=1e-2, betas=(0.9, 0.99), eps=1e-20)
    p.grad = torch.ones_like(p)
    with r2dreamer.install():
        opt.step()
    assert (p < 1).all() and p.dtype == torch.float64


@pytest.mark.parametrize(
    "changes", [{"weight_decay": 0.1}, {"amsgrad": True}, {"centered": True}, {"lr": 0.0}, {}], ids=str
)
def test_laprop_of_settings_and_steps_that_no_op_has_is_theirs(
    peer: SimpleNamespace, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """That of all groups, if it is only one that no op serves."""
    called: list[Any] = []
    monkeypatch.setattr(peer.laprop.LaProp, "step", lambda self: called.append(self))
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    opt = peer.laprop.LaProp(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-20)
    for p in params:
        p.grad = torch.ones_like(p)
    with r2dreamer.install():
        opt.step()
        assert not called and all((p < 1).all() for p in params)
        opt.param_groups[1].update(changes)
        if not changes:
            opt.state[params[2]]["step"] += 1
        before = [p.detach().clone() for p in params]
        opt.step()
    assert called == [opt] and all(map(torch.equal, params, before))


def test_blocks_lie_in_front_before_an_agent_s_copies_come_to_share_them(
    peer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    net, seen = rssm(peer), []
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    monkeypatch.setattr(peer.dreamer.Dreamer, "clone_and_freeze", lambda self: seen.extend(self.parameters()))
    with r2dreamer.install():
        peer.dreamer.Dreamer.clone_and_freeze(net)
    blocks = [p for p in seen if p.dim() == 3]
    assert len(blocks) == 3 and all(p.permute(2, 1, 0).is_contiguous() for p in blocks)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
