"""Replays and other datasets as Minari datasets, and back."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import train as training
from fastdream.datasets import __main__ as command
from fastdream.datasets import episodes, find, survey
from fastdream.datasets.export import export
from fastdream.spaces import FLAGS

from .dataset_tools import Arrays, collect, episode, save_npz


@pytest.fixture(autouse=True)
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("minari", reason="minari is in the extra 'offline'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "home"))
    return module


def read(name: str) -> tuple[Any, list[Arrays]]:
    source = find(name)
    facts = survey(source)
    return facts, list(episodes(source, facts.obs_space, facts.act_space))


@pytest.mark.parametrize("task", ["dummy_vector", "dummy_mixed", "dummy_image", "gym_CartPole-v1"])
def test_a_run_s_replay_there_and_back(task: str, tmp_path: Path):
    collect(task, tmp_path / "run", steps=100)
    export(find(str(tmp_path / "run")), "test/set-v0")
    facts, before = read(str(tmp_path / "run"))
    again, after = read("minari:test/set-v0")
    assert (again.obs_space.keys(), again.act_space.keys()) == (
        facts.obs_space.keys(),
        facts.act_space.keys(),
    )
    for key, space in {**facts.obs_space, **facts.act_space}.items():
        there = {**again.obs_space, **again.act_space}[key]
        assert there == space, key
    assert again.returns == pytest.approx(facts.returns) and again.lengths == facts.lengths
    for left, right in zip(before, after, strict=True):
        for key in (*facts.obs_space, "reward", *FLAGS, *(f"action/{key}" for key in facts.act_space)):
            np.testing.assert_allclose(right[key], left[key], rtol=1e-6, atol=1e-6, err_msg=key)


def test_the_description_says_in_which_units_a_run_acted(minari: Any, tmp_path: Path):
    export(find(str(save_npz(tmp_path / "set", episode(5, 0)))), "test/set-v0")
    export(find(str(tmp_path / "set")), "test/run-v0", task="gym_Pendulum-v1")
    about = [
        minari.load_dataset(f"test/{name}-v0").storage.metadata["description"] for name in ("set", "run")
    ]
    assert "[-1, 1]" not in about[0]
    assert "of gym_Pendulum-v1, its actions with finite bounds scaled to [-1, 1], classes from 0" in about[1]


def test_minari_s_library_reads_what_was_written(minari: Any, tmp_path: Path):
    whole = [episode(5, 0), episode(8, 1, terminal=True)]
    export(find(str(save_npz(tmp_path / "set", *whole))), "test/set-v0")
    dataset = minari.load_dataset("test/set-v0")
    assert dataset.total_episodes == 2 and dataset.total_steps == 13
    for found, want in zip(dataset.iterate_episodes(), whole, strict=True):
        assert len(found.observations) == len(found.actions) + 1
        assert (found.observations == want["vector"]).all() and (found.actions == want["action"][1:]).all()
        assert (found.rewards == want["reward"][1:]).all()
        assert found.terminations[-1] == want["is_terminal"][-1] != found.truncations[-1]
        assert not found.terminations[:-1].any() and not found.truncations[:-1].any()


def test_an_id_that_is_taken_keeps_its_dataset(minari: Any, tmp_path: Path):
    for name, seed in (("one", 0), ("two", 1)):
        save_npz(tmp_path / name, episode(5, seed))
    export(find(str(tmp_path / "one")), "test/set-v0")
    with pytest.raises(ValueError, match="already exist"):
        export(find(str(tmp_path / "two")), "test/set-v0")
    assert read("minari:test/set-v0")[0].returns == survey(find(str(tmp_path / "one"))).returns


def test_a_reset_that_nothing_follows_is_no_episode_there(minari: Any, tmp_path: Path):
    begun = {key: value[:1] for key, value in episode(5, 1).items()}
    file = {key: np.concatenate([value, begun[key]]) for key, value in episode(5, 0).items()}
    there = str(tmp_path / "there")
    export(find(str(save_npz(tmp_path / "set", file))), "test/set-v0", root=Path(there))
    assert os.environ["MINARI_DATASETS_PATH"] == str(tmp_path / "home")  # as it was before
    assert read(f"{there}/test/set-v0")[0].lengths == (5,)


def test_an_exported_run_is_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [
        "--preset",
        "debug",
        "--train.batch-size",
        "2",
        "--train.batch-length",
        "4",
        "--log.outputs",
        "console",
    ]
    run, root = str(tmp_path / "run"), tmp_path / "root"
    first = [
        *flags,
        "--task",
        "dummy_vector",
        "--env.count",
        "2",
        "--eval.final-episodes",
        "0",
        "--steps",
        "120",
    ]
    training.main([*first, "--logdir", run])
    command.main(["export", run, "test/set-v0", "--root", str(root)])
    written = capsys.readouterr().out
    assert f"--dataset {root / 'test/set-v0'}" in written and not (tmp_path / "home").exists()
    command.main(["check", str(root / "test" / "set-v0")])
    assert capsys.readouterr().out.startswith("Minari: ")
    offline = ["--dataset", str(root / "test" / "set-v0"), "--steps", "20", "--logdir", str(tmp_path / "b")]
    training.main([*flags, *offline])
    assert "done after 20 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        command.main(["check", str(tmp_path / "b")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and "learned from a dataset and has no replay of its own: use" in error
    with pytest.raises(SystemExit):  # the id is taken
        command.main(["export", run, "test/set-v0", "--root", str(root)])
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "name, meant",
    [("walker", "my/walker-v0"), ("my/", "my/my-v0"), ("a/b/c/d-v1", "my/d-v1"), ("", "my/name-v0")],
)
def test_an_id_that_is_none_is_answered_with_one(
    name: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = save_npz(tmp_path / "set", episode(5, 0))
    with pytest.raises(SystemExit) as exit:
        command.main(["export", str(folder), name, "--root", str(tmp_path)])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert f"error: {name!r} is no id of Minari's" in error and f"such as {meant}\n" in error


def test_a_disk_that_refuses_leaves_the_id_free(
    minari: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    args = ["export", str(save_npz(tmp_path / "set", episode(5, 0))), "my/set-v0", "--root"]

    def full(name: str, *_: Any, **__: Any) -> None:
        (tmp_path / "root" / name / "data").mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(minari, "create_dataset_from_buffers", full)
        with pytest.raises(SystemExit):
            command.main([*args, str(tmp_path / "root")])
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path}/root/my/set-v0: ") and "No space left" in error
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        command.main([*args, str(tmp_path / "file")])
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path}/file/my/set-v0: ")
    command.main([*args, str(tmp_path / "root")])
    assert "wrote 1 episode of 5 steps" in capsys.readouterr().out
