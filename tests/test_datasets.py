"""Every layout of a dataset gives the same records: shapes, times, flags and spaces."""

from pathlib import Path
from typing import Any

import gymnasium.spaces as gs
import numpy as np
import pytest

from fastdream.datasets import DatasetError, Recorded, Resized, Source, episodes, find, shows_pictures, survey
from fastdream.envs import convert
from fastdream.replay import Replay
from fastdream.spaces import FLAGS, Space

from .dataset_tools import Arrays, collect, episode, minari_episode, returns, save_hdf5, save_npz

VECTOR = {"vector": Space("vector", (3,))}
IMAGE = {"image": Space("image", (64, 64, 3))}
ACTION = {"action": Space("vector", (2,), low=-1, high=1)}


def read(source: Source) -> list[Arrays]:
    facts = survey(source)
    return list(episodes(source, facts.obs_space, facts.act_space))


def check_equal(found: Arrays, want: Arrays, key: str) -> None:
    """Whether records hold what was stored, with the flags of one episode."""
    assert (found[key] == want[key]).all()
    assert (found["action/action"] == want["action"]).all()
    assert (found["reward"] == want["reward"]).all() and found["reward"].dtype == np.float32
    for flag in FLAGS:
        assert (found[flag] == want[flag]).all(), flag


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("minari", reason="minari is in the extra 'offline'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


def create(minari: Any, name: str, buffers: list[Any], obs: gs.Space, act: gs.Space, **options: Any) -> None:
    with pytest.warns(UserWarning):  # about the author and the like, that a test has not
        minari.create_dataset_from_buffers(name, buffers, observation_space=obs, action_space=act, **options)


def test_episodes_in_npz_files(tmp_path: Path):
    whole = [episode(12, 0), episode(7, 1, terminal=True)]
    source = find(str(save_npz(tmp_path / "set", *whole)))
    facts = survey(source)
    assert (facts.obs_space, facts.act_space) == (VECTOR, ACTION)
    assert (facts.episodes, facts.steps, facts.lengths) == (2, 13 + 8, (12, 7))
    assert facts.returns == pytest.approx(returns(*whole))
    for found, want in zip(read(source), whole, strict=True):
        check_equal(found, want, "vector")


def test_an_episode_of_v_d4rl_has_501_records(tmp_path: Path):
    data = episode(500, picture=True)
    folder = save_npz(tmp_path / "walker_walk" / "random" / "64px", data)
    facts = survey(find(str(tmp_path / "walker_walk")))  # files are found at any depth
    assert facts.steps == 501 and facts.lengths == (500,) and facts.obs_space == IMAGE
    check_equal(read(find(str(folder)))[0], data, "image")
    assert shows_pictures(str(folder))


def test_flags_that_older_files_lack_follow_from_the_discount(tmp_path: Path):
    whole = [episode(5, 0), episode(5, 1, terminal=True)]
    bare = [{k: v for k, v in data.items() if k not in FLAGS} for data in whole]
    for data in bare:
        data["discount"] *= 0.99  # only 0 is an end
    for found, want in zip(read(find(str(save_npz(tmp_path, *bare)))), whole, strict=True):
        check_equal(found, want, "vector")


def test_what_is_no_observation_is_left_out(tmp_path: Path):
    data = episode() | {"log_success": np.zeros(13), "logprob": np.zeros(13), "dyn/deter": np.zeros((13, 2))}
    assert survey(find(str(save_npz(tmp_path, data)))).obs_space == VECTOR


def test_several_episodes_in_one_file(tmp_path: Path):
    two = [episode(4, 0), episode(6, 1)]
    joined = {key: np.concatenate([data[key] for data in two]) for key in two[0]}
    facts = survey(find(str(save_npz(tmp_path, joined))))
    assert facts.lengths == (4, 6) and facts.returns == pytest.approx(returns(*two))


def test_classes_are_inferred_from_all_episodes(tmp_path: Path):
    few, more = episode(6, 0), episode(6, 1)
    few["action"], more["action"] = np.array([0, 0, 1, 1, 0, 1, 1]), np.array([0, 3, 1, 1, 0, 1, 1])
    assert survey(find(str(save_npz(tmp_path / "a", few, more)))).act_space == {
        "action": Space("discrete", (), 4)
    }
    for data in (few, more):
        onehot = np.eye(4, dtype=np.float32)[data["action"]]
        onehot[0] = 0  # as DreamerV2 stores the reset
        data["action"] = onehot
    source = find(str(save_npz(tmp_path / "b", few, more)))
    assert survey(source).act_space == {"action": Space("discrete", (), 4)}
    assert read(source)[1]["action/action"].tolist() == [-1, 3, 1, 1, 0, 1, 1]


def test_an_action_that_was_always_the_same_had_another_beside_it(tmp_path: Path):
    data = episode(6) | {"action": np.zeros(7, np.int64)}
    assert survey(find(str(save_npz(tmp_path, data)))).act_space == {"action": Space("discrete", (), 2)}


@pytest.mark.parametrize("taken", [np.ones((7, 1)), np.eye(7, 3)])
def test_numbers_of_which_not_every_step_chooses_one_are_no_classes(taken: Any, tmp_path: Path):
    taken[0] = 0  # of the reset
    act = survey(find(str(save_npz(tmp_path, episode(6) | {"action": taken})))).act_space
    assert act == {"action": Space("vector", taken.shape[1:], low=-1, high=1)}


def test_actions_in_another_scale_are_no_bounded_actions(tmp_path: Path):
    data = episode()
    data["action"] *= 3
    assert survey(find(str(save_npz(tmp_path, data)))).act_space == {"action": Space("vector", (2,))}


def test_hdf5_shards(tmp_path: Path):
    whole = [episode(5, 0, picture=True), episode(8, 1, picture=True, terminal=True)]
    save_hdf5(tmp_path / "set" / "shard_0_110.hdf5", *whole)
    source = find(str(tmp_path / "set"))
    facts = survey(source)
    assert source.layout == "V-D4RL hdf5" and facts.obs_space == IMAGE and facts.act_space == ACTION
    for found, want in zip(read(source), whole, strict=True):
        check_equal(found, want, "image")
    assert survey(find(str(tmp_path / "set" / "shard_0_110.hdf5"))).digest == facts.digest


def test_minari_has_one_observation_more_than_actions(minari: Any, tmp_path: Path):
    whole = [episode(5, 0), episode(8, 1, terminal=True)]
    obs = gs.Box(-np.inf, np.inf, (3,), np.float32)
    buffers = [minari_episode(minari, data) for data in whole]
    create(minari, "test/set-v0", buffers, obs, gs.Box(-1, 1, (2,), np.float32))
    for name in ("minari:test/set-v0", str(tmp_path / "minari" / "test" / "set-v0")):
        source = find(name)
        facts = survey(source)
        assert (facts.obs_space, facts.act_space, facts.lengths) == (VECTOR, ACTION, (5, 8))
        for found, want in zip(read(source), whole, strict=True):
            check_equal(found, want, "vector")


@pytest.mark.parametrize("jpeg", [True, False])
def test_minari_s_pictures_are_decoded(jpeg: bool, minari: Any):
    data = episode(4, picture=True)
    # What JPEG keeps well: slow changes.
    ramp = np.linspace(0, 200, 64, dtype=np.uint8)
    data["image"] = (
        np.broadcast_to(ramp[None, :, None, None], (5, 64, 64, 3))
        + np.arange(5, dtype=np.uint8)[:, None, None, None]
    )
    spaces = gs.Box(0, 255, (64, 64, 3), np.uint8), gs.Box(-1, 1, (2,), np.float32)
    create(minari, "test/pictures-v0", [minari_episode(minari, data)], *spaces, jpeg_encoding=jpeg)
    (found,) = read(find("minari:test/pictures-v0"))
    error = np.abs(found["image"].astype(int) - data["image"]).max()
    assert error <= 4 if jpeg else error == 0


def test_minari_s_actions_are_scaled_and_counted_from_zero(minari: Any):
    data = episode(3)
    act_space = gs.Dict({"torque": gs.Box(-2, 2, (1,), np.float32), "gear": gs.Discrete(3, start=1)})
    acts = {"torque": np.array([[-2.5], [0], [1]], np.float32), "gear": np.array([1, 3, 2])}
    buffer = minari_episode(minari, data, act=acts)
    create(minari, "test/car-v0", [buffer], gs.Box(-np.inf, np.inf, (3,), np.float32), act_space)
    (found,) = read(find("minari:test/car-v0"))
    assert found["action/torque"].ravel().tolist() == [0, -1, 0, 0.5]
    assert found["action/gear"].tolist() == [-1, 0, 2, 1]


@pytest.mark.parametrize(
    "space",
    [
        gs.Box(np.array([-3, 0], np.float32), np.array([1, 5], np.float32)),
        gs.Box(-np.inf, np.inf, (2, 2), np.float32),
        gs.Discrete(5, start=-2),
        gs.MultiDiscrete([3, 3]),
        gs.MultiDiscrete([2, 4]),
        gs.MultiBinary(3),
        gs.Dict({"a": gs.Discrete(2), "b": gs.Tuple([gs.Box(0, 1, (1,)), gs.Discrete(3)])}),
    ],
    ids=str,
)
def test_actions_go_to_an_environment_and_back(space: gs.Space):
    known, decode = convert.action(space)
    spaces, encode = convert.action_encoder(space)
    assert spaces == known
    space.seed(0)
    for _ in range(5):
        sample = space.sample()
        again = decode(encode(sample))
        for left, right in zip(_flat(again), _flat(sample), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in _flat(value[key])]
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, tuple) else [value]


