"""python -m fastdream.train: train an agent, resume it, and see how well it does."""

import importlib
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import fastdream
from fastdream import agents, ahead, checkpoint, cli, entry, ops, rundir
from fastdream import config as configs
from fastdream.allocator import keep_freed_memory
from fastdream.build import (
    Parts,
    choose_device,
    environment,
    in_processes,
    make_agent,
    make_parts,
    make_replay,
)
from fastdream.config import Config
from fastdream.datasets import Recorded
from fastdream.driver import Driver, Voice
from fastdream.lane import RestartedTooOften
from fastdream.learner import Agent, NonFinite
from fastdream.offline import dataset_replay, recorded, refuse_other_data
from fastdream.progress import Goal, counted, tenths
from fastdream.replay import Replay
from fastdream.run import EnvironmentFailed, Training, loop_of
from fastdream.rundir import RunLock, StorageError
from fastdream.schedule import Stop
from fastdream.spaces import spaces_from_json, spaces_to_json
from fastdream.summary import header, memory, served, spoken


def main(args: Sequence[str] | None = None) -> None:
    """The command. Exits with 0 when it has trained or was asked to stop, 2 after a mistake of its user, and 1 when
    environments fail for good or a loss is not finite.
    """
    args = sys.argv[1:] if args is None else args
    try:
        parsed = cli.parse(args)
        run, try_out = train, dry_run
        if parsed.config.agent in agents.STAGED:
            stages = importlib.import_module("fastdream.stages.command")
            run, try_out = stages.train, stages.dry_run
        if parsed.dry_run:
            try_out(parsed.config)
        else:
            run(parsed.config, shlex.join(["python", "-m", "fastdream.train", *args]))
    except (ValueError, StorageError) as error:
        entry.fail(str(error))
    except (EnvironmentFailed, NonFinite, RestartedTooOften) as error:
        entry.fail(str(error), code=1)


def train(config: Config, command: str = "") -> None:
    """Train until `config.steps`, continuing what the run's directory holds; then evaluate.

    command   how the user asked for it, to be said again when it is to be continued.
    Raises ValueError for settings that cannot be served, StorageError for a disk that refuses, and NonFinite.
    """
    device, why = choose_device(config.device)
    set_up(config)
    voice = Voice()
    # All that can be refused is refused before there is a directory.
    cli.refuse_differences(config)
    with (
        make_driver(config, voice) as driver,
        ahead.beside(config, driver.obs_space, driver.act_space, device),
    ):
        driver.recv()  # an environment that cannot even begin says so here
        agent = make_agent(config, driver.obs_space, driver.act_space, device)
        # On disk its files have no names: any folder of the disk will do.
        disk = rundir.existing(Path(config.logdir or "runs").expanduser())
        replay = replay_of(config, driver, agent, disk, device)
        if not config.dataset:  # whose size was looked at before it was read
            replay.check_memory()
        logdir = directory(config)
        with RunLock(logdir), Stop() as stop:
            refuse_other_spaces(logdir, driver)
            parts = make_parts(config, agent, replay, driver, device, logdir)
            parts.checkpoint.require(agent.state_dict())  # now, and not when there is something to lose
            print(header(config, parts, why), flush=True)
            describe(config, parts, command)
            voice.say = parts.logger.print
            try:
                result = session(config, parts, stop)
            finally:
                parts.logger.close()
    print(result, flush=True)


def session(config: Config, parts: Parts, stop: Stop) -> str:
    """Train and evaluate with parts that are there; how it went, in words."""
    training = Training(config, parts)
    parts.logger.start(goal(config, parts, training.loop.step))
    try:
        for note in training.notes():
            parts.logger.print(note)
        training.run(stop)
        if stop:
            return f"stopped by {stop.reason} at step {training.loop.step:,}; {resume_hint(parts.logdir)}"
        return final_evaluation(config, training, stop)
    except EnvironmentFailed as error:
        raise EnvironmentFailed(f"{error}\n{resume_hint(parts.logdir)}") from error
    except NonFinite as error:
        more = f" (about step {training.loop.step:,}). {last_good(parts)}"
        raise NonFinite(error.name, error.update, more) from error
    finally:
        training.close()


def final_evaluation(config: Config, training: Training, stop: Stop) -> str:
    """Evaluate what was learned; keep the score in `eval.json` and with the checkpoint, and say it."""
    done = f"done after {training.loop.step:,} steps; run: {training.parts.logdir}"
    if not config.eval.final_episodes or not config.task:
        return done
    training.log.print(f"evaluating over {counted(config.eval.final_episodes, 'episode')}")
    result = training.evaluate(config.eval.final_episodes, stop)
    if stop:
        return f"{stopped(stop, done)}; {resume_hint(training.parts.logdir)}"
    training.save(result.mean)
    facts = {"step": training.loop.step, **result.summary(), "mode": config.eval.mode}
    rundir.store(training.parts.logdir / "eval.json", json.dumps(facts, indent=1).encode())
    return f"{done}\nevaluation: {result} ({config.eval.mode} actions){beside(training.parts)}"


def beside(parts: Parts) -> str:
    """What a score is to be held against, if it was learned from a dataset."""
    data = parts.driver
    return f"; mean return of the dataset: {tenths(data.survey.mean)}" if isinstance(data, Recorded) else ""


