"""The policy: distributions of mixed actions, against torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Normal

from fastdream import ops as fd
from fastdream.nets import ActionDecoder, flatten_inputs
from fastdream.policy import ActorHeads, PolicyConfig
from fastdream.spaces import Space, Spaces

OPS = fd.load("reference")
FEAT = 6
ACT: Spaces = {
    "turn": Space("vector", (2,)),
    "button": Space("discrete", (3,), 4),
    "jump": Space("discrete", (), 2),
    "grip": Space("vector", ()),
}


def policy(act: Spaces = ACT, **options: float) -> ActorHeads:
    config = PolicyConfig(layers=2, units=8, **{"outscale": 2.0, **options})  # type: ignore[arg-type]
    return ActorHeads(OPS, FEAT, act, config, torch.Generator().manual_seed(0))


def sample(pol: ActorHeads, feat: Tensor, seed: int = 1) -> Tensor:
    noise = pol.noise(*feat.shape[:-1], generator=torch.Generator().manual_seed(seed))
    return fd.actor(pol.params, feat, noise)


def test_keys_are_sorted_and_parameters_carry_their_names() -> None:
    pol = policy()
    assert list(pol.spaces) == ["button", "grip", "jump", "turn"]
    assert [head.kind for head in pol.params.heads] == ["categorical", "bounded_normal"] * 2
    names = [name for name, _ in pol.named_parameters() if name.endswith("weight") and "head" in name]
    outs = ["button.logits", "grip.mean", "grip.stddev", "jump.logits", "turn.mean", "turn.stddev"]
    assert names == [f"head.{name}.weight" for name in outs]


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_log_probability_and_entropy_are_those_of_torch(batch: tuple[int, ...]) -> None:
    pol, feat = policy(unimix=0.1), torch.randn(*batch, FEAT)
    outs, flat = pol(feat), sample(pol, feat)
    action, entropy = ActionDecoder(ACT)(flat.detach().numpy()), pol.entropy(outs)
    assert flat.shape == (*batch, 12 + 1 + 2 + 2)
    expected = torch.zeros(batch)
    for (key, space), out in zip(pol.spaces.items(), outs, strict=True):
        value = torch.from_numpy(action[key]).reshape(*batch, -1)
        if space.kind == "discrete":
            probs = 0.9 * out[0].softmax(-1) + 0.1 / space.classes
            dist: Categorical | Normal = Categorical(probs)
        else:
            dist = Normal(*out)
        expected = expected + dist.log_prob(value).sum(-1)
        torch.testing.assert_close(entropy[key], dist.entropy().sum(-1))
    torch.testing.assert_close(pol.log_prob(outs, flat), expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.01, 0.4), st.floats(0.5, 2.0))
def test_entropy_stays_in_its_range(seed: int, low: float, high: float) -> None:
    pol = policy(min_std=low, max_std=high)
    feat = 5 * torch.randn(8, FEAT, generator=torch.Generator().manual_seed(seed))
    ranges = pol.entropy_range()
    for key, entropy in pol.entropy(pol(feat)).items():
        least, most = ranges[key]
        assert bool((entropy >= least - 1e-4).all() & (entropy <= most + 1e-4).all()), key


def test_range_of_a_uniform_and_of_the_widest_normal() -> None:
    ranges = policy(min_std=0.1, max_std=1.0).entropy_range()
    assert ranges["button"] == (0.0, pytest.approx(3 * math.log(4)))
    widest = float(Normal(0.0, 1.0).entropy())
    assert ranges["turn"] == (pytest.approx(2 * (widest + math.log(0.1))), pytest.approx(2 * widest))


def test_unimix_keeps_every_action_possible() -> None:
    pol = policy({"jump": Space("discrete", (), 4)}, unimix=0.2, outscale=500.0)
    outs = pol(torch.randn(50, FEAT))
    for index in range(4):
        flat = flatten_inputs({"jump": Space("discrete", (), 4)}, {"jump": torch.full((50,), index)})
        assert bool((pol.log_prob(outs, flat) >= math.log(0.05) - 1e-5).all())


def test_actions_get_no_gradient_and_parameters_do() -> None:
    pol, feat = policy(), torch.randn(4, FEAT, requires_grad=True)
    flat = sample(pol, feat.detach()).detach().requires_grad_()
    outs = pol(feat)
    (pol.log_prob(outs, flat).sum() + sum(e.sum() for e in pol.entropy(outs).values())).backward()
    assert flat.grad is None and feat.grad is not None and bool(feat.grad.abs().sum() > 0)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in pol.parameters())


def test_score_function_gradient_has_zero_mean() -> None:
    pol, feat = policy({"jump": Space("discrete", (), 3), "v": Space("vector", ())}), torch.randn(FEAT)
    many = feat.expand(20_000, FEAT)
    log_prob = pol.log_prob(pol(many), sample(pol, many).detach())
    out = pol.head["jump"]["logits"].bias  # type: ignore[index]
    grad = torch.autograd.grad(log_prob.mean(), out)[0]
    assert float(grad.abs().max()) < 0.02


def test_mode_is_the_most_likely_action() -> None:
    pol, feat = policy(), torch.randn(6, FEAT)
    outs = pol(feat)
    best = pol.log_prob(outs, fd.actor_mode(outs))
    for seed in range(5):
        assert bool((pol.log_prob(outs, sample(pol, feat, seed)) <= best + 1e-5).all())


def test_noise_has_a_number_for_every_element() -> None:
    noise = policy().noise(1000, generator=torch.Generator().manual_seed(0))
    assert noise.shape == (1000, 3 + 1 + 1 + 2)
    uniform, normal = noise[:, [0, 1, 2, 4]], noise[:, [3, 5, 6]]
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1 and float(normal.min()) < -2


def test_small_outscale_starts_close_to_uniform() -> None:
    entropy = policy(outscale=0.01).entropy(policy(outscale=0.01)(torch.randn(10, FEAT)))
    torch.testing.assert_close(entropy["button"], torch.full((10,), 3 * math.log(4)), rtol=1e-3, atol=0)


def test_half_precision_features_give_float32_probabilities() -> None:
    pol, feat = policy(outscale=1.0), torch.randn(8, FEAT)
    outs, flat = pol(feat.bfloat16()), sample(pol, feat)
    assert pol.log_prob(outs, flat).dtype == torch.float32
    torch.testing.assert_close(pol.log_prob(outs, flat), pol.log_prob(pol(feat), flat), rtol=0.05, atol=0.3)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="need 0 < min_std <= max_std, got 2.0 and 1.0"):
        PolicyConfig(min_std=2.0)
    with pytest.raises(ValueError, match="unimix=1.0"):
        PolicyConfig(unimix=1.0)


def test_no_actions_and_image_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one action"):
        policy({})
    with pytest.raises(ValueError, match="action 'screen' is an image"):
        policy({"screen": Space("image", (8, 8, 3))})
