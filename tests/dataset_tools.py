"""What the tests of datasets share: small episodes, and how each layout stores them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import config as configs
from fastdream.run import Training
from fastdream.spaces import spaces_to_json

from .run_tools import tiny, train

Arrays = dict[str, np.ndarray]


def episode(
    length: int = 12,
    seed: int = 0,
    picture: bool = False,
    terminal: bool = False,
    width: int = 3,
    size: int = 64,
) -> Arrays:
    """Records of an episode of so many transitions, as DreamerV2 stores them: the reset's action and reward are 0."""
    rng = np.random.default_rng(seed)
    data: Arrays = {
        "action": rng.uniform(-1, 1, (length + 1, 2)).astype(np.float32),
        "reward": rng.uniform(0, 1, length + 1).astype(np.float32),
        "discount": np.ones(length + 1, np.float32),
        "is_first": np.arange(length + 1) == 0,
        "is_last": np.arange(length + 1) == length,
        "is_terminal": np.zeros(length + 1, bool),
    }
    if picture:
        data["image"] = rng.integers(0, 256, (length + 1, size, size, 3), np.uint8)
    else:
        data["vector"] = rng.standard_normal((length + 1, width)).astype(np.float32)
    data["action"][0] = data["reward"][0] = 0
    if terminal:
        data["is_terminal"][-1], data["discount"][-1] = True, 0
    return data


def save_npz(folder: Path, *episodes: Arrays) -> Path:
    """A file an episode, named as V-D4RL names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(episodes):
        length = len(data.get("action", ())) - 1
        np.savez_compressed(folder / f"20220202T0{i:05d}-{i:032x}-{length}.npz", **data)
    return folder


def save_hdf5(path: Path, *episodes: Arrays) -> Path:
    """A shard as V-D4RL has it at 84 pixels: one after another, channels first, step_type 0, 1, ..., 1, 2."""
    h5py = pytest.importorskip("h5py", reason="h5py is in the extra 'offline'")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        key: np.concatenate([data[key] for data in episodes]) for key in ("action", "reward", "discount")
    }
    pictures = np.concatenate([data["image"] for data in episodes]).transpose(0, 3, 1, 2)
    kinds = [np.where(data["is_first"], 0, np.where(data["is_last"], 2, 1)) for data in episodes]
    whole |= {"observation": pictures, "step_type": np.concatenate(kinds)}
    with h5py.File(path, "w") as file:
        for key, value in whole.items():
            file.create_dataset(key, data=value, compression="gzip")
    return path


def minari_episode(minari: Any, data: Arrays, obs: Any = None, act: Any = None) -> Any:
    """The same episode in Minari's form: T+1 observations, T of all else."""
    terminal = data["is_terminal"][1:]
    name = "image" if "image" in data else "vector"
    return minari.data_collector.EpisodeBuffer(
        observations=data[name] if obs is None else obs,
        actions=data["action"][1:] if act is None else act,
        rewards=data["reward"][1:].tolist(),
        terminations=terminal.tolist(),
        truncations=(data["is_last"][1:] & ~terminal).tolist(),
    )


def collect(task: str, logdir: Path, **changes: Any) -> Training:
    """A run of an agent that acts at random, with all that a run leaves behind."""
    config = tiny(task, **changes)
    training = train(config, logdir)
    driver = training.parts.driver
    spaces = {"obs": spaces_to_json(driver.obs_space), "act": spaces_to_json(driver.act_space)}
    configs.save(config, logdir, spaces=spaces)
    return training


def returns(*episodes: Arrays) -> list[float]:
    return [float(data["reward"].sum()) for data in episodes]
