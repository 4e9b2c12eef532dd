"""python -m fastdream.eval: scores and videos of an agent that was trained."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from fastdream import cli, curves, entry, rundir, scores, video
from fastdream import config as configs
from fastdream.build import Agent, environment, in_processes, scored
from fastdream.checkpoint import Loaded
from fastdream.config import Config
from fastdream.driver import Voice
from fastdream.envs import options_of
from fastdream.lane import RestartedTooOften
from fastdream.logger import write_png
from fastdream.progress import counted
from fastdream.restore import load_agent, open_loop
from fastdream.rundir import StorageError
from fastdream.schedule import Stop
from fastdream.spaces import alike
from fastdream.summary import spoken
from fastdream.train import set_up


@dataclass(frozen=True)
class Command:
    """Evaluate the agent of a run: scores, and videos if they are asked for."""

    logdir: str = "runs/latest"
    """Directory of the run."""
    task: str = ""
    """What to play; the run's task if not given."""
    checkpoint: str = "last"
    """Which parameters: last, best, or the directory of one checkpoint."""
    episodes: int = 20
    """Episodes to play."""
    count: int = 4
    """Environments at once."""
    mode: Literal["sample", "mode"] = "sample"
    """Draw actions as in training, or take the most likely ones; as the run evaluates itself if not given."""
    seed: int = 1_000_003
    """Of the environments and the actions; the same seed gives the same scores."""
    device: str = "auto"
    """auto (CUDA if it is there), cpu, cuda or cuda:<n>."""
    video: bool = False
    """Write videos of an episode, and of open-loop predictions on what was replayed, into <logdir>/media."""
    json: bool = False
    """Print the scores as one JSON object."""
    suite: Any = None
    """Options of the task's suite (envs.options_of); those of the run if not given. Listed if --logdir is a run."""

    def __post_init__(self) -> None:
        configs.refuse_less("", self, episodes=1, count=1, seed=0)
        configs.refuse_more("", self, count=configs.MOST_ENVS)
        configs.refuse_seed(self.seed)


def main(args: Sequence[str] | None = None) -> None:
    """The command. Exits with 2 after a mistake of its user, and with 1 when environments fail for good."""
    try:
        run(parse(sys.argv[1:] if args is None else args))
    except (ValueError, StorageError) as error:
        entry.fail(str(error))
    except RestartedTooOften as error:
        entry.fail(str(error), code=1)


def parse(args: Sequence[str]) -> Command:
    """The command, whose --suite.* are the options of the task that is to be played."""
    import tyro

    if args and not args[0].startswith("-"):
        raise ValueError(f"{args[0]!r} is no flag: did you mean --logdir {args[0]}?")
    chosen = cli.choosers(args)
    config = settings_of(Path(chosen["logdir"] or Command.logdir).expanduser())
    options = suite_of(config, chosen["task"]) if config else None
    kind: Any = Command
    if options is not None:
        about = tyro.conf.arg(help="Environments of the task's suite; as in the run if not given.")
        field = ("suite", Annotated[type(options), about], dataclasses.field(default=options))
        namespace = {"__doc__": Command.__doc__}
        kind = dataclasses.make_dataclass(
            "Command", [field], bases=(Command,), namespace=namespace, frozen=True
        )
    default = kind(mode=config.eval.mode) if config else kind()
    command: Command = cli.read("fastdream.eval", args, default)
    return command


def settings_of(logdir: Path) -> Config | None:
    """Settings of the run; None if there is none, which whoever loads the agent says."""
    try:
        return configs.load(logdir)
    except ValueError:
        return None


def suite_of(config: Config, task: str) -> Any:
    """Options of the suite of the task that is to be played, or of the run's: as that evaluates if it has such ones.

    None where there is no task, which whoever plays says. Raises EnvError for an unknown task.
    """
    if not (task := task or config.task):
        return None
    kind = options_of(task)
    return scored(config.suite if isinstance(config.suite, kind) else kind())


