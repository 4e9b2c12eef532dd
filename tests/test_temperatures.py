"""benchmarks/world_models.py: what the temperature of dreams does, of small runs."""

import csv
from pathlib import Path
from types import ModuleType

import pytest

from fastdream import train
from fastdream.train import describe

from .bench_tools import load
from .stages_tools import StopIn, opened, tiny


@pytest.fixture
def script() -> ModuleType:
    pytest.importorskip("cma", reason="what the last stage is done by")
    return load("world_models")


def small_run(logdir: Path, stop: StopIn) -> None:
    config = tiny(test_rollouts=2)

    def use(session):
        describe(config, session.parts, "")
        stop.session = session
        session.run(stop)

    opened(config, logdir, use)


def test_each_temperature_has_its_line_and_those_that_are_there_stay(script: ModuleType, tmp_path: Path):
    small_run(tmp_path / "run", StopIn("", 0))
    out = tmp_path / "scores.csv"
    args = ["--logdir", str(tmp_path / "run"), "--out", str(out), "--generations", "1", "--episodes", "2"]
    script.main([*args, "--temperatures", "0.5"])
    first = out.read_text()
    script.main([*args, "--temperatures", "0.5", "1.5"])
    assert out.read_text().startswith(first)
    lines = list(csv.DictReader(out.read_text().splitlines()))
    assert [line["temperature"] for line in lines] == ["random", "0.5", "1.5"]
    assert all(line["episodes"] == "2" and float(line["real_std"]) >= 0 for line in lines)
    assert all(float(line["dream"]) > 0 for line in lines[1:]) and not lines[0]["dream"]


def test_a_run_without_a_memory_is_said_to_have_none(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small_run(tmp_path / "run", StopIn("memory", 1))
    with pytest.raises(SystemExit):
        script.main(["--logdir", str(tmp_path / "run"), "--out", str(tmp_path / "scores.csv")])
    assert "is in stage memory, and has no memory to dream with" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv").exists()


def test_runs_of_other_agents_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--task", "dummy_vector", "--preset", "debug", "--steps", "100", "--env.parallel", "no"]
    train.main([*args, "--logdir", str(tmp_path / "run"), "--eval.final-episodes", "0"])
    with pytest.raises(SystemExit):
        script.main(["--logdir", str(tmp_path / "run"), "--out", str(tmp_path / "scores.csv")])
    assert "is a run of dreamer_v3" in capsys.readouterr().err
