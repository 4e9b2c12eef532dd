"""What python -m fastdream.train does for an agent that learns in stages."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from fastdream import checkpoint, cli, evolution, rundir
from fastdream import config as configs
from fastdream.agents.world_models import WorldModels
from fastdream.build import Parts, choose_device, make_agent, make_parts
from fastdream.config import Config
from fastdream.datasets import Recorded
from fastdream.driver import Driver, Voice
from fastdream.envs.base import EnvError
from fastdream.lane import RestartedTooOften
from fastdream.learner import Agent, NonFinite
from fastdream.progress import counted
from fastdream.recording import Recording
from fastdream.replay import Replay
from fastdream.run import EnvironmentFailed
from fastdream.rundir import RunLock
from fastdream.schedule import Stop
from fastdream.stages.collect import recording_spec
from fastdream.stages.fit import Encode, FitMemory, FitVision, Latents
from fastdream.stages.read import usable
from fastdream.stages.session import Session
from fastdream.summary import header, memory
from fastdream.train import (
    beside,
    describe,
    directory,
    last_good,
    make_driver,
    refuse_other_spaces,
    resume_hint,
    set_up,
    stopped,
)


def train(config: Config, command: str = "") -> None:
    """Go through all stages, continuing what the run's directory holds; then evaluate. Raises as `train.train` does."""
    device, why = choose_device(config.device)
    set_up(config)
    voice = Voice()
    # All that can be refused is refused before there is a directory.
    evolution.require()
    cli.refuse_differences(config)
    with make_driver(config, voice) as driver:
        driver.recv()  # an environment that cannot even begin says so here
        agent = make_agent(config, driver.obs_space, driver.act_space, device)
        config = with_steps(config, driver)
        start = begin_from(config, cast(WorldModels, agent))
        logdir = directory(config)
        with RunLock(logdir), Stop() as stop:
            refuse_other_spaces(logdir, driver)
            refuse_other_steps(config, logdir)
            if start and not (logdir / "rollouts").exists():
                take_over(start, logdir)
            parts, models, recording = assemble(config, driver, agent, device, logdir)
            parts.checkpoint.require(agent.state_dict())
            print(header(config, parts, why), flush=True)
            describe(config, parts, command)
            voice.say = parts.logger.print
            try:
                result = go_through(config, parts, models, recording, stop)
            finally:
                parts.logger.close()
    print(result, flush=True)


def with_steps(config: Config, driver: Driver | Recorded) -> Config:
    """The settings, with as many steps as a dataset has in place of those to record. Raises ValueError as `usable`."""
    return replace(config, steps=usable(config, driver)) if isinstance(driver, Recorded) else config


def begin_from(config: Config, agent: WorldModels) -> Path | None:
    """Begin with V and M of another run, whose folder this is; None if there is none, or this one has begun already.

    ValueError if it has no rollouts, V or M, or none for this one.
    """
    begun = config.logdir and checkpoint.any_in(Path(config.logdir).expanduser() / "ckpt")
    if not config.dreamer.start or begun:
        return None
    start = Path(config.dreamer.start).expanduser().resolve()  # runs/latest is soon another run
    if not (start / "rollouts").is_dir():
        raise ValueError(
            f"--dreamer.start {start} holds no rollouts: give the directory of a world_models run"
        )
    warm(agent, start)
    return start


def take_over(start: Path, logdir: Path) -> None:
    """Copy the rollouts of another run. Raises StorageError if the disk refuses."""
    # Whole or not at all, however this ends.
    partial = logdir / "rollouts.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for path in (start / "rollouts").iterdir():
            shutil.copyfile(path, partial / path.name)
        partial.rename(logdir / "rollouts")
    except OSError as error:
        raise rundir.refusal(logdir, error, rundir.StorageError) from error


def warm(agent: WorldModels, start: Path) -> None:
    """Give V and M the parameters of another run; ValueError if that one's have other shapes."""
    loaded = checkpoint.load(start / "ckpt")
    if loaded is None:
        raise ValueError(f"--dreamer.start {start} holds no checkpoint yet")
    try:
        agent.vision.load_state_dict(loaded.tree["agent"]["vision"])
        agent.memory.load_state_dict(loaded.tree["agent"]["memory"])
    except RuntimeError as error:
        raise ValueError(f"--dreamer.start {start} is a run of another size: {error}") from error


