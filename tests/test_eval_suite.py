"""What an agent is evaluated in: a task, and options of its suite as its run had them or as they are asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastdream import eval as evaluation
from fastdream import presets, train
from fastdream.envs import dummy

from .dataset_tools import episode, save_npz
from .test_badinput import SMALL


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in episodes of 7 steps."""
    logdir = tmp_path_factory.mktemp("run")
    train.main([*SMALL, "--task", "dummy_vector", "--suite.length", "7", "--logdir", str(logdir)])
    return logdir


def lengths(capsys: pytest.CaptureFixture[str], logdir: Path, *args: str) -> set[int]:
    capsys.readouterr()
    evaluation.main(["--logdir", str(logdir), "--episodes", "2", "--json", *args])
    return set(json.loads(capsys.readouterr().out)["lengths"])


def test_options_are_those_of_the_run_unless_others_are_asked_for(
    finished: Path, capsys: pytest.CaptureFixture[str]
):
    assert lengths(capsys, finished) == {7}
    assert lengths(capsys, finished, "--suite.length", "4") == {4}
    # Those of another task of the suite are the run's, too.
    assert lengths(capsys, finished, "--task", "dummy_slow") == {7}
    assert lengths(capsys, finished, "--task", "dummy_slow", "--suite.length", "5") == {5}


def test_a_score_may_be_of_more_than_an_episode_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dummy.Options, "scored", lambda self: replace(self, length=9), raising=False)
    args = ["--task", "dummy_vector", "--suite.length", "3", "--steps", "16", "--logdir", str(tmp_path)]
    train.main([*SMALL, *args, "--eval.final-episodes", "2", "--log.outputs", "jsonl"])
    episodes = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert {json.loads(line)["episode/length"] for line in episodes} == {3}
    assert set(json.loads((tmp_path / "eval.json").read_text())["lengths"]) == {9}
    assert lengths(capsys, tmp_path) == {9}
    assert lengths(capsys, tmp_path, "--suite.length", "4") == {4}


def test_atari_is_scored_by_games_also_where_training_ends_with_a_life():
    config = presets.resolve("atari_breakout", agent="dreamer_v1")
    assert config.suite.lives == "reset"
    assert evaluation.suite_of(config, "") == replace(config.suite, lives="unused")


def test_actions_are_chosen_as_the_run_evaluates_itself_unless_others_are_asked_for(tmp_path: Path):
    args = ["--task", "dummy_vector", "--steps", "8", "--eval.mode", "mode", "--logdir", str(tmp_path)]
    train.main([*SMALL, *args])
    assert evaluation.parse(["--logdir", str(tmp_path)]).mode == "mode"
    assert evaluation.parse(["--logdir", str(tmp_path), "--mode", "sample"]).mode == "sample"
    assert evaluation.parse(["--logdir", str(tmp_path / "nowhere")]).mode == "sample"


def test_what_learned_from_a_dataset_is_played_as_it_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = save_npz(tmp_path / "set", *(episode(20, seed, width=4) for seed in range(3)))
    args = ["--preset", "debug", "--train.batch-size", "2", "--train.batch-length", "4", "--steps", "10"]
    train.main([*args, "--dataset", str(data), "--logdir", str(tmp_path / "run")])
    task = ["--task", "dummy_continuous"]
    assert lengths(capsys, tmp_path / "run", *task) == {20}
    assert lengths(capsys, tmp_path / "run", *task, "--suite.length", "6") == {6}


@pytest.mark.parametrize("parallel", ["yes", "no"])
def test_what_an_environment_prints_is_no_result(
    parallel: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / f"loud_{parallel}.py").write_text(
        "from fastdream.envs import make\n"
        "def loud(seed):\n"
        "    env, step = make('dummy_vector', seed, length=4), None\n"
        "    step, env.step = env.step, lambda action: (print('physics begins'), step(action))[1]\n"
        "    return env\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = ["--task", f"loud_{parallel}:loud", "--env.parallel", parallel, "--steps", "8"]
    train.main([*SMALL, *task, "--logdir", str(tmp_path / "run")])
    capfd.readouterr()
    evaluation.main(["--logdir", str(tmp_path / "run"), "--episodes", "1", "--json"])
    out, err = capfd.readouterr()
    assert json.loads(out)["lengths"] == [4] and err.count("physics begins") == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suite.lenght", "4"], "--suite.length"),
        (["--suite.length", "many"], "suite.length"),
        (["--task", "dummy_slwo"], "did you mean 'dummy_slow'"),
        (["--task", "dumy_slow"], "unknown task 'dumy_slow'; did you mean 'dummy_slow'"),
        (["--task", "dummy_image", "--suite.size", "32"], "the agent observes"),
        (["--episodes", "0"], "--episodes 0: it must be a number of at least 1"),
        (["--episodes", "0e3"], "--episodes 0: it must be a number of at least 1"),
        (["--seed", "9" * 23], "99999: it must be less than"),
        (["--replay.online"], "--replay.online"),
        (["--logdir", "nowhere"], "nowhere holds no run"),
        (["--logdir", "nowhere", "--suite.length", "4"], "--suite.length"),
    ],
)
def test_what_cannot_be_played_is_refused(
    args: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit:
        evaluation.main(["--logdir", str(finished), *args])
    assert exit.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_help_shows_them(finished: Path, capsys: pytest.CaptureFixture[str]):
    for where, shown in ((str(finished), True), ("nowhere", False)):
        with pytest.raises(SystemExit) as exit:
            evaluation.main(["--logdir", where, "--help"])
        assert exit.value.code == 0
        text = capsys.readouterr().out
        assert "--episodes" in text and ("--suite.length" in text) == shown
