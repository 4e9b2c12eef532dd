"""A run in stages: which one is next, what is saved, logged and drawn beside it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastdream.agents.world_models import WorldModels
from fastdream.build import Parts, in_processes
from fastdream.checkpoint import Loaded
from fastdream.config import Config
from fastdream.datasets import Recorded
from fastdream.driver import Driver, Voice
from fastdream.progress import Goal
from fastdream.recording import Recording
from fastdream.schedule import EverySeconds, Stop
from fastdream.scores import Scores, evaluate_run
from fastdream.stages import pictures
from fastdream.stages.collect import Collect
from fastdream.stages.evolve import Dreams, Evolve, Races
from fastdream.stages.fit import Encode, FitMemory, FitVision, Latents, memory_updates, vision_updates
from fastdream.stages.read import Read
from fastdream.summary import served

# What the stages count, if not steps of the environment.
UNITS = {"vision": "update", "memory": "update", "control": "generation"}


class Stage(Protocol):
    """A piece of work that can be interrupted: `done` of `units`, more with every `advance`."""

    units: int

    @property
    def done(self) -> int: ...
    def advance(self) -> None: ...
    def metrics(self) -> dict[str, float]: ...
    def finish(self) -> str: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Session:
    """All stages in their order, from the beginning or from where the last checkpoint stands.

    Steps, as they are logged: steps recorded, or read from a dataset, then updates of V, updates of M and generations
    on top of them.
    """

    def __init__(self, config: Config, parts: Parts, agent: WorldModels, recording: Recording) -> None:
        self.config, self.parts, self.log = config, parts, parts.logger
        self.agent, self.recording = agent, recording
        self.encoded = parts.logdir / "latents.npy"
        first: dict[str, Callable[[], Stage]] = {"collect": lambda: Collect(config, parts, agent, recording)}
        if isinstance(data := parts.driver, Recorded):
            first = {"read": lambda: Read(config, agent, data, recording)}
        self.makers = first | {
            "vision": lambda: FitVision(config, agent, recording),
            "encode": lambda: Encode(agent, recording, self.encoded),
            "memory": lambda: FitMemory(config, agent, recording, self.latents()),
            "control": lambda: Evolve(config, agent, self.fitness()),
        }
        self.names, self.at = list(self.makers), 0
        self.planned = planned(config)
        self.log_due, self.save_due = EverySeconds(config.log.every), EverySeconds(config.log.save_every)
        self.voice = Voice(lambda text: self.log.print(f"in evaluation, {text}"))
        self.resumed_from = parts.checkpoint.load()
        if self.resumed_from is not None:
            self.stage = self.restored(self.resumed_from)
        else:
            self.stage = self.makers[self.names[0]]()
        self.finished = self.resumed_from is not None and self.resumed_from.extra.get("finished", False)
        self.logged = self.step
        self.log.resume(self.step)

    def restored(self, loaded: Loaded) -> Stage:
        """The stage that a checkpoint was saved in; parameters before it, because stages are made from them."""
        self.agent.load_state_dict(loaded.tree["agent"])
        self.at = self.names.index(loaded.tree["session"]["stage"])
        stage = self.makers[self.names[self.at]]()
        stage.load_state_dict(loaded.tree["session"]["state"])
        return stage

    def latents(self) -> Latents:
        """What V made of the rollouts."""
        return Latents(self.encoded, self.recording.rows)

    def dreams(self) -> Dreams:
        """Dreams that begin where recorded episodes did."""
        return Dreams(self.config, self.agent, self.latents(), self.recording.starts())

    def fitness(self) -> Dreams | Races:
        """Where C is evolved."""
        if self.agent.config.control.where == "dream":
            return self.dreams()
        assert isinstance(self.parts.driver, Driver), self.parts.driver
        return Races(self.config, self.agent, self.parts.driver)

    @property
    def step(self) -> int:
        """Where the run is."""
        before, planned = sum(self.planned[: self.at]), self.planned[self.at]
        return before + min(planned, self.stage.done)

    def goal(self) -> Goal:
        """What the live display says of the stage."""
        parts, name = self.parts, self.names[self.at]
        place = str(parts.device), str(parts.logdir), served(parts)
        source, done = self.config.task or self.config.dataset, self.stage.done
        return Goal(source, self.stage.units, done, *place, name, UNITS.get(name, "step"))

    def run(self, stop: Stop) -> bool:
        """All that is left to do; whether it is done, which it is not if `stop` came before. Saves what it did."""
        if self.finished:
            return True
        while True:
            name = self.names[self.at]
            while self.stage.done < self.stage.units and not stop:
                self.stage.advance()
                self.aside()
            if stop:
                break
            self.write_metrics()
            self.log.print(f"{name}: {self.stage.finish()}")
            self.draw(name)
            if self.at == len(self.names) - 1:
                self.finished = True
                break
            self.at += 1
            self.stage = self.makers[self.names[self.at]]()
            self.log.turn(self.goal())
            self.save()
        self.write_metrics()
        self.save()
        return self.finished

    def aside(self) -> None:
        """What is due between two pieces of work and changes nothing of what is learned."""
        self.log.progress(min(self.stage.done, self.stage.units), 0)
        if self.log_due():
            self.write_metrics()
        if self.save_due():
            self.save()

    def write_metrics(self) -> None:
        """How the stage is doing, once for a step. Raises NonFinite if a loss is not finite."""
        if self.step > self.logged and (values := self.stage.metrics()):
            self.log.scalars(self.step, values)
            self.logged = self.step

    def draw(self, name: str) -> None:
        """Pictures of what a stage has learned."""
        agent, step, seed = self.agent, self.step, self.config.seed
        if name == "vision":
            self.log.image(step, "reconstructions", pictures.reconstructions(agent, self.recording))
        if name == "memory":
            try:
                self.log.picture(step, "openloop", pictures.open_loop(agent, self.recording, seed))
            except ValueError as error:
                self.log.print(f"no open-loop predictions: {error}")
        if name == "control" and self.config.task:
            parallel, make_env = in_processes(self.config), self.parts.make_env
            with Driver(
                make_env, parallel=parallel, seed=seed, on_restart=self.voice, task=self.config.task
            ) as driver:
                clip = pictures.real_and_dream(agent, driver, self.dreams(), seed)
            self.log.video(step, "real_dream", clip)
        elif name == "control":
            self.log.video(step, "dream", pictures.dream_alone(agent, self.dreams(), seed))

    def evaluate(self, stop: Stop) -> Scores:
        """Episodes in the real environment, on environments of their own."""
        return evaluate_run(self.config, self.parts, self.config.eval.final_episodes, self.voice, stop)

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint, unless a loss is not finite: then raise NonFinite."""
        session = {"stage": self.names[self.at], "state": self.stage.state_dict()}
        tree = {"agent": self.agent.state_dict(), "session": session}
        finished = {"finished": self.finished}
        self.parts.checkpoint.save(tree, step=self.step, score=score, extra=lambda: finished)
        self.log.saved()

    def notes(self) -> list[str]:
        """What the user should know of how this run begins."""
        if self.resumed_from is None:
            return []
        name = self.names[self.at]
        place = f"{name}, {self.stage.done:,} of {self.stage.units:,}"
        return [*self.resumed_from.notes, f"resumed in stage {place}, from {self.resumed_from.path}"]


def planned(config: Config) -> list[int]:
    """How many pieces of work each stage is counted as, in their order."""
    return [
        config.steps,
        vision_updates(config),
        0,  # encoding learns nothing
        memory_updates(config),
        config.dreamer.control.generations,
    ]


def lacking(session: Mapping[str, Any]) -> tuple[str, ...]:
    """What to know of an agent whose checkpoint was saved before the first test of C chose its weights."""
    stage = str(session["stage"])
    if stage == "control" and session["state"]["best"] > -math.inf:
        return ()
    return (
        f"saved in stage {stage}, before C was chosen: its weights are 0, and it takes one action always",
    )
