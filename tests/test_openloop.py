"""The picture of an open-loop prediction: what is shown where."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import openloop
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


def test_a_dream_goes_on_from_the_last_state_that_was_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openloop, "SEQUENCES", 2)
    agent, calls = make(VECTOR, CONTINUOUS), []
    nets = agent.nets
    carry, data, action = agent.context(agent.init_train(3), batch(agent, 3))

    def noted(op: Any) -> Any:
        return lambda *args: calls.append((args, op(*args))) or calls[-1][1]

    ops: Any = SimpleNamespace(observe=noted(agent.ops.observe), rollout=noted(agent.ops.rollout))
    generator = torch.Generator().manual_seed(3)
    shown = open_loop(ops, nets.enc, nets.dyn, nets.dec, carry, data, action, generator)
    (seen, post), (dreamt, dream) = calls
    assert torch.equal(torch.cat([seen[3], dreamt[3]], 1), action[:2]) and seen[3].shape[1] == 3
    assert torch.equal(dreamt[1], post.deter[:, -1]) and torch.equal(dreamt[2], post.stoch[:, -1])
    # Every step is drawn with noise of its own.
    noise = nets.latent.noise(2, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat([seen[6], dreamt[4]], 1), noise)
    deter, stoch = (torch.cat([getattr(post, key), getattr(dream, key)], 1) for key in ("deter", "stoch"))
    told = nets.dec.pred(nets.dec(deter, nets.dyn.flat(stoch)))
    for key, (true, imagined) in shown.items():
        assert np.array_equal(true, data[key][0].numpy()) and np.array_equal(imagined, told[key][0].detach())
    assert [*shown] == ["position"]  # a class is no curve
