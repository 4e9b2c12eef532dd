"""Whoever looks at a run in stages that is not done: its rollouts are left alone, and what is missing is said."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import train
from fastdream.agents.world_models import WorldModels
from fastdream.driver import Voice
from fastdream.recording import Recording
from fastdream.restore import load_agent
from fastdream.stages import pictures
from fastdream.stages.collect import recording_spec
from fastdream.stages.evolve import Dreams
from fastdream.stages.fit import Latents
from fastdream.stages.session import Session
from fastdream.train import describe

from .run_tools import CPU
from .stages_tools import StopIn, opened, run, tiny

pytest.importorskip("cma", reason="what the last stage is done by")


def test_looking_at_a_run_that_records_leaves_its_rollouts_alone(tmp_path: Path):
    run(tiny(), tmp_path, StopIn("collect", 42))
    image = tmp_path / "rollouts" / "image.bin"
    with image.open("ab") as file:  # of an episode that is being written
        file.write(b"more")
    before = image.read_bytes()
    opened(tiny(), tmp_path / "another", lambda session: pictures.of_run(tmp_path, session.agent, 0))
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "missing"), [(("memory", 2), True), (("control", 1), True), (("", 0), False)]
)
def test_a_controller_that_is_still_to_come_is_said(place: tuple[str, int], missing: bool, tmp_path: Path):
    config = tiny()

    def use(session: Session) -> None:
        describe(config, session.parts, "")
        stop = StopIn(*place)
        stop.session = session
        session.run(stop)

    opened(config, tmp_path, use)
    agent, _, loaded = load_agent(tmp_path)
    assert isinstance(agent, WorldModels) and agent.controls.any() == (not missing)
    told = [note for note in loaded.notes if f"stage {place[0]}, before C was chosen" in note]
    assert len(told) == len(loaded.notes) == missing


@pytest.fixture
def looked_at(tmp_path: Path) -> Iterator[tuple[WorldModels, Recording]]:
    """An untrained agent, and episodes of 10, 25, 22 and 20 steps."""
    with train.make_driver(tiny(), Voice()) as driver:
        agent: Any = train.make_agent(
            tiny(temperature=1.5, length=7), driver.obs_space, driver.act_space, CPU
        )
    recording, rng = Recording(tmp_path / "rollouts", recording_spec(agent)), np.random.default_rng(0)
    for length in (10, 25, 22, 20):
        image = rng.integers(0, 256, (length, 64, 64, 3), np.uint8)
        action, first = rng.uniform(-1, 1, (length, agent.controller.actions)), np.arange(length) == 0
        recording.add({"image": image, "action": action, "first": first, "terminal": first})
    yield agent, recording


def made_of(agent: WorldModels, image: Any) -> np.ndarray:
    """What V makes of pictures, in 0 to 255."""
    with torch.no_grad():
        return agent.vision.decode(agent.vision.encode(torch.from_numpy(np.array(image)))[0]).numpy() * 255


def test_reconstructions_stand_below_what_was_seen_from_all_over_the_rollouts(looked_at: Any):
    agent, recording = looked_at
    shown, image = pictures.reconstructions(agent, recording), recording["image"]
    assert shown.shape == (2 * 64 + pictures.GAP, 8 * 64 + 7 * pictures.GAP, 3) and shown.dtype == np.uint8
    for column, row in ((0, 0), (1, 10), (7, 76)):
        left = column * (64 + pictures.GAP)
        assert np.array_equal(shown[:64, left : left + 64], image[row])
        below = made_of(agent, image[row : row + 1])[0]
        assert abs(shown[64 + pictures.GAP :, left : left + 64] - below).max() < 0.502


def test_an_open_loop_prediction_goes_along_what_was_done_from_where_it_was_left(looked_at: Any):
    agent, recording = looked_at
    calls: list[tuple[Any, ...]] = []
    step, ops = agent.ops.lstm_mdn_step, agent.ops

    def noting(params: Any, *given: Any) -> Any:
        calls.append((given, step(params, *given)))
        return calls[-1][1]

    agent.ops = ops._replace(lstm_mdn_step=noting)
    clip = pictures.open_loop(agent, recording, 0)
    # The two episodes that go on after what is observed, as long as the shorter one.
    assert clip.shape == (22, 3 * 68, 2 * 68, 3) and len(calls) == 22 - pictures.CONTEXT
    first = 10 if np.array_equal(clip[0, 2:66, 2:66], recording["image"][10]) else 35
    rows = np.stack([np.arange(start, start + 22) for start in (first, 45 - first)])
    for t in (0, 19, 20, 21):
        for column in range(2):
            place = slice(68 * column + 2, 68 * column + 66)
            assert np.array_equal(clip[t, 2:66, place], recording["image"][rows[column, t]])
            seen = made_of(agent, recording["image"][rows[column, t]][None])[0]
            assert (abs(clip[t, 70:134, place] - seen).max() <= 1) == (t < pictures.CONTEXT)
    mean = torch.stack(
        [agent.vision.encode(torch.from_numpy(recording["image"][row]))[0] for row in rows]
    ).detach()
    action = torch.from_numpy(recording["action"][rows])
    none = torch.zeros(2, 1, dtype=torch.bool)
    state = agent.memory.initial(2)
    for t in range(pictures.CONTEXT - 1):
        _, state = agent.memory.unroll(mean[:, t : t + 1], action[:, t : t + 1], none | (t == 0), state)
    latent = mean[:, pictures.CONTEXT - 1]
    for t, (given, after) in enumerate(calls, pictures.CONTEXT - 1):
        torch.testing.assert_close(given[:3], (*(x.detach() for x in state), latent))
        assert torch.equal(given[3], action[:, t]) and not given[4].any()
        state, latent = (after.hidden, after.cell), after.latent
    assert not torch.equal(calls[0][0][5], calls[1][0][5])  # other noise at every step


def test_a_dream_is_shown_until_it_ends_as_c_was_evolved_in_it(looked_at: Any, tmp_path: Path):
    agent, recording = looked_at
    np.save(tmp_path / "latents.npy", np.zeros((recording.rows, 2, 4), np.float16))
    latents = Latents(tmp_path / "latents.npy", recording.rows)
    agent.controls.normal_()
    told: list[Any] = []

    def dream(
        controls: Any, latent: Any, seeds: Any, generator: Any, temperature: float, length: int, trail: Any
    ) -> Any:
        assert torch.equal(controls, agent.controls[None]) and temperature == 1.5
        told.append((length, latent))
        trail += [*torch.randn(length, 1, 4)]
        return torch.tensor([min(5.0, length)])

    agent.dream = dream
    dreams = Dreams(tiny(), agent, latents, recording.starts())
    with train.make_driver(replace(tiny(), env=replace(tiny().env, count=1)), Voice()) as driver:
        both = pictures.real_and_dream(agent, driver, dreams, 3)
        again = pictures.real_and_dream(agent, driver, dreams, 3)
    assert both.shape == (21, 64, 2 * 64 + pictures.GAP, 3)
    real, dreamt = both[:, :, :64], both[:, :, 64 + pictures.GAP :]
    assert not both[:, :, 64 : 64 + pictures.GAP].any()
    assert (dreamt[1:] != dreamt[:-1]).any((1, 2, 3)).tolist() == [True] * 4 + [False] * 16
    assert np.array_equal(real, again[:, :, :64])
    assert [length for length, _ in told] == [7, 7] and torch.equal(told[0][1], told[1][1])
