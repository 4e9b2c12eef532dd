"""Scores that others published, as data: to draw beside one's own, and to normalise by.

    python -m fastdream.published                  the systems of each benchmark, with their means and medians
    python -m fastdream.published dmc_vision       every task of one

`published.csv` has a line for each score: the benchmark (atari, atari100k, dmc_proprio, dmc_vision, world_models), the
task, the system, after how many frames of the environment, the score, its standard deviation and the number of runs
where they were given, and the source, a key of SOURCES.
"""

import argparse
import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdream import entry

FILE = Path(__file__).with_suffix(".csv")
SOURCES = {
    "v1_v2_files": "score files of the repositories of DreamerV1 and DreamerV2, means over 5 seeds",
    "p2e_files": "score files of the repository of DreamerV1; 3.5 to 4 million frames without the task's rewards",
    "v2_paper": "DreamerV2 (Hafner et al. 2021), table K.1; sticky actions",
    "v2_files": "score files of the repository of DreamerV2, frames 195 to 200 million",
    "v3_baselines": "baselines in the repository of DreamerV3",
    "v3_last": "score files of the repository of DreamerV3, last thirtieth of the frames",
    "v3_middle": "score files of the repository of DreamerV3, thirtieth before these frames",
    "v3_window": "score files of the repository of DreamerV3, episodes that end in frames 390 to 400 thousand",
    "own_repository": "means over the runs in the repository of each system",
    "wm_paper": "World Models (Ha & Schmidhuber 2018), over 100 episodes",
}
# By which systems the scores of a benchmark are normalised: what is 0 and what is 1.
SCALES = {"atari": ("random", "gamer"), "atari100k": ("random", "human")}


class Score(NamedTuple):
    """A line of the table; `frames`, `std` and `runs` are None where they are not known."""

    benchmark: str
    task: str
    system: str
    frames: int | None
    score: float
    std: float | None
    runs: int | None
    source: str


@cache
def scores() -> tuple[Score, ...]:
    """The whole table."""
    with FILE.open(newline="") as file:
        return tuple(
            Score(
                row["benchmark"],
                row["task"],
                row["system"],
                int(row["frames"]) if row["frames"] else None,
                float(row["score"]),
                float(row["std"]) if row["std"] else None,
                int(row["runs"]) if row["runs"] else None,
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def find(benchmark: str, system: str, frames: int | None = None) -> dict[str, Score]:
    """The scores of a system by task, after `frames` or after the most that there are.

    Raises ValueError that lists what there is, for a benchmark, a system or frames that are not in the table.
    """
    found = _known([row for row in scores() if row.benchmark == benchmark], "benchmark", benchmark, scores())
    own = _known([row for row in found if row.system == system], "system", system, found)
    after = max(row.frames or 0 for row in own) if frames is None else frames
    chosen = _known([row for row in own if (row.frames or 0) == after], "frames", after, own)
    return {row.task: row for row in chosen}


def _known(rows: list[Score], field: str, value: object, among: Sequence[Score]) -> list[Score]:
    if not rows:
        there = ", ".join(dict.fromkeys(str(getattr(row, field)) for row in among))
        raise ValueError(f"no published score has {field} {value}; there are {there}")
    return rows


def normalised(benchmark: str, system: str, frames: int | None = None, human: str = "") -> dict[str, float]:
    """By task: 0 is a random player's score and 1 that of SCALES (or of the system `human`, as "record").

    Tasks without these two scores are left out. Raises ValueError as `find`, and for a benchmark without a scale.
    """
    if benchmark not in SCALES:
        raise ValueError(f"scores of {benchmark} are not normalised, only those of {', '.join(SCALES)}")
    low, high = (find(benchmark, name) for name in (SCALES[benchmark][0], human or SCALES[benchmark][1]))
    return {
        task: (row.score - low[task].score) / (high[task].score - low[task].score)
        for task, row in find(benchmark, system, frames).items()
        if task in low and task in high
    }


def summary(benchmark: str) -> list[tuple[str, int | None, int, float, float]]:
    """Of each system and number of frames: (system, frames, tasks, mean, median), normalised where there is a scale."""
    rows = []
    for system, frames in dict.fromkeys((x.system, x.frames) for x in scores() if x.benchmark == benchmark):
        if benchmark in SCALES:
            values = list(normalised(benchmark, system, frames).values())
        else:
            values = [x.score for x in find(benchmark, system, frames or 0).values()]
        rows.append((system, frames, len(values), float(np.mean(values)), float(np.median(values))))
    return rows


def main(args: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m fastdream.published", description="Scores that others published."
    )
    names = list(dict.fromkeys(row.benchmark for row in scores()))
    parser.add_argument("benchmark", nargs="?", choices=names, help="show all its tasks")
    chosen = parser.parse_args(args).benchmark
    if chosen:
        for row in sorted((row for row in scores() if row.benchmark == chosen), key=lambda row: row.task):
            spread = f" ± {row.std:g}" if row.std is not None else ""
            print(
                f"{row.task:26} {row.system:26} {row.frames or '':>10} {row.score:>10g}{spread}  ({row.source})"
            )
    else:
        for name in names:
            if name == "world_models":  # whose two tasks have no mean
                continue
            scale = f", {SCALES[name][0]} = 0 and {SCALES[name][1]} = 1" if name in SCALES else ""
            print(f"{name}{scale}")
            for system, frames, tasks, mean, median in summary(name):
                after = f"after {frames:,} frames" if frames else ""
                print(f"  {system:24} {after:24} {tasks:3} tasks   mean {mean:8.4g}  median {median:8.4g}")
    for key in dict.fromkeys(row.source for row in scores() if chosen in (None, row.benchmark)):
        print(f"{key}: {SOURCES[key]}")


if __name__ == "__main__":
    entry.run(main)
