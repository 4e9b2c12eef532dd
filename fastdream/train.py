"""python -m fastdream.train: train an agent, resume it, and see how well it does."""

import json
import platform
import resource
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import fastdream
from fastdream import checkpoint, cli, ops, rundir
from fastdream import config as configs
from fastdream.build import (
    Parts,
    choose_device,
    environment,
    in_processes,
    make_agent,
    make_replay,
    spaces_from_json,
    spaces_to_json,
    step_spec,
)
from fastdream.checkpoint import Checkpoint
from fastdream.config import Config
from fastdream.driver import Driver, Voice
from fastdream.evaluate import counted
from fastdream.lane import RestartedTooOften
from fastdream.learner import Agent, NonFinite
from fastdream.logger import Logger
from fastdream.outputs import WandbOptions
from fastdream.progress import Goal
from fastdream.run import EnvironmentFailed, Online, Training
from fastdream.rundir import RunLock, StorageError
from fastdream.schedule import Stop
from fastdream.spaces import Space, Spaces


def main(args: Sequence[str] | None = None) -> None:
    """The command. Exits with 0 when it has trained or was asked to stop, 2 after a mistake of its user, and 1 when
    environments fail for good or a loss is not finite.
    """
    args = sys.argv[1:] if args is None else args
    try:
        parsed = cli.parse(args)
        if parsed.dry_run:
            dry_run(parsed.config)
        else:
            train(parsed.config, shlex.join(["python", "-m", "fastdream.train", *args]))
    except (ValueError, StorageError) as error:
        cli.fail(str(error))
    except (EnvironmentFailed, NonFinite, RestartedTooOften) as error:
        cli.fail(str(error), code=1)


def train(config: Config, command: str = "") -> None:
    """Train until `config.steps`, continuing what the run's directory holds; then evaluate.

    command   how the user asked for it, to be said again when it is to be continued.
    Raises ValueError for settings that cannot be served, StorageError for a disk that refuses, and NonFinite.
    """
    device, why = choose_device(config.device)
    set_up(config)
    voice = Voice()
    # All that can be refused is refused before there is a directory.
    with make_driver(config, voice) as driver:
        driver.recv()  # an environment that cannot even begin says so here
        agent = make_agent(config, driver.obs_space, driver.act_space, device)
        logdir = directory(config)
        with RunLock(logdir), Stop() as stop:
            parts = assemble(config, driver, agent, device, logdir)
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
    if not config.eval.final_episodes:
        return done
    training.log.print(f"evaluating over {counted(config.eval.final_episodes)}")
    result = training.evaluate(config.eval.final_episodes, stop)
    if not result.scores:
        return done
    training.save(result.mean)
    facts = {"step": training.loop.step, **result.summary(), "mode": config.eval.mode}
    rundir.write_atomic(training.parts.logdir / "eval.json", json.dumps(facts, indent=1).encode())
    return f"{done}\nevaluation: {result} ({config.eval.mode} actions)"


def goal(config: Config, parts: Parts, step: int) -> Goal:
    """What the live display says of the run."""
    return Goal(config.task, config.steps, step, str(parts.device), str(parts.logdir), served(parts))


def set_up(config: Config) -> None:
    """What holds for the whole process."""
    # Denormal numbers make a step on a CPU many times slower, and mean nothing here.
    torch.set_flush_denormal(True)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)


def directory(config: Config) -> Path:
    """The run's directory, made if need be; StorageError if it cannot be written."""
    if config.logdir:
        return rundir.writable(Path(config.logdir).expanduser().resolve())
    return rundir.run_dir(Path("runs"), config.task, config.preset or "custom", config.seed).resolve()


def make_driver(config: Config, voice: Voice) -> Driver:
    """The environments; EnvError, a ValueError, if there is no such task or it cannot be served."""
    return Driver(
        environment(config),
        config.env.count,
        parallel=in_processes(config),
        seed=config.seed,
        on_restart=voice,
        task=config.task,
    )


