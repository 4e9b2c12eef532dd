"""The loop that trains an agent while it acts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from fastdream.build import Parts, min_windows
from fastdream.checkpoint import KEPT, Loaded
from fastdream.config import Config
from fastdream.driver import Driver, Voice, no_actions, random_actions
from fastdream.envs.base import EnvError
from fastdream.lane import RestartedTooOften
from fastdream.learner import Learner
from fastdream.offline import Updates
from fastdream.replay import Replay
from fastdream.replay_store import Array
from fastdream.schedule import EverySeconds, EverySteps, Ratio, Stop
from fastdream.scores import Scores, evaluate_run


class EnvironmentFailed(RuntimeError):
    """An environment broke its promises, or died again and again. What was learned until then is saved."""


class Online:
    """Acts, stores, learns: one `advance` is one step of every environment and the updates that fall due.

    Between two of them nothing is in flight but what `state` holds, so a checkpoint taken there continues exactly:
    the same actions, batches and losses, whatever was logged, reported or evaluated in between.

    windows  that replay must hold before the first update; None waits for as many as a batch has steps.
    """

    def __init__(self, config: Config, parts: Parts, windows: int | None = None) -> None:
        self.config, self.parts = config, parts
        assert isinstance(parts.driver, Driver), parts.driver
        self.agent, self.replay, self.driver = parts.agent, parts.replay, parts.driver
        train = config.train
        self.windows = min_windows(config) if windows is None else windows
        self.ratio = Ratio(Fraction(train.ratio) / (train.batch_size * train.batch_length))
        self.learner = Learner(parts.agent, parts.replay, train.batch_size, parts.device)
        self.carry = self.agent.init_policy(self.driver.n)
        self.none = self.action = no_actions(self.driver.act_space, self.driver.n)
        self.filling = np.full(self.driver.n, train.prefill > 0)  # environments that still act at random
        self.step = 0

    def advance(self, obs: Mapping[str, Array]) -> None:
        """Take in observations [n, ...], act on them, and learn while the environments step."""
        due = self.due()
        if due > 1 and not self.learner.updates:
            # Nothing else is said until they are made.
            self.parts.logger.print(f"learning begins, with {due:,} updates at once")
        if due:
            self.learner.request()  # copied while the policy is computed
        action, latents = self.act(obs)
        self.driver.send(action)
        self.store(obs, latents)
        self.action = action
        self.step += self.driver.n
        for left in reversed(range(due)):
            more = left > 0 and len(self.replay) > 0
            self.learner.update(more)
            if left and not more:
                # What was stored took the start of the only whole episode: the rest waits for the next one.
                self.ratio.done -= left
                break

    def due(self) -> int:
        """Updates to make in this step."""
        train = self.config.train
        if self.step < train.prefill or len(self.replay) < self.windows:
            return 0
        begins = self.ratio.start < 0
        due = self.ratio.due(self.step + self.driver.n)
        return due + train.pretrain - 1 if begins and due else due

    def act(self, obs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Actions and latents [n, ...]: the agent's, or random ones until an environment was filled up.

        An environment is handed over when an episode begins in it, where the agent starts from nothing anyway.
        """
        train, n = self.config.train, self.driver.n
        if self.step >= train.prefill:
            self.filling &= np.logical_not(obs["is_first"])
        if not self.filling.all():
            self.carry, action, latents = self.agent.policy(self.carry, obs)
        else:
            action = self.none
            latents = {
                k: np.zeros((n, *shape), dtype) for k, (shape, dtype) in self.agent.latent_spec.items()
            }
        if self.filling.any():
            # Made anew at every step, so that there is no state that a checkpoint had to keep.
            rng = np.random.default_rng((self.config.seed, self.step))
            drawn = random_actions(self.driver.act_space, n, rng)
            action = {key: _where(self.filling, drawn[key], value) for key, value in action.items()}
        return action, latents

    def store(self, obs: Mapping[str, Array], latents: Mapping[str, Array]) -> None:
        """Add the observations, the actions that led to them, and what the agent made of them."""
        begins, none = obs["is_first"], self.none
        led_here = {f"action/{key}": _where(begins, none[key], value) for key, value in self.action.items()}
        batch = {**obs, **led_here, **latents}
        for worker in range(self.driver.n):
            self.replay.add(worker, {key: value[worker] for key, value in batch.items()})

    def losses_unseen(self) -> dict[str, float]:
        """None: everything that is collected is learned from."""
        return {}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, apart from the replay's content."""
        return {
            "agent": self.agent.state_dict(),
            "learner": self.learner.state_dict(),
            "driver": self.driver.state_dict(),
            "loop": {
                "step": self.step,
                "ratio": self.ratio.state_dict(),
                "carry": {key: value.cpu() for key, value in self.carry.items()},
                "action": self.action,
                "filling": self.filling,
            },
            "random": {"torch": torch.get_rng_state(), "numpy": list(np.random.get_state())},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; the replay must have been restored before."""
        self.agent.load_state_dict(state["agent"])
        self.learner.load_state_dict(state["learner"])
        loop = state["loop"]
        self.step = int(loop["step"])
        self.ratio.load_state_dict(loop["ratio"])
        self.carry = {key: torch.as_tensor(loop["carry"][key]).to(x) for key, x in self.carry.items()}
        self.action = {key: np.asarray(value) for key, value in loop["action"].items()}
        self.filling = np.asarray(loop.get("filling", np.zeros_like(self.filling)))
        self.driver.load_state_dict(state["driver"])
        torch.set_rng_state(state["random"]["torch"])
        np.random.set_state(tuple(state["random"]["numpy"]))


def loop_of(config: Config, parts: Parts, windows: int | None = None) -> Online | Updates:
    """The loop of these settings; for `windows` see Online."""
    return Updates(config, parts) if config.dataset else Online(config, parts, windows)


class Training:
    """A run from its first or its restored step to its last: its loop, and all that happens beside it."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.parts, self.log = config, parts, parts.logger
        self.loop = loop_of(config, parts)
        self.voice = Voice(lambda text: self.log.print(f"in evaluation, {text}"))
        self.resumed_from = self.restore()
        self.logged = step = self.loop.step
        self.log.resume(step)
        self.log_due, self.save_due = EverySeconds(config.log.every), EverySeconds(config.log.save_every)
        self.report_due = EverySteps(config.log.report_every, step)
        last = self.resumed_from
        self.saved = (last.step, last.score) if last else (-1, None)
        self.eval_due = EverySteps(config.eval.every, last.extra.get("evaluated", step) if last else step)

    def run(self, stop: Stop) -> None:
        """Train until `config.steps` or until `stop`; then save. Raises NonFinite, and saves nothing then."""
        while True:
            obs = self.receive()
            self.aside(stop)
            if self.loop.step >= self.config.steps or stop:
                break
            self.loop.advance(obs)
        self.write_metrics()
        self.save()

    def receive(self) -> Mapping[str, Array]:
        """The next observations."""
        with self.saved_if_environments_fail():
            obs = self.loop.driver.recv()
        for episode in self.loop.driver.episodes():
            if not episode.crashed:  # which was said, and its score is one of the environment's death
                self.log.episode(self.loop.step, episode.score, episode.length, episode.extras)
        return obs

    @contextmanager
    def saved_if_environments_fail(self) -> Iterator[None]:
        """Save what was learned, and raise EnvironmentFailed, when environments have failed for good."""
        try:
            yield
        except (EnvError, RestartedTooOften) as error:
            self.save()
            raise EnvironmentFailed(str(error)) from error

    def aside(self, stop: Stop) -> None:
        """What is due between two steps and changes nothing of what is learned."""
        step = self.loop.step
        self.log.progress(step, self.loop.learner.updates)
        if self.log_due():
            self.write_metrics()
        if self.report_due(step):
            self.report()
        before = self.eval_due.last
        if self.eval_due(step):
            result = self.evaluate(self.config.eval.episodes, stop)
            # One that was stopped has the short episodes alone: it is made again when the run goes on.
            if stop:
                self.eval_due.last = before
            elif result.scores:
                self.log.scalars(step, result.metrics())
                self.save(result.mean)
        if self.save_due():
            self.save()

    def write_metrics(self) -> None:
        """Means since the last call, once for a step. Raises NonFinite if a loss is not finite."""
        loop = self.loop
        if loop.step > self.logged:
            values = {f"train/{key}": value for key, value in loop.learner.metrics.fetch().items()}
            replay = {"replay/steps": loop.replay.steps, "replay/windows": len(loop.replay)}
            self.log.scalars(loop.step, {**values, **replay})
            self.logged = loop.step

    def report(self) -> None:
        """Open-loop predictions on the batch that was learned from last."""
        if (result := self.loop.learner.report()) is None:
            return
        metrics, pictures = result
        values = {key: float(value) for key, value in metrics.items()} | self.loop.losses_unseen()
        self.log.scalars(self.loop.step, {f"report/{key}": value for key, value in values.items()})
        for key, picture in pictures.items():
            self.log.picture(self.loop.step, f"openloop/{key}", picture)

    def evaluate(self, episodes: int, stop: Stop | None = None) -> Scores:
        """Episodes on environments of their own, with random numbers of their own; none where there is no task."""
        if not self.config.task:
            return Scores()
        with self.saved_if_environments_fail():
            return evaluate_run(self.config, self.parts, episodes, self.voice, stop)

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint, unless it is there, as when a run that is done is resumed; NonFinite if a loss is not."""
        loop, checkpoint, folder = self.loop, self.parts.checkpoint, self.parts.logdir / "replay"
        loop.learner.metrics.check()
        step, known = self.saved
        if loop.step == step and score in (None, known):
            return

        def extra() -> dict[str, Any]:
            return {"evaluated": self.eval_due.last, "replay": loop.replay.save(folder)}

        checkpoint.save(loop.state(), step=loop.step, score=score, extra=extra)
        self.saved = loop.step, score
        self.log.saved()
        # The best generation is for acting; only the last ones are continued from.
        Replay.prune(folder, [kept["replay"] for kept in checkpoint.kept()[-KEPT:]])

    def restore(self) -> Loaded | None:
        """Continue from the last checkpoint that is sound, if there is one."""
        if (loaded := self.parts.checkpoint.load("last", self.restore_replay)) is not None:
            self.loop.load_state(loaded.tree)
        return loaded

    def restore_replay(self, loaded: Loaded) -> None:
        """Read the replay of a checkpoint; raises CorruptReplay if it cannot be used, so that an older one is tried."""
        self.loop.replay.restore(self.parts.logdir / "replay", loaded.extra["replay"])

    def notes(self) -> list[str]:
        """What the user should know of how this run begins."""
        if self.resumed_from is None:
            return []
        return [*self.resumed_from.notes, f"resumed at step {self.loop.step:,} from {self.resumed_from.path}"]

    def close(self) -> None:
        """End the learner's thread."""
        self.loop.learner.close()


def _where(flag: Array, chosen: Array, other: Array) -> Array:
    """The chosen value where the flag [n] is set, the other [n, ...] elsewhere."""
    return np.where(flag.reshape(-1, *[1] * (other.ndim - 1)), chosen, other)
