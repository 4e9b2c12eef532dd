"""Recordings by other hands: files, names, types and ends that are not as this library would write them."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream.datasets import DatasetError, Recorded, Resized, find, survey
from fastdream.replay import Replay
from fastdream.spaces import Space

from .dataset_tools import Arrays, episode, save_hdf5, save_npz

SPACES = {"vector": Space("vector", (3,))}, {"action": Space("vector", (2,), low=-1, high=1)}


def look(folder: Path, *episodes: Arrays, spaces: Any = None) -> Any:
    return survey(find(str(save_npz(folder, *episodes))), spaces)


def filled(folder: Path, *episodes: Arrays) -> dict[str, np.ndarray]:
    """What a replay gets of them."""
    data = Recorded("set", find(str(save_npz(folder, *episodes))))
    spaces = {**data.obs_space, **{f"action/{key}": space for key, space in data.act_space.items()}}
    spec: Any = {key: (space.shape, space.dtype) for key, space in spaces.items()}
    spec |= {
        "reward": ((), np.float32),
        "is_first": ((), bool),
        "is_last": ((), bool),
        "is_terminal": ((), bool),
    }
    replay = Replay(spec, data.survey.steps, 1, 2, online=False)
    data.fill(replay)
    return replay.stream(0)


@pytest.mark.parametrize("content", ["array", "bytes", "text"])
def test_what_is_no_archive_is_not_offered_to_be_unpickled(content: str, tmp_path: Path):
    save_npz(tmp_path, episode())
    path = tmp_path / "zzz.npz"
    if content == "array":
        np.save(tmp_path / "one.npy", np.zeros(3))
        (tmp_path / "one.npy").rename(path)
    else:
        path.write_bytes(b"\x80\x04K\x01." if content == "bytes" else b"none")
    with pytest.raises(DatasetError, match=r"zzz\.npz cannot be read: it is no npz archive"):
        survey(find(str(tmp_path)))


def test_a_file_whose_packed_bytes_are_damaged(tmp_path: Path):
    (path,) = save_npz(tmp_path, episode()).glob("*.npz")
    data = bytearray(path.read_bytes())
    # The packed bytes of the first entry follow its header, 30 bytes with the lengths of a name and of more in its end.
    begin = 30 + sum(int.from_bytes(data[at : at + 2], "little") for at in (26, 28))
    data[begin] = 0b111  # a kind of block that there is not
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"\.npz cannot be read: Error -3 while decompressing"):
        survey(find(str(tmp_path)))


def test_an_archive_that_holds_more_than_arrays(tmp_path: Path):
    (path,) = save_npz(tmp_path, episode()).glob("*.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "mine")
    with pytest.raises(DatasetError, match=r"\.npz: 'notes.txt' is no array"):
        survey(find(str(tmp_path)))


def test_hidden_files_are_left_out(tmp_path: Path):
    """macOS packs ._name beside name."""
    save_npz(tmp_path, episode())
    (tmp_path / "._episode.npz").write_bytes(b"\0\5\26\7")
    assert survey(find(str(tmp_path))).episodes == 1
    path = save_hdf5(tmp_path / "shards" / "a.hdf5", episode(5, picture=True))
    (path.parent / "._a.hdf5").write_bytes(b"\0\5\26\7")
    assert survey(find(str(path.parent))).episodes == 1


def test_hdf5_entries_that_are_no_arrays(tmp_path: Path):
    h5py = pytest.importorskip("h5py", reason="h5py is in the extra 'offline'")
    path = save_hdf5(tmp_path / "a.hdf5", episode(5, picture=True))
    for entry, message in (
        (3.0, "a.hdf5: 'reward' is no array"),
        (h5py.ExternalLink("nowhere.h5", "/x"), "a.hdf5 cannot be read: .*can't open"),
    ):
        with h5py.File(path, "a") as file:
            del file["reward"]
            file["reward"] = entry
        with pytest.raises(DatasetError, match=message):
            survey(find(str(path)))


@pytest.mark.parametrize(
    "key", ["done", "dones", "Terminals", "timeouts", "terminated", "truncation", "next_obs", "next_vector"]
)
def test_ends_under_other_names_are_no_observations(key: str, tmp_path: Path):
    data = episode()
    del data["is_terminal"], data["discount"]
    data[key] = data["is_last"]
    # With a task, only what it shows is learned from; without ends, too.
    following = key.startswith("next")
    assert not following or look(tmp_path, data, spaces=SPACES).episodes == 1
    for spaces in (None,) if following else (None, SPACES):
        with pytest.raises(DatasetError, match=rf"\.npz: '{key}' would be an observation; (call|leave)"):
            look(tmp_path, data, spaces=spaces)
    # One whose name only begins like that of the next observation may be one.
    assert look(tmp_path, episode() | {"next_goal": np.zeros(13)}).episodes == 1
    # The task may show something of that name.
    obs = SPACES[0] | {key: Space("vector", ())}
    assert look(tmp_path, data, spaces=(obs, SPACES[1])).episodes == 1
    # Or the ends are said under the names that they have here, and only those of the task are learned from.
    said = data | {"is_terminal": data["is_last"]}
    assert look(tmp_path, said, spaces=SPACES).episodes == 1
    with pytest.raises(DatasetError, match=f"'{key}' would be an observation"):
        look(tmp_path, said)


def test_numbers_that_float32_cannot_hold(tmp_path: Path):
    for key in ("vector", "reward"):
        data = episode()
        data[key] = data[key].astype(np.float64)
        data[key][4] = -1e39
        with pytest.raises(
            DatasetError, match=rf"'{key}' contains -1e\+39, more than float32 holds, at record 4"
        ):
            look(tmp_path, data)


def test_whole_numbers_below_zero_are_no_classes(tmp_path: Path):
    data = episode()
    data["action"] = np.resize([0, 1, -1], 13)
    with pytest.raises(
        DatasetError, match="'action/action' holds -1; classes count from 0, and amounts must be"
    ):
        look(tmp_path, data)


def test_what_stands_beside_a_reset_is_no_action(tmp_path: Path):
    data = episode()
    taken = np.resize([0, 1, 2], 12).tolist()
    for beside, said in ((5, 2), (0, 0), (-1, 0)):
        data["action"] = np.array([beside, *taken])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert look(tmp_path, data).act_space == {"action": Space("discrete", (), 3)}
            assert filled(tmp_path, data)["action/action"].tolist() == [-1, *taken]
        about = [str(warning.message) for warning in caught]
        assert len(about) == said and all("has an action beside its first" in text for text in about), about
    data["action"] = np.where(data["is_first"], np.nan, 0.5)[:, None]
    assert filled(tmp_path, data)["action/action"].tolist() == [[0.0]] + [[0.5]] * 12


def test_one_hots_of_whole_numbers_are_those_of_floats(tmp_path: Path):
    data = episode()
    data["action"] = np.eye(4, dtype=np.int64)[np.resize([0, 1, 3], 13)]
    data["action"][0] = 0
    assert look(tmp_path, data).act_space == {"action": Space("discrete", (), 4)}
    assert filled(tmp_path, data)["action/action"].tolist() == [-1, *np.resize([1, 3, 0], 12)]
    data["action"][3] = 1  # several at once: these are switches
    assert look(tmp_path, data).act_space == {"action": Space("discrete", (4,), 2)}


def test_pictures_of_one_plane(tmp_path: Path):
    data = episode(picture=True, size=20)
    grey = data | {"image": data["image"][..., 0]}
    assert look(tmp_path, grey).obs_space == {"image": Space("image", (20, 20, 1))}
    assert (filled(tmp_path, grey)["image"] == data["image"][..., :1]).all()
    assert survey(Resized(find(str(tmp_path)), 16)).obs_space == {"image": Space("image", (16, 16, 1))}
    small = episode() | {"vector": data["image"][:13, :4, :4, 0]}
    assert look(tmp_path, small).obs_space == {"vector": Space("vector", (4, 4))}


def test_observations_that_are_called_as_latents_are(tmp_path: Path):
    data = episode() | {"deter": np.arange(13, dtype=np.float32)}
    assert filled(tmp_path, data)["deter"].tolist() == list(range(13))


def test_actions_that_stand_where_they_were_chosen_are_pointed_out(tmp_path: Path):
    shifted = [episode(seed=seed) for seed in range(2)]
    for data in shifted:
        data["action"] = np.roll(data["action"], -1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(tmp_path / "led here", episode(), episode(seed=1)).episodes == 2
        assert look(tmp_path / "one of both", episode(), shifted[1]).episodes == 2
    with pytest.warns(UserWarning, match="every episode has an action beside its first observation"):
        look(tmp_path / "led away", *shifted)


def test_a_reset_alone_counts_in_no_number(tmp_path: Path):
    def found(folder: str, *several: Arrays) -> Any:
        keys = "vector", "action", "reward", "is_first"
        return look(tmp_path / folder, {key: np.concatenate([data[key] for data in several]) for key in keys})

    played, lone = episode(5, 0), {key: value[:1] for key, value in episode(5, 1).items()}
    both, without = found("both", played, lone), found("played", played)
    assert both.lengths == (5, 0) and str(both) == str(without)
    assert str(both).startswith("1 episode of 5 steps, ")
    others = {"steps": 7, "digest": both.digest}  # resets are records
    assert both.summary() == without.summary() | others
    with pytest.raises(DatasetError, match="holds no episode but lone resets"):
        found("lone", lone, lone)
