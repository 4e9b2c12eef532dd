"""Prediction heads: what they start from, what they learn, and what their losses are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream import ops as fd
from fastdream.heads import (
    BinaryHead,
    HeadConfig,
    RegressionHead,
    TwoHotConfig,
    TwoHotHead,
    outputs_at,
)

OPS = fd.load("reference")
SMALL = HeadConfig(layers=1, units=8, outscale=1.0)
FEAT = 5


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def twohot(bins: int = 41, event: tuple[int, ...] = (), outscale: float = 1.0) -> TwoHotHead:
    config = TwoHotConfig(layers=1, units=16, outscale=outscale, bins=bins)
    return TwoHotHead(OPS, FEAT, config, event, seeded())


def fit(head: TwoHotHead | BinaryHead | RegressionHead, x: Tensor, target: Tensor) -> Tensor:
    """Predictions after some steps of plain gradient descent."""
    opt = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(150):
        opt.zero_grad()
        head.loss(head(x), target).mean().backward()
        opt.step()
    return head.pred(head(x)).detach()


@pytest.mark.parametrize("bins", [40, 41])
def test_two_hot_starts_at_exactly_zero(bins: int) -> None:
    head = twohot(bins, outscale=0.0)
    out = head(torch.randn(7, FEAT))
    assert out.shape == (7, bins) and not head.pred(out).any()
    loss = head.loss(out, torch.tensor([-1e9, -3.0, -0.01, 0.0, 0.2, 5.0, 1e9]))
    torch.testing.assert_close(loss, torch.full((7,), math.log(bins)))


def test_two_hot_in_raw_space_finds_the_bin() -> None:
    # Means take longer: the outermost bins are so far out that traces of probability on them show.
    head, index = twohot(), torch.tensor([2, 19, 20, 23, 35])
    target = head.bins[index]
    fit(head, torch.eye(5), target)
    out = head(torch.eye(5))
    assert out.argmax(-1).tolist() == index.tolist() and float(head.loss(out, target).max().detach()) < 0.2


def test_two_hot_bins_belong_to_the_code_and_not_to_the_state() -> None:
    head = twohot()
    assert "bins" not in head.state_dict() and [name for name, _ in head.named_buffers()] == ["bins"]
    assert list(dict(head.named_parameters())) == [
        "mlp.0.scale",
        "mlp.0.weight",
        "mlp.0.bias",
        "head.logits.weight",
        "head.logits.bias",
    ]


def test_two_hot_sums_over_the_event_and_lets_no_gradient_into_the_target() -> None:
    head, x = twohot(event=(2,)), torch.randn(3, 4, FEAT)
    target = torch.randn(3, 4, 2, requires_grad=True)
    out = head(x)
    loss = head.loss(out, target)
    parts = [OPS.twohot_loss(out[..., i, :], target[..., i], head.bins) for i in (0, 1)]
    assert head.pred(out).shape == (3, 4, 2)
    torch.testing.assert_close(loss, parts[0] + parts[1])
    loss.sum().backward()
    assert target.grad is None and head.head["logits"].weight.grad is not None


def test_binary_head_learns_soft_targets() -> None:
    target = torch.tensor([0.0, 1.0, 0.3, 0.997])
    pred = fit(BinaryHead(OPS, FEAT, SMALL, seeded()), torch.eye(5)[:4], target)
    torch.testing.assert_close(pred, target, rtol=0, atol=0.03)


def test_binary_loss_is_cross_entropy_and_survives_extremes() -> None:
    head = BinaryHead(OPS, FEAT, SMALL, seeded())
    out, target = torch.tensor([0.5, -2.0, 90.0, -90.0]), torch.tensor([1.0, 0.25, 0.0, 1.0])
    expected = -(target * F.logsigmoid(out) + (1 - target) * F.logsigmoid(-out))
    torch.testing.assert_close(head.loss(out, target), expected)
    assert head.loss(out, target)[2:].tolist() == [90.0, 90.0]


def test_regression_head_learns_vectors() -> None:
    target = torch.tensor([[-20.0, 1.0], [0.0, 3.0]])
    head = RegressionHead(OPS, FEAT, SMALL, (2,), seeded())
    before = head.loss(head(torch.eye(5)[:2]), target)
    assert before.shape == (2,)
    pred = fit(head, torch.eye(5)[:2], target)
    assert bool(head.loss(head(torch.eye(5)[:2]), target).sum() < 0.5 * before.sum())
    assert pred.shape == (2, 2) and bool((pred[0, 0] < -1) & (pred[1, 1] > 1))


def test_regression_by_a_normal_of_variance_one() -> None:
    head = RegressionHead(OPS, FEAT, SMALL, (3,), seeded())
    out, target = head(torch.randn(4, FEAT)), torch.randn(4, 3)
    expected = -torch.distributions.Normal(out, 1.0).log_prob(target).sum(-1)
    torch.testing.assert_close(head.loss(out, target), expected)
    assert torch.equal(head.pred(out), out)


@pytest.mark.parametrize("ops", ["reference", "auto"])
def test_a_fixed_head_passes_gradients_to_its_features_alone(ops: str) -> None:
    for kind in (RegressionHead, BinaryHead):
        head, feat = (
            kind(fd.load(ops), FEAT, SMALL, generator=seeded()),
            torch.randn(4, FEAT, requires_grad=True),
        )
        free = torch.autograd.grad(head(feat).sum(), feat)[0]
        head(feat, fixed=True).sum().backward()
        assert all(p.grad is None for p in head.parameters())
        torch.testing.assert_close(feat.grad, free)


@pytest.mark.parametrize("head", [twohot(), BinaryHead(OPS, FEAT, SMALL), RegressionHead(OPS, FEAT, SMALL)])
def test_half_precision_features_give_float32_losses(head: TwoHotHead | BinaryHead | RegressionHead) -> None:
    x, target = torch.randn(6, FEAT), torch.rand(6)
    out = head(x.bfloat16())
    assert out.dtype == torch.bfloat16 and head.pred(out).dtype == torch.float32
    torch.testing.assert_close(head.loss(out, target), head.loss(head(x), target), rtol=0.1, atol=0.1)


def test_heads_that_do_not_learn_pass_nothing_on_to_the_features() -> None:
    learned, fixed = twohot(), twohot()
    feat = torch.randn(3, FEAT, requires_grad=True)
    (ours,), (theirs,) = outputs_at(OPS, feat, [learned], [fixed])
    assert torch.equal(ours, theirs) and ours.requires_grad and not theirs.requires_grad
