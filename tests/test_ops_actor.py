"""The policy's distributions and flat actions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.ops import reference as ops
from fastdream.ops.params import ActionHead, Actor

from . import ops_oracles as oracle
from .ops_tools import UNITS, Maker, arrays, gradcheck, worst

FEAT = 7


def multi_actor(make: Maker) -> Actor:
    """A = 3 * 4 + 2 + 5: multi-discrete, two continuous numbers, one discrete choice; M = 3 + 2 + 1."""
    heads = (
        ActionHead("categorical", 3, 4, (make.layer(UNITS, 12, "none", "none"),), 0.01),
        ActionHead(
            "bounded_normal", 2, 0, tuple(make.layer(UNITS, 2, "none", "none") for _ in "ms"), 0.0, 0.2, 0.9
        ),
        ActionHead("categorical", 1, 5, (make.layer(UNITS, 5, "none", "none"),)),
    )
    return Actor((make.layer(FEAT, UNITS), make.layer(UNITS, UNITS)), heads)


def test_outputs_match_numpy() -> None:
    make = Maker(0)
    actor, feat = multi_actor(make), make.normal(2, 3, FEAT)
    (multi,), (mean, std), (single,) = ops.actor_outputs(actor, feat)
    plain = arrays(actor)
    x = oracle.mlp(arrays(feat), plain.layers)
    first, normal, last = (head.out for head in plain.heads)
    assert worst(multi, oracle.dense(x, first[0]).reshape(2, 3, 3, 4)) < 1e-14
    assert worst(single, oracle.dense(x, last[0]).reshape(2, 3, 1, 5)) < 1e-14
    assert worst(mean, np.tanh(oracle.dense(x, normal[0]))) < 1e-14
    assert worst(std, 0.7 * oracle.sigmoid(oracle.dense(x, normal[1]) + 2.0) + 0.2) < 1e-14


def test_action_concatenates_the_heads_and_takes_one_number_an_element() -> None:
    make = Maker(1)
    actor, feat, noise = multi_actor(make), make.normal(2, 3, FEAT), make.uniform(2, 3, 6)
    action = ops.actor(actor, feat, noise)
    (multi,), (mean, std), (single,) = ops.actor_outputs(actor, feat)
    onehots, _ = ops.categorical_sample(multi, noise[..., :3], 0.01)
    choice, _ = ops.categorical_sample(single, noise[..., 5:])
    assert torch.equal(action[..., :12], onehots.flatten(-2))
    assert worst(action[..., 12:14], mean + std * noise[..., 3:5]) < 1e-15
    assert torch.equal(action[..., 14:], choice.flatten(-2))


def test_gradients_of_outputs_and_of_the_sample() -> None:
    make = Maker(2)
    actor, feat, noise = make.actor(FEAT), make.normal(2, FEAT), make.uniform(2, 2)

    def outputs(actor: Actor, feat: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for head in ops.actor_outputs(actor, feat) for x in head)

    assert gradcheck(outputs, actor, feat)
    assert gradcheck(lambda actor, feat: ops.actor(actor, feat, noise)[..., :1], actor, feat)
    # The discrete part is a step: its gradient is that of the mixed probabilities.
    ((_, _), (logit,)), cot = ops.actor_outputs(actor, feat), make.normal(2, 2).detach()
    probs = 0.99 * torch.softmax(logit[:, 0], -1) + 0.005
    got = torch.autograd.grad((ops.actor(actor, feat, noise)[..., 1:] * cot).sum(), feat)[0]
    assert worst(got, torch.autograd.grad((probs * cot).sum(), feat)[0]) < 1e-14


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_the_score_s_gradient_is_that_of_the_expectation(unimix: float) -> None:
    """Of a loss that is linear in the action, each draw weighed by its probability."""
    make, classes = Maker(6), 5
    head = ActionHead("score", 1, classes, (make.layer(UNITS, classes, "none", "none"),), unimix)
    actor, feat = Actor((make.layer(FEAT, UNITS),), (head,)), make.normal(FEAT)
    cot = make.normal(classes).detach()
    probs = (1 - unimix) * torch.softmax(ops.actor_outputs(actor, feat)[0][0][0], -1) + unimix / classes
    cdf, total = torch.cat([torch.zeros(1), probs.detach().cumsum(-1)]), torch.zeros(FEAT)
    for k in range(classes):
        action = ops.actor(actor, feat, (cdf[k : k + 1] + cdf[k + 1 : k + 2]) / 2)
        assert torch.equal(action.detach(), torch.eye(classes, dtype=action.dtype)[k])
        grad = torch.autograd.grad((action * cot).sum(), feat)[0]
        log_prob = torch.autograd.grad(probs[k].log(), feat, retain_graph=True)[0]
        assert worst(grad, cot[k] * log_prob) < 1e-13
        total = total + probs[k].detach() * grad
    assert worst(total, torch.autograd.grad((probs * cot).sum(), feat)[0]) < 1e-13


def test_a_given_action_is_returned_without_gradient() -> None:
    make = Maker(3)
    actor, feat, action = make.actor(FEAT), make.normal(4, FEAT), make.normal(4, 3)
    out = ops.actor(actor, feat, None, action)
    assert torch.equal(out, action) and not out.requires_grad


def test_samples_keep_float32_under_half_precision() -> None:
    make, half = Maker(4, torch.float32), torch.bfloat16
    actor, feat = multi_actor(make), make.normal(16, FEAT).to(half)
    (multi,), (mean, std), _ = ops.actor_outputs(actor, feat)
    assert (multi.dtype, mean.dtype, std.dtype) == (half, torch.float32, torch.float32)
    action = ops.actor(actor, feat, make.uniform(16, 6))
    assert action.dtype == torch.float32
    assert not torch.equal(action, action.to(half).float())


def test_what_is_missing_or_unknown_is_named() -> None:
    make = Maker(5)
    actor, feat = make.actor(FEAT), make.normal(1, FEAT)
    with pytest.raises(ValueError, match="noise"):
        ops.actor(actor, feat, None)
    beta = actor._replace(heads=(actor.heads[0]._replace(kind="beta"),))
    with pytest.raises(
        ValueError, match="beta.*categorical, score, bounded_normal, trunc_normal, tanh_normal"
    ):
        ops.actor_outputs(beta, feat)