def test_the_replay_of_a_run(tmp_path: Path):
    training = collect("dummy_vector", tmp_path, steps=100, replay=dict(capacity=90))
    source = find(str(tmp_path))
    assert survey(find(str(tmp_path / "replay"))).digest == survey(source).digest
    facts, driver = survey(source), training.parts.driver
    assert (facts.obs_space, facts.act_space) == (driver.obs_space, driver.act_space)
    stream = training.loop.replay.stream(1)
    begin = int(np.flatnonzero(stream["is_first"])[0])
    ours = [
        data
        for raw, data in zip(source.episodes(), read(source), strict=True)
        if "environment 1 " in raw.place
    ]
    # The oldest episode has lost its beginning, and so is none.
    assert begin > 0
    for key in ("vector", "reward", *FLAGS[:1]):
        kept = np.concatenate([data[key] for data in ours])
        assert (kept == stream[key][begin : begin + len(kept)]).all(), key
    assert ours[-1]["is_last"][-1] and not ours[-1]["is_terminal"][-1]


def test_an_episode_that_has_only_just_begun_is_none(tmp_path: Path):
    training = collect("dummy_vector", tmp_path, steps=44)
    assert np.flatnonzero(training.loop.replay.stream(1)["is_first"]).tolist() == [0, 21]
    assert len(training.loop.replay.stream(1)["is_first"]) == 22
    assert survey(find(str(tmp_path))).lengths == (20, 20)