def refuse_other_steps(config: Config, logdir: Path) -> None:
    """Raise ValueError if another number of steps is asked for than the run has recorded and learns from."""
    loaded = checkpoint.load(logdir / "ckpt")
    if loaded is None or loaded.tree["session"]["stage"] == "collect":
        return
    if (saved := configs.load(logdir).steps) != config.steps:
        raise ValueError(
            f"--steps: {saved} -> {config.steps}: {logdir} has recorded its steps and learns from them. Leave "
            f"--steps out to resume it, or record more in another run, on top of these: --dreamer.start {logdir}"
        )


def assemble(
    config: Config, driver: Driver | Recorded, agent: Agent, device: torch.device, logdir: Path
) -> tuple[Parts, WorldModels, Recording]:
    """The parts of a run; recordings stand where the replay of other agents is."""
    models = cast(WorldModels, agent)
    recording = Recording(logdir / "rollouts", recording_spec(models))
    kept = cast(Replay, recording)  # of which nothing but its description is asked
    return make_parts(config, agent, kept, driver, device, logdir), models, recording


def go_through(config: Config, parts: Parts, agent: WorldModels, recording: Recording, stop: Stop) -> str:
    """All stages and the evaluation; how it went, in words."""
    try:
        session = Session(config, parts, agent, recording)
        parts.logger.start(session.goal())
        for note in session.notes():
            parts.logger.print(note)
        if config.dreamer.start and session.resumed_from is None:
            session.save()  # what it begins with, which may be gone or another run's when this one is resumed
        if not session.run(stop):
            name = session.names[session.at]
            return f"stopped by {stop.reason} in stage {name}; {resume_hint(parts.logdir)}"
        return final_evaluation(config, session, stop)
    except (EnvError, RestartedTooOften) as error:
        raise EnvironmentFailed(f"{error}\n{resume_hint(parts.logdir)}") from error
    except NonFinite as error:
        raise NonFinite(error.name, error.update, f". {last_good(parts)}") from error


def final_evaluation(config: Config, session: Session, stop: Stop) -> str:
    """Evaluate the controller in the real environment; keep the score in `eval.json` and with the checkpoint."""
    logdir = session.parts.logdir
    done = f"done after all stages; run: {logdir}"
    if not config.eval.final_episodes or not config.task:
        return done
    session.log.print(f"evaluating over {counted(config.eval.final_episodes, 'episode')}")
    result = session.evaluate(stop)
    if stop:
        return f"{stopped(stop, done)}; {resume_hint(logdir)}"
    facts = {"step": session.step, **result.summary(), "mode": config.eval.mode}
    path, text = logdir / "eval.json", json.dumps(facts, indent=1).encode()
    if not path.exists() or path.read_bytes() != text:  # a finished run that is resumed comes to the same
        session.save(result.mean)
        session.log.scalars(session.step, result.metrics())
        rundir.store(path, text)
    return f"{done}\nevaluation: {result} ({config.eval.mode} actions){beside(session.parts)}"


def dry_run(config: Config) -> None:
    """Build everything, record or read episodes to learn from, update V and M once, and say what it took."""
    device, why = choose_device(config.device)
    set_up(config)
    collect = replace(config.dreamer.collect, shortest=1)
    config = replace(
        config, log=replace(config.log, outputs=()), dreamer=replace(config.dreamer, collect=collect)
    )
    with tempfile.TemporaryDirectory() as folder, make_driver(config, Voice()) as driver:
        logdir = Path(folder)
        agent = make_agent(config, driver.obs_space, driver.act_space, device)
        config = with_steps(config, driver)
        begin_from(config, cast(WorldModels, agent))
        parts, models, recording = assemble(config, driver, agent, device, logdir)
        print(header(config, parts, why, kept=False), flush=True)
        first = Session(config, parts, models, recording).stage
        while recording.rows < 2:
            first.advance()
        vision = FitVision(config, models, recording)
        vision.advance()
        encode = Encode(models, recording, logdir / "latents.npy")
        while encode.done < encode.units:
            encode.advance()
        encode.finish()
        fit = FitMemory(config, models, recording, Latents(encode.path, recording.rows))
        fit.advance()
        losses = vision.metrics() | fit.metrics()
        parts.logger.close()
    said = ", ".join(
        f"{key.removeprefix('loss/')} {losses[key]:.3f}" for key in losses if key.endswith("_loss")
    )
    print(f"one update of V and of M: {said}; {memory(device)}", flush=True)
