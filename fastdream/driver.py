"""Steps many environments together: one batch of observations out, one batch of actions in.

    driver = Driver(partial(make, "gym_CartPole-v1"), n=4)
    while ...:
        obs = driver.recv()                     # waits; the first call gives the first observations
        carry, action, latents = agent.policy(carry, obs)
        driver.send(action)                     # returns at once when the environments have processes
        ...                                     # learn, while they step

Reset layout: the last observation of an episode (is_last) is a step of its own. The action that follows it is
ignored, and the next observation is the new episode's first (is_first, reward 0).

An environment that crashes, hangs or raises is made anew and reported; its episode ends as cut short (is_last, not
is_terminal). An environment that breaks its promises (EnvError: a reward that is not a number, an observation
outside its space), or that dies before its first observation (NotStarted), stops everything, because it would do
so again; one that dies again and again does so, too (RestartedTooOften).
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastdream.died import Died
from fastdream.envs.base import EnvError, Obs
from fastdream.episodes import Episode
from fastdream.lane import Lane, NotStarted, Restart, episode_seed
from fastdream.spaces import RESERVED, Spaces
from fastdream.workers import LocalWorker, MakeEnv, ProcessWorker


def warn_restart(restart: Restart) -> None:
    """Reports a restart as a warning."""
    warnings.warn(f"{restart}\n{restart.trace}".rstrip(), stacklevel=2)


class Voice:
    """Says when an environment was restarted, through `say`: one line, and a traceback that was not said before."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self._said: set[str] = set()

    def __call__(self, restart: Restart) -> None:
        # Where it was raised: the message may differ from time to time.
        place = restart.trace.rpartition(restart.reason)[0]
        known = place in self._said
        self._said.add(place)
        self.say(str(restart) if known else f"{restart}\n{restart.trace}".rstrip())


class Driver:
    """N environments, in this process or each in one of its own.

    make_env      called with a seed; must be picklable (cloudpickle) when parallel.
    seed          every episode is reset with a seed made of this one, the environment's index and the episode's
                  number, so serial and parallel drivers go through the same episodes.
    timeout       seconds after which a process that does not answer counts as dead.
    exact_resume  remember each episode's actions, so that a state can be loaded into the middle of an episode of an
                  environment that is `deterministic`.
    on_restart    called with a Restart; warns by default.
    task          what errors call the environment.

    Set `record` to get `Episode.frames` for the episodes of environment 0 that begin from then on.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        n: int = 1,
        *,
        parallel: bool = False,
        seed: int = 0,
        timeout: float = 300.0,
        exact_resume: bool = True,
        on_restart: Callable[[Restart], None] = warn_restart,
        task: str = "",
    ) -> None:
        if n < 1:
            raise ValueError(f"a driver needs at least one environment, got n={n}")
        self.n = n
        self.record = False
        self._timeout = timeout
        self._task = task
        self._finished: list[Episode] = []
        self._workers: list[LocalWorker | ProcessWorker] = []
        self._lanes: list[Lane] = []
        kind = ProcessWorker if parallel else LocalWorker
        try:
            for index in range(n):
                try:
                    self._workers.append(kind(make_env, episode_seed(seed, index, 0)))
                except OSError as error:
                    raise EnvError(
                        f"no process for environment {index} of {n}: {error.strerror}; use fewer environments, or "
                        "run them in one process (--env.parallel no)"
                    ) from error
            self.obs_space, self.act_space, deterministic = self._agree()
        except BaseException:
            self.close()
            raise
        keep = exact_resume and deterministic
        for index, worker in enumerate(self._workers):
            self._lanes.append(Lane(worker, index, seed, keep, on_restart, self._finished, task))
        self._fresh = True

    def _agree(self) -> tuple[Spaces, Spaces, bool]:
        try:
            promises = [worker.ready(self._timeout) for worker in self._workers]
        except Died as died:
            raise NotStarted(self._task, died) from None
        for index, other in enumerate(promises):
            if other != promises[0]:
                raise EnvError(
                    f"environment {index} has other spaces than environment 0: {other} and {promises[0]}"
                )
        return promises[0]

    def recv(self) -> Obs:
        """Observations, reward and flags of all environments, arrays [n, ...] that nothing else refers to.

        Waits for the answers to the last `send`. When nothing was sent since, gives the same observations again.
        """
        self._begin()
        deadline = time.monotonic() + self._timeout
        rows = [lane.receive(max(1.0, deadline - time.monotonic())) for lane in self._lanes]
        return {key: np.stack([row[key] for row in rows]) for key in (*self.obs_space, *RESERVED)}

    def send(self, actions: dict[str, np.ndarray]) -> None:
        """Gives every environment its action: arrays [n, ...] for each key of `act_space`."""
        assert not self._fresh, "send before the first recv"
        for key in self.act_space:
            if key not in actions or len(actions[key]) != self.n:
                raise ValueError(f"need an action {key!r} for each of {self.n} environments, got {actions}")
        for i, lane in enumerate(self._lanes):
            lane.act({key: np.array(actions[key][i]) for key in self.act_space}, self.record and i == 0)

    def step(self, actions: dict[str, np.ndarray]) -> Obs:
        """`send` and `recv`."""
        self.send(actions)
        return self.recv()

    def restart(self, seeds: Sequence[int]) -> Obs:
        """Breaks off all episodes and begins one in each environment, with these seeds; gives its observations."""
        assert len(seeds) == self.n, (len(seeds), self.n)
        self.recv()
        for lane, seed in zip(self._lanes, seeds, strict=True):
            lane.begin(self.record and lane is self._lanes[0], int(seed))
        self._finished.clear()
        return self.recv()

    def episodes(self) -> list[Episode]:
        """Episodes that ended since the last call."""
        episodes = list(self._finished)
        self._finished.clear()
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Numbers of the episodes, their tallies, what was received last, and the actions that may bring them back.

        May be taken at any time; best between `send` and `recv`, so that a resumed loop goes on with `recv`.
        Taken after `recv`, the first `recv` of the resumed loop gives the same observations once more.
        Episodes that were not fetched are not in it.
        """
        self._begin()
        return {str(i): lane.state_dict() for i, lane in enumerate(self._lanes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a state. Episodes that cannot be brought back are cut short with what was received last."""
        if len(state) != self.n:
            raise ValueError(f"the state is one of {len(state)} environments, and there are {self.n}")
        if not self._fresh:
            self.recv()
        self._fresh = False
        for i, lane in enumerate(self._lanes):
            lane.load_state_dict(state[str(i)], self._timeout)
        self._finished.clear()

    def _begin(self) -> None:
        if self._fresh:
            self._fresh = False
            for i, lane in enumerate(self._lanes):
                lane.begin(self.record and i == 0)

    def close(self) -> None:
        """Closes the environments and ends their processes. May be called more than once."""
        workers, self._workers, self._lanes = self._workers, [], []
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.close()

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def random_actions(act_space: Spaces, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Uniform actions for n environments: classes, and vectors in [-1, 1]."""
    return {
        key: rng.integers(space.classes, size=(n, *space.shape), dtype=np.int32)
        if space.kind == "discrete"
        else rng.uniform(-1, 1, (n, *space.shape)).astype(np.float32)
        for key, space in act_space.items()
    }


def no_actions(act_space: Spaces, n: int) -> dict[str, np.ndarray]:
    """What led to an episode's first observation, for n environments: zeros, and no class, which is -1."""
    return {
        key: np.full((n, *space.shape), -1 if space.kind == "discrete" else 0, space.dtype)
        for key, space in act_space.items()
    }