def run(command: Command) -> None:
    """Load the agent, play the episodes, print and write what was asked for.

    Raises ValueError if there is no run, or nothing that writes videos, StorageError if there is no sound checkpoint.
    A disk that refuses videos is said, for the scores are worth more.
    """
    if command.video:
        check_videos()
    logdir = Path(command.logdir).expanduser().resolve()
    agent, config, loaded = load_agent(logdir, command.device, command.checkpoint)
    for note in loaded.notes:
        say(note)
    # What an environment prints is not the result either.
    with redirect_stdout(sys.stderr), Stop() as stop:
        config = playing(config, command.task, agent, command.suite)
        set_up(config)
        result = scores.evaluate(
            agent,
            environment(config),
            command.episodes,
            count=command.count,
            parallel=in_processes(config),
            seed=command.seed,
            mode=command.mode,
            video=command.video,
            stop=stop,
            on_restart=Voice(say),
            task=config.task,
        )
    if not result.scores:
        raise ValueError(f"stopped by {stop.reason} before an episode had ended")
    if (ended := len(result.scores)) < command.episodes:
        say(
            f"stopped by {stop.reason} after {ended:,} of {counted(command.episodes, 'episode')}, of which the "
            "short ones are the first to end"
        )
    facts = {"task": config.task, "step": loaded.step, "checkpoint": str(loaded.path), **result.summary()}
    files = []
    if command.video:
        pictures = predictions(logdir, agent, config, loaded, command.seed)
        try:
            files = videos(logdir, loaded.step, result, pictures)
        except OSError as error:
            say(f"no videos: {rundir.refusal(logdir / 'media', error, StorageError)}")
    if command.json:
        print(
            json.dumps(
                facts | {"mode": command.mode, "seed": command.seed, "videos": [str(f) for f in files]}
            )
        )
        return
    print(f"{config.task}: {result} (step {loaded.step:,}, {command.mode} actions)")
    for file in files:
        print(f"wrote {file}")


def check_videos() -> None:
    """ValueError that says what to install where nothing can write videos."""
    try:
        video.pillow()
    except ImportError as error:
        raise ValueError(f"--video: {error}") from error


def playing(config: Config, task: str, agent: Agent, suite: Any = None) -> Config:
    """The settings with the task and the options of its suite that are asked for, None for those of the run.

    ValueError if there is no task, or if it is not one for this agent.
    """
    if not (task := task or config.task):
        raise ValueError("this run learned from a dataset and has no task: give the one to play with --task")
    asked = replace(config, task=task, suite=suite or (config.suite if task == config.task else None))
    if asked == config:
        return config
    config = asked
    with closing(environment(config)(0)) as env:
        for what, known, there in (
            ("observes", agent.obs_space, env.obs_space),
            ("takes", agent.act_space, env.act_space),
        ):
            if not alike(known, there):
                raise ValueError(f"the agent {what} {spoken(known)}, and {task} has {spoken(there)}")
    return config


def predictions(
    logdir: Path, agent: Agent, config: Config, loaded: Loaded, seed: int
) -> dict[str, np.ndarray]:
    """What `open_loop` gives; nothing, and why is said, where there is no replay that it could begin from."""
    try:
        pictures, step = open_loop(logdir, agent, config, loaded, seed)
    except (ValueError, OSError) as error:
        say(f"no open-loop predictions: {error}")
        return {}
    if step != loaded.step:
        say(
            f"open-loop predictions begin from the replay of step {step:,}; that of step {loaded.step:,} is gone"
        )
    return pictures


def say(line: str) -> None:
    """Prints what is not a result, so that results can be piped."""
    print(line, file=sys.stderr, flush=True)


def videos(logdir: Path, step: int, result: scores.Scores, pictures: Mapping[str, np.ndarray]) -> list[Path]:
    """Write the episode's clip, and what `open_loop` gave: clips of images, curves of vectors."""
    folder = logdir / "media"
    folder.mkdir(exist_ok=True)
    files = []
    if result.frames is not None:
        files.append(video.write_video(folder / f"episode_{step:09d}", result.frames))
    for key, picture in pictures.items():
        path = folder / f"openloop_{key}_{step:09d}"
        if picture.ndim == 4:
            files.append(video.write_video(path, video.label_rows(picture)))
        else:
            true, imagined = picture
            files.append(write_png(path, curves.plot_curves(true, imagined, len(true) // 2)[None]))
    return files


if __name__ == "__main__":
    entry.run(main)
