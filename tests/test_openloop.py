"""The picture of an open-loop prediction: what is shown where."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fastdream.openloop import GREEN, RED, clip, open_loop

from .agent_tools import CONTINUOUS, VECTOR, batch, make


def test_a_clip_shows_truth_model_and_error_in_frames_that_tell_when_it_dreams() -> None:
    truth = torch.full((2, 3, 4, 6, 3), 100, dtype=torch.uint8)
    truth[1, :, :, :, 2] = 0
    pred = torch.full((2, 3, 4, 6, 3), 0.2)  # 51
    pred[1] = 1.5  # beyond what can be shown
    shown = clip(truth, pred, half=1)
    assert shown.shape == (3, 3 * (4 + 4), 2 * (6 + 4), 3) and shown.dtype == np.uint8
    inside = shown.reshape(3, 3, 8, 2, 10, 3)[:, :, 2:-2, :, 2:-2]
    for row, value in enumerate((100, 51, (51 - 100 + 255) // 2)):
        assert (inside[:, row, :, 0] == value).all()
    assert (inside[:, 1, :, 1] == 255).all() and (inside[:, 2, :, 1, :, 2] == 255).all()
    for step, colour in enumerate((GREEN, RED, RED)):
        assert (shown[step, :2] == colour).all() and (shown[step, :, -2:] == colour).all()


def test_pictures_of_one_channel_are_grey() -> None:
    truth = torch.zeros(1, 2, 4, 4, 1, dtype=torch.uint8)
    assert (clip(truth, torch.ones(1, 2, 4, 4, 1), half=1)[:, 10:14, 2:-2] == 255).all()


def test_every_step_is_drawn_with_noise_of_its_own() -> None:
    agent, used = make(VECTOR, CONTINUOUS), []
    nets = agent.nets
    carry, data, action = agent.context(agent.init_train(2), batch(agent))

    def noted(op: Any, place: int) -> Any:
        return lambda *args: used.append(args[place]) or op(*args)

    ops: Any = SimpleNamespace(observe=noted(agent.ops.observe, 6), rollout=noted(agent.ops.rollout, 4))
    open_loop(ops, nets.enc, nets.dyn, nets.dec, carry, data, action, torch.Generator().manual_seed(3))
    noise = nets.latent.noise(2, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat(used, 1), noise)
