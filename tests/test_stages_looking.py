"""Whoever looks at a run in stages that is not done: its rollouts are left alone, and what is missing is said."""

from pathlib import Path

import pytest

from fastdream.agents.world_models import WorldModels
from fastdream.restore import load_agent
from fastdream.stages import pictures
from fastdream.stages.session import Session
from fastdream.train import describe

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
