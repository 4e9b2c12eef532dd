"""What can be wrong with a dataset is named by file and key, all of it at once, before any work starts."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import train
from fastdream.checkpoint import Checkpoint
from fastdream.datasets import DatasetError, Recorded, find, survey
from fastdream.spaces import Space

from .dataset_tools import Arrays, collect, episode, save_hdf5, save_npz

Spoil = Callable[[Arrays], Any]


def put(data: Arrays, key: str, place: Any, value: float) -> None:
    data[key][place] = value


FAULTS: dict[str, tuple[Spoil, str]] = {
    "no reward": (lambda d: d.pop("reward"), "'reward' is missing; it has action, discount"),
    "no action": (lambda d: d.pop("action"), "'action' is missing"),
    "no observation": (lambda d: d.pop("vector"), "there is no observation"),
    "a short array": (
        lambda d: d.update(action=d["action"][1:]),
        r"the arrays differ in length \(action/action 12, .*vector 13\); the action at t leads to the observation at t",
    ),
    "a short discount": (
        lambda d: d.update(discount=np.ones(9)),
        r"differ in length \(action/action 13, discount 9",
    ),
    "a scalar": (lambda d: d.update(vector=np.float32(1)), "'vector' is one number"),
    "rewards of two columns": (
        lambda d: d.update(reward=np.zeros((13, 2))),
        r"'reward' has shape \[13, 2\]; one number a step",
    ),
    "texts": (
        lambda d: d.update(vector=np.array(["a"] * 13)),
        "'vector' is of dtype <U1; numbers are needed",
    ),
    "nan": (lambda d: put(d, "vector", (4, 1), np.nan), "'vector' contains nan at record 4"),
    "an infinite reward": (lambda d: put(d, "reward", 3, np.inf), "'reward' contains inf at record 3"),
    "nan in actions": (lambda d: put(d, "action", 5, -np.inf), "'action/action' contains -inf at record 5"),
    "another shape": (
        lambda d: d.update(vector=np.zeros((13, 4), np.float32)),
        r"'vector' is float32 \[4\] a step where .*\.npz has \[3\]",
    ),
    "another dtype": (
        lambda d: d.update(action=d["action"].astype(int)),
        r"'action/action' is int64 \[2\] a step where .*\.npz has \[2\]",
    ),
    "another key": (
        lambda d: d.update(speed=np.zeros(13)),
        r"T000000-\S+: 'speed' is missing, which \S+T000001-\S+ has",
    ),
    "one record": (
        lambda d: d.update({k: v[:1] for k, v in d.items()}),
        "it has 1 records; a transition needs two",
    ),
    "discount of two axes": (
        lambda d: d.update(discount=np.ones((13, 1))),
        r"'discount' has shape \[13, 1\]; one number a step is needed",
    ),
    "nothing": (
        lambda d: d.update(vector=np.zeros((13, 0), np.float32)),
        r"'vector' is float32 \[0\] a step, which holds nothing",
    ),
    "four axes": (
        lambda d: d.update(vector=np.zeros((13, 3, 3, 2), np.float32)),
        r"'vector' is float32 \[3, 3, 2\] a step; pictures are uint8",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name: str, tmp_path: Path):
    spoil, message = FAULTS[name]
    bad = episode(12, 1)
    spoil(bad)
    folder = save_npz(tmp_path, episode(12, 0), bad)
    with pytest.raises(DatasetError, match=message) as error:
        survey(find(str(folder)))
    assert re.search(rf"{folder}/\S+\.npz", str(error.value))


def test_all_faults_are_named_at_once(tmp_path: Path):
    whole = [episode(6, seed) for seed in range(14)]
    for data in whole[1:]:
        data["reward"][2] = np.nan
    with pytest.raises(DatasetError) as error:
        survey(find(str(save_npz(tmp_path, *whole))))
    assert str(error.value).count("'reward' contains nan") == 10 and "and 3 more" in str(error.value)


def test_missing_values_are_no_fault(tmp_path: Path):
    data = episode()
    data["vector"][3] = -np.inf  # "not available", as environments say it
    assert survey(find(str(save_npz(tmp_path, data)))).episodes == 1
    data["vector"][3, 0] = 0.0  # but a part of them is
    with pytest.raises(DatasetError, match="'vector' contains -inf at record 3"):
        survey(find(str(save_npz(tmp_path, data))))


SPACES = {"vector": Space("vector", (3,))}, {"action": Space("vector", (2,), low=-1, high=1)}


@pytest.mark.parametrize(
    ("obs", "act", "message"),
    [
        ({"position": Space("vector", (3,))}, SPACES[1], "'position' is missing; there is .*vector"),
        (
            {"vector": Space("vector", (5,))},
            SPACES[1],
            r"'vector' is float32 \[3\] a step where float32 \[5\] is",
        ),
        ({"vector": Space("image", (3, 1, 1))}, SPACES[1], r"'vector' is float32 \[3\] a step where uint8"),
        (SPACES[0], {"action": Space("vector", (6,))}, r"'action/action' is float32 \[2\] .* float32 \[6\]"),
        (
            SPACES[0],
            {"action": Space("discrete", (), 4)},
            r"'action/action' is float32 \[2\] a step where int32",
        ),
        (SPACES[0], {"move": SPACES[1]["action"]}, "'action/move' is missing; there is action/action"),
    ],
)
def test_a_dataset_of_another_task(obs: Any, act: Any, message: str, tmp_path: Path):
    source = find(str(save_npz(tmp_path, episode())))
    with pytest.raises(DatasetError, match=message) as error:
        Recorded("set", source, (obs, act), "--task dmc_walker_walk")
    assert "set and what --task dmc_walker_walk shows and takes" in str(error.value)


@pytest.mark.parametrize("action", [-2.5, -1.01])
def test_actions_that_are_not_scaled(action: float, tmp_path: Path):
    data = episode()
    data["action"][4, 1] = action
    with pytest.raises(
        DatasetError, match=rf"'action/action' holds {action}; actions must be scaled to \[-1, 1\]"
    ):
        survey(find(str(save_npz(tmp_path, data))), SPACES)


@pytest.mark.parametrize(("action", "held"), [(7, "0 to 7"), (4, "0 to 4"), (-1, "-1 to 2")])
def test_classes_that_there_are_not(action: int, held: str, tmp_path: Path):
    data = episode(3)
    data["action"] = np.array([0, action, 1, 2])
    with pytest.raises(DatasetError, match=f"holds {held} where the classes are 0 to 3"):
        survey(find(str(save_npz(tmp_path, data))), (SPACES[0], {"action": Space("discrete", (), 4)}))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_files_that_cannot_be_read(content: bytes, tmp_path: Path):
    save_npz(tmp_path, episode())
    (tmp_path / "zzz.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"zzz\.npz cannot be read: "):
        survey(find(str(tmp_path)))


def test_a_damaged_file(tmp_path: Path):
    (path,) = save_npz(tmp_path, episode(200)).glob("*.npz")
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("vector.npy").header_offset
    data = bytearray(path.read_bytes())
    data[begin + 200 : begin + 220] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"\.npz cannot be read: "):
        survey(find(str(tmp_path)))


def test_hdf5_files_that_are_none(tmp_path: Path):
    h5py = pytest.importorskip("h5py", reason="h5py is in the extra 'offline'")
    path = save_hdf5(tmp_path / "a.hdf5", episode(5, picture=True))
    with h5py.File(path, "a") as file:
        del file["step_type"]
    with pytest.raises(
        DatasetError, match="a.hdf5: 'step_type' is missing; it has action, discount, observation"
    ):
        survey(find(str(path)))
    with h5py.File(path, "a") as file:
        file["step_type"] = np.ones(6, int)
    with pytest.raises(DatasetError, match="a.hdf5: 'step_type' does not begin with 0, a reset"):
        survey(find(str(path)))
    with h5py.File(path, "a") as file:
        del file["reward"]
        file["reward"] = np.zeros(4)
    with pytest.raises(
        DatasetError, match=r"a.hdf5: the arrays differ in length \(observation 6, .*reward 4"
    ):
        survey(find(str(path)))
    (tmp_path / "b.hdf5").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="b.hdf5 cannot be read"):
        survey(find(str(tmp_path / "b.hdf5")))


def test_datasets_that_are_not_there(tmp_path: Path):
    with pytest.raises(DatasetError, match="there is no dataset .*nowhere; it may be a folder of .npz files"):
        find(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="holds nothing to learn from; it may be"):
        find(str(tmp_path))
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DatasetError, match="file.txt holds nothing to learn from"):
        find(str(tmp_path / "file.txt"))


def test_a_minari_dataset_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("minari", reason="minari is in the extra 'offline'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(DatasetError, match="dataset 'minari:test/none-v0' is not on .*download test/none-v0"):
        find("minari:test/none-v0")


def test_missing_packages_are_named_with_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(
        ValueError, match=r"'minari', which is not installed: pip install 'fastdream\[offline\]'"
    ):
        find("minari:test/set-v0")
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"'h5py', which is not installed: pip install 'fastdream\[offline\]'"
    ):
        survey(find(str(tmp_path / "a.hdf5")))


def test_a_run_whose_replay_is_damaged(tmp_path: Path):
    collect("dummy_vector", tmp_path, steps=40)
    for path in tmp_path.glob("replay/data-*"):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DatasetError, match="no replay of .* can be read: checkpoint .* cannot be used"):
        survey(find(str(tmp_path)))


def test_a_run_without_a_replay(tmp_path: Path):
    """As those of agents that learn from rollouts."""
    collect("dummy_vector", tmp_path, steps=40)
    Checkpoint(tmp_path / "ckpt").save({"agent": {}}, step=50)
    with pytest.raises(DatasetError, match=f"{tmp_path} has no replay"):
        survey(find(str(tmp_path)))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"config": {}}', '{"config": {"task": ""}, "spaces": {"obs": 3}}']
)
def test_a_folder_that_only_looks_like_a_run(text: str, tmp_path: Path):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DatasetError, match="config.json is not the config.json of a run"):
        find(str(tmp_path))


def test_the_command_refuses_before_it_makes_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = episode()
    bad["vector"][2] = np.nan
    folder, logdir = save_npz(tmp_path / "set", bad), tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        train.main(["--dataset", str(folder), "--preset", "debug", "--logdir", str(logdir)])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.startswith("error: ") and "Traceback" not in error
    assert ".npz: 'vector' contains nan at record 2" in error and not logdir.exists()


def test_a_folder_that_cannot_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(self: Path, pattern: str) -> list[Path]:
        raise FileNotFoundError(2, "No such file or directory", str(self / "inner"))

    monkeypatch.setattr(Path, "rglob", gone)
    with pytest.raises(DatasetError, match="cannot be searched for episodes: .*inner"):
        find(str(tmp_path))
