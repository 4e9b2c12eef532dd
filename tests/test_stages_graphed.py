"""Updates of V and M that are recorded are those that are done anew, bit for bit; tapes stand in for graphs."""

from pathlib import Path

import pytest
import torch

from fastdream import transfer
from fastdream.stages import graphed

from .graph_tools import Tapes, assert_equal
from .stages_tools import run, tiny
from .transfer_tools import LateCopies


def test_graphed_updates_are_the_eager_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cma", reason="what the last stage is done by")
    done, eager = run(tiny(), tmp_path / "eager")
    recorders: list[Tapes] = []

    def recorder(device: torch.device) -> Tapes:
        recorders.append(Tapes())
        return recorders[-1]

    monkeypatch.setattr(graphed, "recorder_for", recorder)
    monkeypatch.setattr(transfer, "copies_for", lambda device: LateCopies())
    again, ours = run(tiny(), tmp_path / "graphed")
    assert done and again
    assert [len(tapes.tapes) for tapes in recorders] == [1, 1]
    assert_equal(ours, eager)