@pytest.mark.parametrize("known", ["is_first", "is_last"])
def test_where_one_episode_ends_the_next_begins_whichever_of_both_is_said(tmp_path: Path, known: str):
    whole = [episode(12, 0), episode(7, 1)]
    file = {key: np.concatenate([one[key] for one in whole]) for key in ("vector", "action", "reward", known)}
    source = find(str(save_npz(tmp_path, file)))
    (found,) = read(source)
    assert np.flatnonzero(found["is_first"]).tolist() == [0, 13] and not found["is_terminal"].any()
    assert np.flatnonzero(found["is_last"]).tolist() == [12, 20]
    assert survey(source).lengths == (12, 7)


def test_what_rounding_adds_to_an_action_is_taken_off_and_more_is_another_scale(tmp_path: Path):
    near, far = episode(12, 0), episode(12, 0)
    near["action"][3], far["action"][3] = 1.0005, 1.01
    (found,) = read(find(str(save_npz(tmp_path / "near", near))))
    assert found["action/action"].max() == 1
    spaces = {"vector": Space("vector", (3,))}, {"action": Space("vector", (2,), low=-1, high=1)}
    assert survey(find(str(tmp_path / "near")), spaces).episodes == 1
    assert survey(find(str(save_npz(tmp_path / "far", far)))).act_space["action"].high != 1


def test_a_dataset_is_known_by_all_its_episodes_and_by_their_keys(tmp_path: Path):
    one, two, three = (episode(12, seed) for seed in range(3))
    other = {"wector" if key == "vector" else key: value for key, value in one.items()}
    sets = [one], [other], [one, two], [three, two], [one, three]
    folders = [save_npz(tmp_path / str(i), *each) for i, each in enumerate(sets)]
    assert len({survey(find(str(folder))).digest for folder in folders}) == len(sets)


def test_a_replay_is_filled_with_everything(tmp_path: Path):
    whole = [episode(12, 0), episode(7, 1)]
    data = Recorded("set", find(str(save_npz(tmp_path, *whole))))
    spec: Any = {
        "vector": ((3,), np.float32),
        "action/action": ((2,), np.float32),
        "reward": ((), np.float32),
    }
    spec |= {flag: ((), bool) for flag in FLAGS} | {"deter": ((4,), np.float16), "stoch": ((2,), np.uint8)}
    replay = Replay(spec, data.survey.steps, 1, 5, online=False, fixed=True)
    data.fill(replay)
    stored = replay.stream(0)
    assert (stored["vector"] == np.concatenate([one["vector"] for one in whole])).all()
    assert np.flatnonzero(stored["is_first"]).tolist() == [0, 13] and not stored["deter"].any()
    assert data.recv() == {} and data.episodes() == []


def test_a_terminal_state_ends_its_episode_though_no_other_flag_is_there(tmp_path: Path):
    whole = [episode(12, 0, terminal=True), episode(7, 1)]
    keys = "vector", "action", "reward", "is_terminal"
    file = {key: np.concatenate([one[key] for one in whole]) for key in keys}
    assert survey(find(str(save_npz(tmp_path, file)))).lengths == (12, 7)


def test_resized_pictures_are_what_the_spaces_say(tmp_path: Path):
    collect("dummy_image", tmp_path, steps=44)
    source = Resized(find(str(tmp_path)), 32)
    assert source.spaces is not None and source.spaces[0]["image"].shape == (32, 32, 3)
    assert survey(source).obs_space == source.spaces[0]


def test_a_shard_that_begins_within_an_episode_is_refused(tmp_path: Path):
    h5py = pytest.importorskip("h5py", reason="h5py is in the extra 'offline'")
    path = save_hdf5(tmp_path / "set.hdf5", *(episode(5, seed, picture=True) for seed in range(2)))
    with h5py.File(path, "a") as file:
        file["step_type"][0] = 1
    with pytest.raises(DatasetError, match="'step_type' does not begin with 0"):
        survey(find(str(path)))