def assemble(config: Config, driver: Driver, agent: Agent, device: torch.device, logdir: Path) -> Parts:
    """All parts of a run; ValueError or StorageError for what the settings or the directory cannot have."""
    refuse_other_spaces(logdir, driver)
    spec = step_spec(driver.obs_space, driver.act_space, agent)
    replay = make_replay(config, spec, agent.replay_context, logdir)
    logger = Logger(
        logdir,
        config.log.outputs,
        wandb=WandbOptions(project=config.log.wandb_project),
        config=configs.to_dict(config),
        interval=config.log.every,
    )
    return Parts(
        agent, replay, driver, environment(config), logger, Checkpoint(logdir / "ckpt"), device, logdir
    )


def refuse_other_spaces(logdir: Path, driver: Driver) -> None:
    """Raise ValueError if the run was begun with an environment that showed or took something else."""
    path = logdir / "config.json"
    if not path.exists() or not checkpoint.any_in(logdir / "ckpt"):
        return
    saved = json.loads(path.read_text())["spaces"]
    for name, now in (("obs", driver.obs_space), ("act", driver.act_space)):
        if spaces_from_json(saved[name]) != now:
            raise ValueError(
                f"{logdir} holds a run whose environment had other spaces: {name} was "
                f"{spaces_from_json(saved[name])} and is {now}; choose another --logdir"
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
    )


def header(config: Config, parts: Parts, why: str) -> str:
    """What is about to happen, in a few lines."""
    agent, driver = parts.agent, parts.driver
    many, threads = driver.n > 1, torch.get_num_threads()
    envs = f"{driver.n} environments, each in a process" if many else "1 environment, in its own process"
    if not in_processes(config):
        envs = f"{driver.n} environment{'s' * many}, in this process"
    facts = {
        "task": f"{config.task}, {envs}",
        "observes": _spaces(driver.obs_space),
        "acts": _spaces(driver.act_space),
        "agent": f"{config.agent} {config.variant}, preset {config.preset}, size {config.size}, "
        f"{agent.param_count:,} parameters",
        "device": f"{parts.device} ({why}), {str(agent.dtype).removeprefix('torch.')} matrix products, "
        f"{threads} thread{'s' * (threads != 1)}",
        "ops": served(parts),
        "replay": parts.replay.describe().removeprefix("replay: "),
        "run": str(parts.logdir),
    }
    return "\n".join(f"{name:9} {fact}" for name, fact in facts.items())


def served(parts: Parts) -> str:
    """Which backend serves the ops: most of them, and the others by name."""
    backends: dict[str, list[str]] = {}
    for row in ops.table(parts.agent.ops):
        backends.setdefault(row.backend, []).append(row.op)
    most = max(backends, key=lambda name: len(backends[name]))
    return most + "".join(f"; {name}: {', '.join(names)}" for name, names in backends.items() if name != most)


def _spaces(spaces: Spaces) -> str:
    return ", ".join(f"{key} ({_kind(space)})" for key, space in spaces.items())


def _kind(space: Space) -> str:
    size = " × ".join(map(str, space.shape))
    if space.kind == "discrete":
        return f"{size} × 1 of {space.classes}" if size else f"1 of {space.classes}"
    if space.kind == "image":
        return f"{size} pixels"
    return f"{size} numbers" if size else "1 number"


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
    """Build everything, act until one update can be made, make it, and say what it took. Leaves nothing behind."""
    device, why = choose_device(config.device)
    set_up(config)
    config = replace(config, log=replace(config.log, outputs=()))
    with tempfile.TemporaryDirectory() as folder, make_driver(config, Voice()) as driver:
        agent = make_agent(config, driver.obs_space, driver.act_space, device)
        parts = assemble(config, driver, agent, device, Path(folder))
        print(header(config, parts, why), flush=True)
        loop = Online(config, parts, windows=1)
        while not loop.learner.updates:
            loop.advance(driver.recv())
        loop.learner.close()
        loop.learner.metrics.check()
        losses = loop.learner.metrics.fetch()
        parts.logger.close()
    print(f"one update: loss {losses['opt/loss']:.3f}; {memory(device)}", flush=True)


def memory(device: torch.device) -> str:
    """Most memory that was used so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e6:,.0f} MB"
    return text


if __name__ == "__main__":
    main()
