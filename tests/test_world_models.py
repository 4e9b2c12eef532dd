"""World Models' V, M and C against NumPy, their sizes in the paper, and what a dream is."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import graphs
from fastdream import ops as fd
from fastdream.agents.world_models import Config, WorldModels, size
from fastdream.agents.world_models_nets import Memory, Vision, mixture_loss
from fastdream.ops import MDNStep
from fastdream.ops.reference.mdn import dreamt
from fastdream.presets import resolve
from fastdream.spaces import Space

from .graph_tools import Tapes
from .ops_tools import worst

IMAGE = {"image": Space("image", (64, 64, 3))}
SIDES = {"action": Space("discrete", (), 3)}
WHEEL = {"action": Space("vector", (3,))}
MIXED = {"keys": Space("discrete", (2,), 4), "move": Space("vector", (2,))}


def make(act: Any = SIDES, seed: int = 0, **control: Any) -> WorldModels:
    config = size(Config(), "debug")
    return WorldModels(IMAGE, act, replace(config, control=replace(config.control, **control)), seed=seed)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("task", "act", "expected"),
    [
        ("car_racing", WHEEL, (4_348_547, 422_368, 867)),
        ("vizdoom_take_cover", SIDES, (4_446_915, 1_678_785, 1_088)),
    ],
)
def test_parameter_counts_of_the_paper(task: str, act: Any, expected: tuple[int, int, int]) -> None:
    agent = WorldModels(IMAGE, act, resolve(task, agent="world_models").dreamer)
    assert (count(agent.vision), count(agent.memory), agent.controller.count) == expected
    assert agent.param_count == sum(expected) and agent.controls.shape == (expected[2],)


def test_vision_shrinks_and_grows_as_in_the_paper() -> None:
    vision: Vision = make().vision
    sides, x = [64], torch.zeros(1, 3, 64, 64)
    for layer in vision.down:
        x = layer(x)
        sides.append(x.shape[-1])
    x = vision.seed(torch.zeros(1, 4))[:, :, None, None]
    for layer in vision.up:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides == [64, 31, 14, 6, 2, 5, 13, 30, 64]


def test_vision_loss_matches_numpy() -> None:
    """Squared errors summed over a picture; the KL counts from half a nat a dimension on, for each picture apart."""
    vision = make().vision.double()
    drawn = torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    image = (drawn * torch.linspace(0, 255, 5)[:, None, None, None]).byte()  # from black to bright
    noise = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        vision.mean.weight.mul_(100)
        loss, metrics = vision.loss(image, noise)
        mean, logvar = (x.double().numpy() for x in vision.encode(image))
        z = mean + np.exp(logvar / 2) * noise.numpy()
        seen = vision.decode(torch.from_numpy(z)).double().numpy()
    error = ((seen - image.numpy() / 255) ** 2).sum((1, 2, 3)).mean()
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(1)
    assert kl.min() < 2 < kl.max(), kl  # some below what is free, some above
    np.testing.assert_allclose(metrics["kl"], kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, error + np.maximum(kl, 2).mean(), rtol=1e-5)


def test_mixture_loss_matches_torch_distributions_and_its_gradient_is_right() -> None:
    g = torch.Generator().manual_seed(1)
    logit, mean, logstd = (
        torch.randn(3, 2, 5, generator=g, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    target = torch.randn(3, 2, generator=g, dtype=torch.float64)
    dist = torch.distributions
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logit), dist.Normal(mean, logstd.exp()))
    assert worst(mixture_loss(logit, mean, logstd, target), -mixture.log_prob(target)) < 1e-13
    assert torch.autograd.gradcheck(mixture_loss, (logit, mean, logstd, target))


def unrolled(memory: Memory, latent: Tensor, action: Tensor, restart: Tensor) -> np.ndarray:
    """The LSTM in NumPy, forgotten wherever an episode begins."""
    w_x, w_h, bias = (p.detach().numpy() for p in (memory.weight_ih, memory.weight_hh, memory.bias))
    outputs = []
    for z, a, first in zip(latent.numpy(), action.numpy(), restart.numpy(), strict=True):
        h = c = np.zeros(w_h.shape[1])
        for t in range(len(z)):
            h, c = (0 * h, 0 * c) if first[t] else (h, c)
            gates = w_x @ np.concatenate([z[t], a[t], [first[t]]]) + w_h @ h + bias
            i, g, f, o = np.split(gates, 4)
            c = c / (1 + np.exp(-f - 1)) + np.tanh(g) / (1 + np.exp(-i))
            h = np.tanh(c) / (1 + np.exp(-o))
            outputs.append(h)
    return np.array(outputs).reshape(*restart.shape, -1)


def test_memory_forgets_at_restarts_within_a_sequence_and_matches_numpy() -> None:
    memory, g = make().memory.double(), torch.Generator().manual_seed(2)
    latent = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    action = torch.randn(2, 6, 1, generator=g, dtype=torch.float64)
    restart = torch.zeros(2, 6, dtype=torch.bool)
    restart[0, 3] = restart[1, 0] = True
    hidden, state = memory.unroll(latent, action, restart, memory.initial(2))
    assert worst(hidden, unrolled(memory, latent, action, restart)) < 1e-13
    first, carried = memory.unroll(latent[:, :4], action[:, :4], restart[:, :4], memory.initial(2))
    second, again = memory.unroll(latent[:, 4:], action[:, 4:], restart[:, 4:], carried)
    assert worst(torch.cat([first, second], 1), hidden.detach()) < 1e-14
    assert worst(again[1], state[1].detach()) < 1e-14


def test_memory_step_of_acting_is_that_of_dreaming() -> None:
    agent, g = make(), torch.Generator().manual_seed(3)
    latent, action = torch.randn(3, 4, generator=g), torch.randn(3, 1, generator=g)
    first, noise = torch.tensor([True, False, False]), torch.rand(2, 3, 4, generator=g)
    state = torch.randn(3, 8, generator=g), torch.randn(3, 8, generator=g)
    step = agent.ops.lstm_mdn_step(agent.memory.params, *state, latent, action, first, *noise)
    _, (hidden, cell) = agent.memory.unroll(latent[:, None], action[:, None], first[:, None], state)
    torch.testing.assert_close((step.hidden, step.cell), (hidden, cell))


def test_memory_learns_neither_from_the_next_episode_s_first_step_nor_equally_from_ends() -> None:
    agent = make()
    memory, g = agent.memory, torch.Generator().manual_seed(4)
    hidden, target = torch.randn(1, 4, 8, generator=g), torch.randn(1, 4, 4, generator=g)
    end = torch.tensor([[False, True, False, False]])
    follows = torch.tensor([[True, True, False, True]])
    losses = memory.loss(hidden, target, end, follows)
    changed = target.clone()
    changed[0, 2] = 100.0
    again = memory.loss(hidden, changed, end, follows)
    assert losses["latent"] == again["latent"]
    logit = memory.out(hidden)[0, :, 0]
    each = torch.nn.functional.softplus(torch.where(end[0], -logit, logit))
    torch.testing.assert_close(losses["end"], (each[0] + 10 * each[1] + each[3]) / 3)


@pytest.mark.parametrize(("cell", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("act", [SIDES, WHEEL, MIXED], ids=["sides", "wheel", "mixed"])
def test_controller_is_one_layer(act: Any, cell: bool, bias: bool) -> None:
    agent, g = make(act, cell=cell, bias=bias), torch.Generator().manual_seed(5)
    z, h, c = (torch.randn(3, width, generator=g) for width in (4, 8, 8))
    controller = agent.controller
    controls = torch.randn(3, controller.count, generator=g)
    A = controller.actions
    feat = np.concatenate([z, c, h] if cell else [z, h], 1)
    for row, (action, w) in enumerate(zip(controller(controls, z, (h, c)), controls.numpy(), strict=True)):
        b, w = (w[:A], w[A:]) if bias else (0, w)
        np.testing.assert_allclose(action, np.tanh(feat[row] @ w.reshape(-1, A) + b), rtol=1e-4, atol=1e-6)
    shared = controller(controls[0], z, (h, c))
    torch.testing.assert_close(shared, controller(controls[:1].expand(3, -1), z, (h, c)))


def test_three_classes_are_left_stay_and_right() -> None:
    decode = make().controller.decode
    action = np.array([-1, -0.34, -0.33, 0.33, 0.34, 1.0])[:, None]
    assert decode(action)["action"].tolist() == [0, 0, 1, 1, 2, 2]
    mixed = make(MIXED).controller.decode(np.array([[-1, 1, 0.5, -0.5]], np.float32))
    assert mixed["keys"].tolist() == [[0, 3]] and mixed["move"].tolist() == [[0.5, -0.5]]


def test_policy_forgets_where_episodes_begin_and_repeats_itself() -> None:
    agent = make()
    agent.controls.normal_(generator=torch.Generator().manual_seed(6))
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    carry = {key: torch.ones(2, 8) for key in ("hidden", "cell")}
    after, action, latents = agent.policy(
        carry, {"image": image, "is_first": np.array([True, False])}, "mode"
    )
    fresh, _, _ = agent.policy(
        agent.init_policy(2), {"image": image, "is_first": np.array([True] * 2)}, "mode"
    )
    assert torch.equal(after["hidden"][0], fresh["hidden"][0]) and not latents
    assert not torch.equal(after["hidden"][1], fresh["hidden"][1])
    assert action["action"].shape == (2,) and action["action"].dtype == np.int32
    with pytest.raises(ValueError, match="mode='best' is unknown"):
        agent.policy(carry, {"image": image, "is_first": np.array([True] * 2)}, "best")


class Ending:
    """A dream whose row r ends at step 3 r; knows by its latent which row it is, and what noise it met."""

    def __init__(self) -> None:
        self.step, self.seen = 0, []

    def __call__(self, model: Any, hidden: Tensor, cell: Tensor, latent: Tensor, *args: Any) -> MDNStep:
        self.step += 1
        self.seen.append((latent[:, 0].tolist(), args[2], args[1]))
        return MDNStep(hidden, cell, latent, self.step - 3 * latent[:, 0] + 0.5)


def test_dreams_last_until_they_end_and_leave_the_batch() -> None:
    agent, ending = make(), Ending()
    agent.ops = agent.ops._replace(lstm_mdn_dream=partial(dreamt, ending))
    rows = torch.arange(1.0, 13.0)
    latent, seeds = rows[:, None].expand(12, 4), torch.arange(12) % 6
    controls = torch.zeros(12, agent.controller.count)
    lasted = agent.dream(controls, latent, seeds, torch.Generator().manual_seed(0), 1.0, 31)
    assert lasted.tolist() == [min(3 * row, 31) for row in rows.tolist()]
    assert [len(names) for names, _, _ in ending.seen] == [12] * 16 + [7] * 15
    for names, uniform, restart in ending.seen:
        assert restart.all() == (len(names) == 12 and ending.seen[0][1] is uniform)
        places = {name: row for row, name in enumerate(names)}
        for name in names:
            if name + 6 in places:  # its twin of the other half
                assert torch.equal(uniform[places[name]], uniform[places[name + 6]])


def test_dreams_end_early_together() -> None:
    agent, ending = make(), Ending()
    agent.ops = agent.ops._replace(lstm_mdn_dream=partial(dreamt, ending))
    controls = torch.zeros(2, agent.controller.count)
    generator = torch.Generator().manual_seed(0)
    lasted = agent.dream(controls, torch.ones(2, 4), torch.arange(2), generator, 1.0, 1000)
    assert lasted.tolist() == [3, 3] and ending.step == 16


def dreamt_by(agent: WorldModels) -> Tensor:
    """How long each of some dreams lasts, of which ever fewer remain."""
    g = torch.Generator().manual_seed(7)
    controls, latent = torch.randn(13, agent.controller.count, generator=g), torch.randn(13, 4, generator=g)
    return agent.dream(controls, latent, torch.arange(13) % 7, torch.Generator().manual_seed(8), 1.2, 200)


def test_replayed_dreams_last_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "TOGETHER", 3)
    agents = make(), make()
    for agent in agents:
        agent.memory.out.layer.weight.data[0] *= 20
        agent.memory.out.layer.bias.data[0] = -2
    graphs.capture_dreams(agents[1], tapes := Tapes())
    lasted, replayed = map(dreamt_by, agents)
    assert torch.equal(lasted, replayed) and lasted.min() < 16 and lasted.max() == 200, lasted
    before = len(tapes.tapes)
    assert torch.equal(dreamt_by(agents[1]), lasted) and len(tapes.tapes) == before > 1
    graphs.capture_dreams(agents[1], Tapes())
    assert torch.equal(dreamt_by(agents[1]), lasted) and len(tapes.tapes) == before


def test_what_cannot_be_seen_or_dreamed_is_refused() -> None:
    with pytest.raises(ValueError, match="one picture of 64 × 64 pixels.*--suite.size 64"):
        WorldModels({"image": Space("image", (96, 96, 1))}, SIDES, size(Config(), "debug"))
    with pytest.raises(ValueError, match="choose control.where=real"):
        config = Config()
        replace(config, memory=replace(config.memory, ends=False))
    with pytest.raises(ValueError, match="unknown size '12m'"):
        size(Config(), "12m")
    with pytest.raises(ValueError, match="even population"):
        replace(Config().control, population=5)
    assert fd.load("reference").lstm_mdn_step is fd.reference.lstm_mdn_step
