"""Encoding all pictures: it goes on where it was saved, and says what is wrong with its file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdream import rundir
from fastdream.config import Config
from fastdream.recording import Recording
from fastdream.rundir import StorageError
from fastdream.stages import fit
from fastdream.stages.fit import Encode, Latents
from fastdream.stages.session import Session

from .run_tools import CPU
from .stages_tools import StopIn, opened, run, tiny

pytest.importorskip("cma", reason="what the last stage is done by")


def encode_on(config: Config, folder: Path) -> list[int]:
    """Where each advance of the stage began that was resumed in that folder, until it was done."""
    began: list[int] = []

    def use(session: Session) -> None:
        stage = session.stage
        assert isinstance(stage, Encode), stage
        while stage.done < stage.units:
            began.append(stage.done)
            stage.advance()

    opened(config, folder, use)
    return began


def test_encoding_goes_on_where_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "ENCODED", 32)
    config = tiny()
    run(config, tmp_path, StopIn("encode", 64))
    path = tmp_path / "latents.npy"
    saved = path.read_bytes()
    assert encode_on(config, tmp_path) == [64, 96]
    whole = path.read_bytes()
    shape = np.load(path).shape
    assert shape == (Recording(tmp_path / "rollouts", {}).rows, 2, 4) and whole.startswith(saved)
    # A process that was killed wrote more than it saved; what it wrote last may be anything.
    path.write_bytes(saved + b"x" * 100)
    assert encode_on(config, tmp_path) == [64, 96] and path.read_bytes() == whole
    # What is lost is made again.
    path.write_bytes(saved[:-1])
    assert encode_on(config, tmp_path) == [0, 32, 64, 96] and path.read_bytes() == whole
    path.unlink()
    assert encode_on(config, tmp_path) == [0, 32, 64, 96] and path.read_bytes() == whole


def test_latents_are_what_vision_makes_of_each_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "ENCODED", 32)
    config = tiny()
    run(config, tmp_path, StopIn("memory", 0))

    def use(session: Session) -> None:
        rows = torch.arange(session.recording.rows)
        latents = session.latents().at(rows.numpy(), CPU)
        with torch.no_grad():
            mean, logvar = session.agent.vision.encode(torch.from_numpy(np.array(session.recording["image"])))
        assert not torch.allclose(mean, logvar, atol=0.01)
        torch.testing.assert_close(latents, {"mean": mean, "logvar": logvar}, rtol=0.001, atol=1e-4)

    opened(config, tmp_path, use)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], "cannot be read: mmap length"),
        (lambda whole: b"", "cannot be read"),
        (lambda whole: b"PK" + whole[2:], "cannot be read"),
        (lambda whole: None, "cannot be read: .*No such file"),
    ],
    ids=["cut", "empty", "other", "gone"],
)
def test_latents_that_cannot_be_read_say_so(damage: Any, message: str, tmp_path: Path):
    path = tmp_path / "latents.npy"
    np.save(path, np.zeros((5, 2, 4), np.float16))
    with pytest.raises(StorageError, match="has 5 rows, and 6 were recorded"):
        Latents(path, 6)
    damaged = damage(path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(StorageError, match=f"latents.npy {message}.*restore it, or train anew"):
        Latents(path, 5)


def test_a_disk_that_refuses_latents_is_named(tmp_path: Path):
    config = tiny()
    run(config, tmp_path, StopIn("encode", 0))

    def use(session: Session) -> None:
        session.encoded.mkdir()
        with pytest.raises(StorageError, match=r"cannot write .*latents.npy"):
            session.stage.advance()

    opened(config, tmp_path, use)


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("vision", [f"rollouts/{name}" for name in ("image.bin", "action.bin", "episodes.jsonl", "")]),
        ("memory", ["latents.npy", ""]),
    ],
)
def test_what_a_stage_made_is_on_the_disk_before_checkpoints_of_the_next_count_on_it(
    stage: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[Path] = []
    monkeypatch.setattr(rundir, "sync", synced.append)
    counted: list[list[Path]] = []

    class Noting(StopIn):
        def __bool__(self) -> bool:
            if stop := super().__bool__():
                counted.append([*synced])
            return stop

    # As where no checkpoint was due while pictures were encoded.
    monkeypatch.setattr(Encode, "state_dict", lambda self: {"done": self.done})
    run(tiny(), tmp_path, Noting(stage, 0))
    assert {tmp_path / file for file in files} <= {*counted[0]}