def stopped(stop: Stop, done: str) -> str:
    """What is said of a run whose last evaluation was stopped: the short episodes that had ended say nothing of it."""
    return f"{done}\nstopped by {stop.reason} in the evaluation"


def goal(config: Config, parts: Parts, step: int) -> Goal:
    """What the live display says of the run."""
    return Goal(
        config.task or config.dataset, config.steps, step, str(parts.device), str(parts.logdir), served(parts)
    )


def set_up(config: Config) -> None:
    """What holds for the whole process."""
    # Denormal numbers make a step on a CPU many times slower, and mean nothing here.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    # Convolutions always see the same shapes: time the algorithms once, and keep the fastest.
    torch.backends.cudnn.benchmark = True
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)


def directory(config: Config) -> Path:
    """The run's directory, made if need be; StorageError if it cannot be written."""
    if config.logdir:
        return rundir.writable(Path(config.logdir).expanduser().resolve())
    name = config.task or f"dataset_{Path(config.dataset).name}"  # beside runs/NAME, which it may be
    return rundir.run_dir(Path("runs"), name, config.preset or "custom", config.seed).resolve()


def make_driver(config: Config, voice: Voice) -> Driver | Recorded:
    """The environments, or the dataset in their place; ValueError if there is no such one or it cannot be served."""
    return recorded(config) if config.dataset else environments(config, voice)


def environments(config: Config, voice: Voice) -> Driver:
    """The environments; EnvError, a ValueError, if there is no such task or it cannot be served."""
    return Driver(
        environment(config),
        config.env.count,
        parallel=in_processes(config),
        seed=config.seed,
        on_restart=voice,
        task=config.task,
    )


def replay_of(
    config: Config, driver: Driver | Recorded, agent: Agent, disk: Path, device: torch.device
) -> Replay:
    """The replay of a run, on the disk of that folder if it is to be; ValueError if too small, or refused memory."""
    if isinstance(driver, Recorded):
        return dataset_replay(config, driver, agent, disk, device)
    return make_replay(config, agent, disk, device)


def refuse_other_spaces(logdir: Path, driver: Driver | Recorded) -> None:
    """Raise ValueError if the run was begun with an environment or a dataset that showed or took something else."""
    path = logdir / "config.json"
    if not path.exists() or not checkpoint.any_in(logdir / "ckpt"):
        return
    if isinstance(driver, Recorded):
        refuse_other_data(logdir, driver)
    saved = json.loads(path.read_text())["spaces"]
    for key, name, now in (("obs", "showed", driver.obs_space), ("act", "took", driver.act_space)):
        if spaces_from_json(saved[key]) != now:
            raise ValueError(
                f"{logdir} holds a run whose environment {name} {spoken(spaces_from_json(saved[key]))}, and this one "
                f"{spoken(now)}; choose another --logdir"
            )


def describe(config: Config, parts: Parts, command: str) -> None:
    """Write `config.json`: settings, command, versions, spaces, and which kernels serve."""
    configs.save(
        replace(config, logdir=str(parts.logdir)),
        parts.logdir,
        command=command,
        versions={
            "fastdream": fastdream.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        spaces={"obs": spaces_to_json(parts.driver.obs_space), "act": spaces_to_json(parts.driver.act_space)},
        ops=[row._asdict() for row in ops.table(parts.agent.ops)],
        dataset=parts.driver.survey.summary() if isinstance(parts.driver, Recorded) else None,
    )


def resume_hint(logdir: Path) -> str:
    """How to go on with a run."""
    return f"to resume: python -m fastdream.train --logdir {shlex.quote(str(logdir))}"


def last_good(parts: Parts) -> str:
    """Where the last checkpoint is; none is ever written with a loss that is not finite."""
    loaded = parts.checkpoint.load()
    if loaded is None:
        return "There is no checkpoint yet."
    return f"The last good checkpoint is {loaded.path} (step {loaded.step:,})."


def dry_run(config: Config) -> None:
    """Build everything, act until updates can be made, make the first, and say what it took. Leaves nothing behind.

    With a dataset these are the first block of updates.
    """
    device, why = choose_device(config.device)
    set_up(config)
    # Sequences may come from anywhere here, so that no episode need end; and an update is made in any case.
    once = replace(config.train, prefill=0, pretrain=1, ratio=max(config.train.ratio, 1.0))
    replay, log = replace(config.replay, windows="stream"), replace(config.log, outputs=())
    config = replace(config, log=log, replay=replay, train=once)
    with (
        tempfile.TemporaryDirectory() as folder,
        make_driver(config, Voice()) as driver,
        ahead.beside(config, driver.obs_space, driver.act_space, device),
    ):
        agent = make_agent(config, driver.obs_space, driver.act_space, device)
        steps = replay_of(config, driver, agent, Path(folder), device)
        parts = make_parts(config, agent, steps, driver, device, Path(folder))
        print(header(config, parts, why, kept=False), flush=True)
        loop = loop_of(config, parts, windows=1)
        while not loop.learner.updates:
            loop.advance(driver.recv())
        loop.learner.close()
        loop.learner.metrics.check()
        losses, updates = loop.learner.metrics.fetch(), loop.learner.updates
        parts.logger.close()
    made = "one update" if updates == 1 else f"{updates} updates"
    print(f"{made}: loss {losses['opt/loss']:.3f}; {memory(device)}", flush=True)


if __name__ == "__main__":
    entry.run(main)
