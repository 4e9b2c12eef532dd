"""Datasets of episodes, to learn from without an environment.

    source = find("folder")            # or "minari:<id>"; which layout it is follows from what is there
    facts = survey(source)             # reads all of it once: spaces, returns, or every fault by file and key
    for arrays in episodes(source, facts.obs_space, facts.act_space):
        ...                            # in the layout of replay.py

python -m fastdream.datasets check DATASET and export DATASET ID are the same from a shell.
"""

from pathlib import Path

from fastdream.datasets import hdf5, minari, npz, runs
from fastdream.datasets.check import Survey, survey
from fastdream.datasets.infer import Inference
from fastdream.datasets.layout import DatasetError, Source, episodes, standard
from fastdream.datasets.recorded import Recorded
from fastdream.datasets.resized import Resized

LAYOUTS = (
    "a folder of .npz files (one episode each), V-D4RL's .hdf5 files, a Minari dataset (minari:<id>, or its folder), "
    "or a run of this library"
)


def find(dataset: str) -> Source:
    """The dataset of that name; DatasetError if there is none. Reads no episode yet."""
    if dataset.startswith(minari.PREFIX):
        return minari.Minari(dataset)
    path = Path(dataset).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"there is no dataset {path}; it may be {LAYOUTS}") from None
    except OSError as error:  # too long a name, a folder that is locked
        raise DatasetError(f"cannot look for the dataset {path}: {error.strerror}") from error
    if path.is_dir() and runs.is_folder(path.resolve()):
        return runs.Run(path.resolve())
    if path.is_dir() and minari.is_folder(path):
        return minari.Minari(str(path))
    if path.is_dir():
        try:
            sources: list[npz.Npz | hdf5.Hdf5] = [npz.Npz(path), hdf5.Hdf5(path)]
        except OSError as error:  # a folder in it that cannot be listed, or is being removed
            raise DatasetError(f"{path} cannot be searched for episodes: {error}") from error
    else:
        sources = (
            [hdf5.Hdf5(path)] if path.suffix in hdf5.SUFFIXES else [npz.Npz(path)] * (path.suffix == ".npz")
        )
    for source in sources:
        if source.files:
            return source
    raise DatasetError(f"{path} holds nothing to learn from; it may be {LAYOUTS}")


def shows_pictures(dataset: str) -> bool:
    """Whether there are images among the observations of the first episode; DatasetError as `find`."""
    source = find(dataset)
    if source.spaces is not None:
        return any(space.kind == "image" for space in source.spaces[0].values())
    inference = Inference()
    for raw in source.episodes():
        data, problems = standard(raw)
        if not problems:
            inference.add(raw.place, data)
        return not problems and any(space.kind == "image" for space in inference.spaces()[0].values())
    return False


__all__ = [
    "DatasetError",
    "Recorded",
    "Resized",
    "Source",
    "Survey",
    "episodes",
    "find",
    "shows_pictures",
    "survey",
]
