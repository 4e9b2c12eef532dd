"""Learning curves of runs: a CSV file with every score, and a picture over minutes and over steps.

    python benchmarks/curves.py --name cartpole --target 400 runs/gym_CartPole-v1/*
    python benchmarks/curves.py --name walk --published dmc_proprio:walker_walk:dreamer_v3 runs/dmc_walker_walk/*
    python benchmarks/curves.py --name both --beside benchmarks/results/official-cartpole.csv runs/gym_CartPole-v1/*

One thin line a run and a thick one for their mean, both smoothed; dots are final evaluations. Time begins with the
run's first line or its config.json, whichever is older; where a run was resumed, the pause between counts too.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from fastdream.published import Score, find

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("seed", "kind", "step", "seconds", "score")
# In the middle between black and white, for both themes of a page.
INK, COLOR, OTHER = "#7d8590", "#2f81f7", "#db6d28"
POINTS = 300  # of a line; more only make the file larger


@dataclass(frozen=True)
class Command:
    """Write <name>.csv and <name>.svg of runs of one task, each with another seed."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs, or one CSV file that this command wrote."""
    name: str
    """Of the files."""
    title: str = ""
    """Above the picture."""
    output: Path = RESULTS
    """Directory of the files."""
    smooth: int = 20
    """Episodes that a point of a line is the mean of."""
    target: float | None = None
    """A score to mark."""
    beside: tuple[Path, ...] = ()
    """Runs of another code, or the CSV file of them, to draw beside; they are not in <name>.csv."""
    beside_name: str = "official code"
    """What those are, and `runs` are fastdream then."""
    published: tuple[str, ...] = ()
    """Scores to mark that others published, each as BENCHMARK:TASK:SYSTEM; python -m fastdream.published lists them."""
    format: str = "svg"
    """Of the picture: svg or png."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run is given")
        if self.smooth < 1 or self.format not in ("svg", "png"):
            raise ValueError(f"need smooth >= 1 and format svg or png, got {self.smooth} and {self.format!r}")
        for words in self.published:
            published_score(words)


@dataclass(frozen=True)
class Curve:
    """Scores of a run's episodes as they ended, [N] each, and its final evaluation (step, seconds, score)."""

    seed: int
    step: np.ndarray
    seconds: np.ndarray
    score: np.ndarray
    final: tuple[float, float, float] | None = None


def published_score(words: str) -> Score:
    """That of BENCHMARK:TASK:SYSTEM, after the most frames. Raises ValueError that lists what there is instead."""
    if words.count(":") != 2:
        raise ValueError(f"need BENCHMARK:TASK:SYSTEM for a published score, got {words!r}")
    benchmark, task, system = words.split(":")
    tasks = find(benchmark, system)
    if task not in tasks:
        raise ValueError(f"no score of {system} is published for task {task}; there are {', '.join(tasks)}")
    return tasks[task]


def read_run(run: Path) -> Curve:
    """The curve of a run's directory. Raises ValueError naming what is missing."""
    path = run / "scores.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} holds no scores: there is no {path.name} in it")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line.get("episode/score") is not None]
    if not lines:
        raise ValueError(f"no episode has ended in {run}")
    start, seed = min(line["time"] for line in lines), 0
    if (config := run / "config.json").is_file():
        start = min(start, config.stat().st_mtime)
        seed = json.loads(config.read_text())["config"]["seed"]
    step, time, score = (
        np.array([line[key] for line in lines], float) for key in ("step", "time", "episode/score")
    )
    final = None
    if (path := run / "eval.json").is_file():
        facts = json.loads(path.read_text())
        final = float(facts["step"]), float(time[-1] - start), float(facts["mean"])
    return Curve(seed, step, time - start, score, final)


