"""The policy step against what it is made of, and the way by which the agent calls it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fastdream import ops as fd
from fastdream.nets import Dense, Kept, flatten_inputs
from fastdream.ops import reference
from fastdream.spaces import Space

from .ops_tools import A, E, H, Maker, S


def _plain(net: nn.Module) -> None:
    """A weight that is no parameter any more."""
    weight = net._parameters.pop("weight")
    assert weight is not None
    net.weight = weight.detach().clone()


def inputs(n: int, encoder: bool = True) -> tuple:
    """Arguments of policy_step up to the noise: layers, state, features, resets of every second row."""
    make = Maker(3)
    layers = (make.layer(5, H), make.layer(H, E)) if encoder else ()
    state = *make.state(n), make.normal(n, A), make.normal(n, 5 if encoder else E)
    return layers, make.rssm(), make.actor(), *state, torch.arange(n) % 2 == 1


@pytest.mark.parametrize("encoder", [True, False])
def test_policy_step_is_encoder_posterior_and_actor(encoder: bool):
    make, args = Maker(4), inputs(3, encoder)
    layers, rssm, actor, deter, stoch, action, features, reset = args
    noise, action_noise = make.uniform(3, S), make.uniform(3, 2)
    step, drawn = reference.policy_step(*args, noise, action_noise)
    embed = reference.mlp(features, layers)
    expected = reference.observe_step(rssm, deter, stoch, action, embed, reset, noise)
    for got, want in zip(step, expected, strict=True):
        torch.testing.assert_close(got, want)
    feat = torch.cat([expected.deter, expected.stoch.flatten(-2)], -1)
    torch.testing.assert_close(drawn, reference.actor(actor, feat, action_noise))
    assert not drawn.requires_grad and not step.deter.requires_grad


def test_no_noise_takes_the_most_likely_action():
    args = inputs(4)
    step, action = reference.policy_step(*args, Maker(4).uniform(4, S), None)
    feat = torch.cat([step.deter, step.stoch.flatten(-2)], -1)
    (mean, _), (logit,) = reference.actor_outputs(args[2], feat)
    torch.testing.assert_close(action[:, :1], mean)
    assert torch.equal(action[:, 1:], torch.eye(2, dtype=action.dtype)[logit[:, 0].argmax(-1)])


def test_raw_vectors_are_squished_and_missing_ones_are_zero():
    args, index = list(inputs(4)), Maker(5).index(4, S)
    raw = 3 * args[6]
    raw[1, 3] = -math.inf
    spaces = {"a": Space("vector", (2,)), "b": Space("vector", (3,))}
    args[6] = flatten_inputs(spaces, {"a": raw[:, :2], "b": raw[:, 2:]}, True, raw.dtype)
    assert not args[6][1, 2:].any() and args[6][1, :2].all()
    step, action = reference.policy_step(*args, None, None, index)
    args[6] = raw
    squished, same = reference.policy_step(*args, None, None, index, (2, 3))
    torch.testing.assert_close((*squished, same), (*step, action))
    with pytest.raises(ValueError, match=r"vectors of \[2, 2\] are not features of shape \[4, 5\]"):
        reference.policy_step(*args, None, None, index, (2, 2))


def test_replayed_index_needs_no_noise():
    args, index = inputs(4), Maker(5).index(4, S)
    step, _ = reference.policy_step(*args, None, None, index)
    assert torch.equal(step.stoch.argmax(-1), index)
    with pytest.raises(ValueError, match="needs noise to draw with, or the index"):
        reference.policy_step(*args, None, None)


def test_kept_values_follow_replaced_parameters():
    net = nn.Sequential(Dense(fd.load("reference"), 2, 3), Dense(fd.load("reference"), 3, 1))
    made = []

    def make() -> list[torch.Tensor]:
        made.append(1)
        return list(net.parameters())

    kept = Kept(make, net)
    first = kept.get()
    with torch.no_grad():
        net[0].weight.mul_(2)
    net.load_state_dict(net.state_dict())
    assert kept.get() is first and len(made) == 1
    net[1].bias = nn.Parameter(torch.ones(1))
    assert kept.get()[-1] is net[1].bias and len(made) == 2
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    assert all(a is b for a, b in zip(kept.get(), net.parameters(), strict=True)) and len(made) == 3


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm, _plain])
def test_values_of_what_is_no_parameter_are_made_anew(change: Callable[[nn.Module], Any]):
    """It is computed from parameters that change in place, or replaced where nobody looks."""
    net = Dense(fd.load("reference"), 2, 3)
    change(net.eval())
    kept = Kept(lambda: net.layer, net)
    kept.get()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.rand(parameter.shape)
    if change is _plain:
        net.weight = net.weight * 2
    assert torch.equal(kept.get().weight, net.weight)


@pytest.mark.parametrize("name, value", [("act", "relu"), ("norm", "layer"), ("eps", 1e-2)])
def test_kept_values_follow_settings_of_layers(name: str, value: Any):
    """Those of a layer that were set after it had acted, which learning saw and acting did not."""
    net = nn.Sequential(Dense(fd.load("reference"), 2, 3, norm="rms", act="silu"))
    kept = Kept(lambda: net[0].layer, net)
    assert getattr(kept.get(), name) != value
    setattr(net[0], name, value)
    assert getattr(kept.get(), name) == value


def test_kept_values_follow_replaced_modules():
    """Those on the way to what they are made of, and those in it."""

    def dense(width: int) -> Dense:
        return Dense(fd.load("reference"), width, width)

    net = nn.Module()
    net.used, net.other = nn.Sequential(nn.Sequential(dense(2)), dense(3)), dense(4)
    kept = Kept(lambda: net.used[0][0].weight, net, "used.0")
    first = kept.get()
    net.other, net.used[1] = dense(4), dense(3)
    assert kept.get() is first is net.used[0][0].weight
    net.used[0][0] = dense(2)
    assert kept.get() is net.used[0][0].weight
    net.used = nn.Sequential(nn.Sequential(dense(2)))
    assert kept.get() is net.used[0][0].weight
