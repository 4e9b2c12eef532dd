"""A whole update of r2dreamer itself, where it is, with the same parameters, data and draws."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.integrations import r2dreamer

from .integration_tools import same_draws
from .r2dreamer_tools import FOLDER

B, T, ACTIONS = 2, 5, 3


@pytest.fixture
def whole(peer: SimpleNamespace) -> SimpleNamespace:
    """r2dreamer itself; the stand-in has no update."""
    if not peer.rounds:
        pytest.skip("the stand-in has no whole update; the case of r2dreamer itself has")
    pytest.importorskip("hydra", reason="r2dreamer needs hydra; pip install hydra-core")
    return peer


def agent(peer: SimpleNamespace, images: bool) -> Any:
    """A small agent with parameters that depend on nothing but a seed."""
    import hydra

    settings = {
        "deter": 32,
        "hidden": 8,
        "discrete": 4,
        "depth": 2,
        "units": 8,
        "warmup": 0,
        "imag_horizon": 4,
        "lr": 3e-3,
    }
    changes = {"model.compile": False, "model.rep_loss": "dreamer", "device": "cpu"}
    changes |= {f"model.{key}": value for key, value in settings.items()}
    changes["env"] = "dmc_vision" if images else "dmc_proprio"
    with hydra.initialize_config_dir(str(Path(os.environ[FOLDER], "configs").resolve()), version_base=None):
        config = hydra.compose("configs", [f"{key}={value}" for key, value in changes.items()])
    shapes = {"image": (64, 64, 3)} if images else {"sensors": (7,)}
    spaces = {key: SimpleNamespace(shape=shape) for key, shape in shapes.items()}
    discrete = SimpleNamespace(n=ACTIONS, discrete=True)
    space = discrete if images else SimpleNamespace(shape=(ACTIONS,))
    torch.manual_seed(0)
    made = peer.dreamer.Dreamer(config.model, SimpleNamespace(spaces=spaces), space)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made._named_params.values():  # zeros would hide what comes before them
            p.add_(torch.randn(p.shape, generator=stream), alpha=0.02)
    return made


class Replay:
    """The same batch at every update, in what shape r2dreamer's replay gives it."""

    def __init__(self, images: bool) -> None:
        from tensordict import TensorDict

        stream = torch.Generator().manual_seed(0)
        key, shape = ("image", (64, 64, 3)) if images else ("sensors", (7,))
        data = {key: torch.rand(B, T, *shape, generator=stream) * (255 if images else 1)}
        action = torch.randn(B, T, ACTIONS, generator=stream)
        one = torch.nn.functional.one_hot(action.argmax(-1), ACTIONS).float()
        data |= {"action": one if images else action, "reward": torch.randn(B, T, 1, generator=stream)}
        for name in ("is_first", "is_last", "is_terminal"):
            data[name] = torch.rand(B, T, 1, generator=stream) < 0.2
        self.data = TensorDict(data, batch_size=(B, T))
        index = torch.randint(4, (B, 32), generator=stream)
        one = torch.nn.functional.one_hot(index, 4).float()
        self.initial = one, torch.rand(B, 32, generator=stream)

    def sample(self) -> Any:
        return self.data.clone(recurse=False), None, self.initial

    def update(self, index: None, stoch: Tensor, deter: Tensor) -> None:
        assert stoch.shape == (B, T, 32, 4) and deter.shape == (B, T, 32)


def gradients(peer: SimpleNamespace, images: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one update before its optimiser, in float32."""
    learner, replay = agent(peer, images), Replay(images)
    data, _, initial = replay.sample()
    torch.manual_seed(2)
    with same_draws():
        _, metrics = learner._cal_grad(learner.preprocess(data), initial)
    found = {name: p.grad for name, p in learner._named_params.items()}
    return {key: x.detach() for key, x in metrics.items()}, found


@pytest.mark.parametrize("images", [False, True], ids=["sensors", "images"])
def test_losses_and_gradients_of_an_update(whole: SimpleNamespace, images: bool):
    """With their loop of imagination around our steps, all draws of both are the same."""
    stock = whole.dreamer.Dreamer._imagine
    losses, grads = gradients(whole, images)
    with r2dreamer.install(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole.dreamer.Dreamer, "_imagine", stock)
        our_losses, our_grads = gradients(whole, images)
    assert our_losses.keys() == losses.keys() and our_grads.keys() == grads.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(
            our_losses[name], loss, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, grad in grads.items():
        error = (our_grads[name] - grad).norm() / grad.norm().clamp_min(1e-6)
        assert error < 1e-3, (name, error)


@pytest.mark.parametrize("images", [False, True], ids=["sensors", "images"])
def test_updates_of_both_learn_alike(whole: SimpleNamespace, images: bool):
    """Draws are others, so the losses of the world model are only near; their checkpoint goes into ours."""

    def learn(steps: int = 20) -> tuple[float, float, Any]:
        """The loss of the reward at first and in the mean of the last updates."""
        learner, replay = agent(whole, images), Replay(images)
        torch.manual_seed(3)
        losses = [float(learner.update(replay)["loss/rew"]) for _ in range(steps)]
        return losses[0], sum(losses[-5:]) / 5, learner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole.dreamer, "autocast", lambda **_: torch.autocast("cpu", enabled=False))
        first, theirs, stock = learn()
    with r2dreamer.install():
        _, ours, learner = learn()
        assert theirs < 0.9 * first and abs(ours - theirs) < 0.25 * (first - theirs), (first, theirs, ours)
        learner.load_state_dict(stock.state_dict())
        for name, x in learner.state_dict().items():
            assert torch.equal(x, stock.state_dict()[name]), name
        frozen = dict(learner._frozen_rssm.named_parameters())
        for name, p in learner.rssm.named_parameters():
            assert p.data_ptr() == frozen[name].data_ptr(), "frozen copies see what is learned"