def read_csv(path: Path) -> list[Curve]:
    """The curves of a file that `write_csv` wrote."""
    rows: dict[int, dict[str, list[tuple[float, float, float]]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            point = float(row["step"]), float(row["seconds"]), float(row["score"])
            rows.setdefault(int(row["seed"]), {"episode": [], "evaluation": []})[row["kind"]].append(point)
    return [
        Curve(seed, *np.array(kinds["episode"]).T, final=next(iter(kinds["evaluation"]), None))
        for seed, kinds in rows.items()
    ]


def read(paths: Sequence[Path]) -> list[Curve]:
    """All curves, of runs' directories or of one CSV file, in the order of their seeds."""
    if len(paths) == 1 and paths[0].suffix == ".csv":
        return read_csv(paths[0])
    curves = sorted((read_run(path) for path in paths), key=lambda curve: curve.seed)
    if len({curve.seed for curve in curves}) < len(curves):
        raise ValueError(f"two runs have the same seed: {[curve.seed for curve in curves]}")
    return curves


def write_csv(path: Path, curves: Sequence[Curve]) -> None:
    """One row an episode, and one for each final evaluation: seed, kind, step, seconds, score."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for curve in curves:
            for point in zip(curve.step, curve.seconds, curve.score, strict=True):
                writer.writerow([curve.seed, "episode", *_numbers(point)])
            if curve.final:
                writer.writerow([curve.seed, "evaluation", *_numbers(curve.final)])


def _numbers(point: Sequence[float]) -> tuple[int, str, str]:
    return int(point[0]), f"{point[1]:.1f}", f"{point[2]:.6g}"


def smoothed(score: np.ndarray, count: int) -> np.ndarray:
    """The mean of each score and up to count - 1 before it, [N] -> [N]."""
    sums = np.concatenate([[0.0], score.cumsum()])
    end = np.arange(1, len(score) + 1)
    begin = np.maximum(end - count, 0)
    return (sums[end] - sums[begin]) / (end - begin)


def mean_line(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several lines where all of them are known, at POINTS places; ValueError if that is nowhere."""
    begin, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    if begin >= end:
        raise ValueError(
            "the runs have no time in common that a mean could be taken over; draw fewer of them"
        )
    grid = np.linspace(begin, end, POINTS)
    return grid, np.mean([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)], 0)


def draw(path: Path, curves: Sequence[Curve], command: Command, beside: Sequence[Curve] = ()) -> None:
    """Score over minutes, and over steps, into an SVG or PNG file with a transparent ground."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("matplotlib is not installed: pip install 'fastdream[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {
        key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    }
    # No date and no random names: the same scores make the same file.
    style |= {"svg.hashsalt": command.name, "font.size": 9, "path.simplify_threshold": 0.5}
    steps, unit = steps_axis(curves)
    panels: tuple[tuple[str, Callable[[Any], Any], int], ...] = (
        ("minutes", lambda seconds: seconds / 60, 1),
        (unit, lambda step: step / steps, 0),
    )
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
        for axis, (label, scale, which) in zip(axes, panels, strict=True):
            if beside:
                lines(axis, beside, scale, which, command.smooth, OTHER, f"{command.beside_name}, ")
            lines(axis, curves, scale, which, command.smooth, COLOR, "fastdream, " if beside else "")
            decorate(axis, command)
            axis.set_xlabel(label)
        axes[0].set_ylabel("score")
        axes[1].legend(frameon=False, loc="lower right")
        figure.suptitle(command.title, fontsize=10)
        figure.savefig(
            path, transparent=True, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None
        )
        pyplot.close(figure)


def steps_axis(curves: Sequence[Curve]) -> tuple[float, str]:
    """How many steps a tick's number stands for, and the axis' name."""
    most = max(curve.step[-1] for curve in curves)
    names = ((1e6, "million steps"), (1e3, "thousand steps"))
    return next(((count, name) for count, name in names if most >= 10 * count), (1.0, "steps"))


def lines(
    axis: Any,
    curves: Sequence[Curve],
    scale: Callable[[Any], Any],
    which: int,
    smooth: int,
    color: str,
    of: str,
) -> None:
    """Curves of one code: `which` is 0 for steps and 1 for seconds on their axis, in units of `scale`."""
    xs = [scale((curve.step, curve.seconds)[which]) for curve in curves]
    ys = [smoothed(curve.score, smooth) for curve in curves]
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        chosen = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
        axis.plot(x[chosen], y[chosen], color=color, alpha=0.45, lw=0.9, label="" if i else f"{of}one seed")
    if len(curves) > 1:
        axis.plot(*mean_line(xs, ys), color=color, lw=2.2, label=f"{of}mean of {len(curves)} seeds")
    finals = [(scale(curve.final[which]), curve.final[2]) for curve in curves if curve.final]
    if finals:
        axis.plot(*zip(*finals, strict=True), "o", color=color, ms=4, label=f"{of}final evaluation")


def decorate(axis: Any, command: Command) -> None:
    """The scores to mark, and a grid."""
    if command.target is not None:
        axis.axhline(command.target, color=INK, lw=0.8, ls=(0, (4, 4)))
    for score in map(published_score, command.published):
        axis.axhline(score.score, color=INK, lw=0.8, ls=(0, (1, 2)))
        where = (0.01, score.score), ("axes fraction", "data")
        axis.annotate(score.system, where[0], xycoords=where[1], fontsize=7, va="bottom")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=INK, alpha=0.2, lw=0.6)
    axis.set_xlim(left=0)


def main(args: Sequence[str] | None = None) -> None:
    """The command."""
    try:
        command = tyro.cli(Command, args=args)
        curves, beside = read(command.runs), read(command.beside)
        command.output.mkdir(parents=True, exist_ok=True)
        base = command.output / command.name
        picture = base.with_name(f"{base.name}.{command.format}")
        draw(picture, curves, command, beside)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    write_csv(base.with_name(f"{base.name}.csv"), curves)
    print(f"wrote {base}.csv and {picture}")


if __name__ == "__main__":
    main()
