"""One environment's place in the driver's batch: whose turn it is, when it resets, and what happens when it dies."""

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdream.died import Died
from fastdream.envs.base import Action, EnvError, Obs
from fastdream.episodes import Episode, Tally
from fastdream.workers import LocalWorker, ProcessWorker

# So many restarts of one environment within so many of its steps are no accident.
MOST_RESTARTS = 10
RESTART_WINDOW = 1000

# Episodes longer than this are not replayed when a run is resumed, and videos end here.
LONGEST_REPLAY = 10_000
LONGEST_VIDEO = 1_000


class NotStarted(EnvError):
    """An environment could not be made, or died before it had given an observation: it would do so again."""

    def __init__(self, task: str, died: Died) -> None:
        name = f"environment {task!r}" if task else "an environment"
        super().__init__(f"{name} did not start: {died}")


class RestartedTooOften(RuntimeError):
    """An environment died again and again."""


@dataclass(frozen=True)
class Restart:
    """Report of an environment that was made anew: which, how often so far, and why.

    reason  in one line.
    trace   the traceback, if it raised something; "" otherwise.
    """

    worker: int
    count: int
    reason: str
    trace: str = ""

    def __str__(self) -> str:
        return f"environment {self.worker} was restarted (number {self.count}): {self.reason}"


def episode_seed(seed: int, worker: int, episode: int) -> int:
    """Seed of an episode, in [0, 2^31): a function of the run's seed, the worker and the episode's number."""
    return int(np.random.SeedSequence((seed, worker, episode)).generate_state(1)[0] >> 1)


class Lane:
    """An environment, its current episode, and all that is needed to begin the next or to come back to this one.

    `act` asks the worker for a step, or for a reset where the episode is over; `receive` fetches the answer.
    """

    def __init__(
        self,
        worker: LocalWorker | ProcessWorker,
        index: int,
        seed: int,
        keep: bool,
        on_restart: Callable[[Restart], None],
        finished: list[Episode],
        task: str = "",
    ) -> None:
        self._worker = worker
        self._index = index
        self._seed = seed
        self._keep = keep
        self._on_restart = on_restart
        self._finished = finished
        self._task = task
        self._episode = 0
        self._steps = 0
        self._restarts: deque[int] = deque(maxlen=MOST_RESTARTS + 1)
        self._count = 0
        self._tally = Tally()
        # Actions since the reset, while replaying them can bring the episode back; None once it cannot.
        self._actions: list[Action] | None = None
        self._frames: list[np.ndarray] | None = None
        self._asked = ""
        self._given: int | None = None  # the current episode's seed, where it is from elsewhere
        self._obs: Obs = {}

    def begin(self, record: bool = False, seed: int | None = None) -> None:
        """Asks for a reset, with the next seed or with one from elsewhere, from which nothing can be resumed."""
        self._episode += 1
        self._tally = Tally()
        self._actions = [] if self._keep and seed is None else None
        self._frames = [] if record else None
        self._given = seed
        if seed is None:
            seed = episode_seed(self._seed, self._index, self._episode)
        self._ask("reset", seed, record)

    def act(self, action: Action, record: bool) -> None:
        """Asks for a step, or for a reset if the episode is over; then the action is ignored."""
        assert not self._asked, "a new action before the last one was answered"
        if self._obs["is_last"]:
            self.begin(record)
            return
        if self._actions is not None:
            self._actions.append(action)
            if len(self._actions) > LONGEST_REPLAY:
                self._actions = None
        self._ask("step", action, self._frames is not None and len(self._frames) < LONGEST_VIDEO)

    def receive(self, timeout: float) -> Obs:
        """The answer to what was asked last; the same again if nothing was asked since."""
        while self._asked:
            try:
                obs, picture = self._worker.answer(timeout)
            except Died as died:
                self._recover(died)
            else:
                self._take(obs, picture)
        return self._obs

    def state_dict(self) -> dict[str, Any]:
        """The episode's number, its tally, its actions where they can bring it back, and what was given last."""
        actions = self._actions or []
        columns = {
            key: np.stack([action[key] for action in actions]) for key in (actions[0] if actions else ())
        }
        return {
            "episode": self._episode,
            "pending": int(bool(self._asked)),
            "exact": int(self._actions is not None),
            "tally": self._tally.state_dict(),
            "actions": columns,
            # Where something was asked, whoever takes the state has used the observation already.
            "obs": {} if self._asked else {key: np.array(value) for key, value in self._obs.items()},
        }

    def load_state_dict(self, state: dict[str, Any], timeout: float) -> None:
        """Goes back to the state.

        Afterwards `receive` gives what it would have given next when the state was taken: the answer to what had
        been asked, or else the observation that had been given last. Where the environment cannot be brought back,
        that observation ends its episode, which is cut short; without one the next episode begins.
        """
        assert not self._asked, "loading a state in the middle of a step"
        self._episode = int(state["episode"])
        self._frames = None
        given = {key: np.asarray(value) for key, value in state.get("obs", {}).items()}
        if self._keep and state["exact"] and self._brought_back(state, given, timeout):
            return
        if given:
            self._actions = None
            self._obs = {**given, "is_last": np.array(True)}
        else:
            self.begin()

    def _brought_back(self, state: dict[str, Any], given: Obs, timeout: float) -> bool:
        """Repeats the actions of the state's episode; whether they led to what was given last, if that is known."""
        episode = self._episode
        columns = {key: np.asarray(column) for key, column in state.get("actions", {}).items()}
        count = len(next(iter(columns.values()), ()))
        self._actions = [{key: column[t] for key, column in columns.items()} for t in range(count)]
        self._ask("replay", episode_seed(self._seed, self._index, episode), self._actions)
        if not state["pending"]:
            self.receive(timeout)
        if self._episode != episode:  # it died on the way, which was said
            return False
        if any(not np.array_equal(value, self._obs[key]) for key, value in given.items()):
            warnings.warn(
                f"environment {self._index} calls itself deterministic, but the same actions led elsewhere: its "
                "episode ends here, and the run does not go on to the bit",
                stacklevel=2,
            )
            return False
        self._tally.load_state_dict(state["tally"])
        return True

    def _ask(self, command: str, *args: Any) -> None:
        self._asked = command
        self._worker.ask(command, *args)

    def _take(self, obs: Obs, picture: np.ndarray | str | None, crashed: bool = False) -> None:
        self._asked = ""
        self._steps += 1
        self._tally.add(obs)
        self._obs = obs
        if self._frames is not None and picture is not None:
            self._show(picture)
        if obs["is_last"]:
            self._finished.append(self._tally.finish(self._index, crashed, self._frames))

    def _show(self, picture: np.ndarray | str) -> None:
        """Adds a picture to the video; says why there will be none if there is none, or one of another size."""
        assert self._frames is not None
        if isinstance(picture, np.ndarray) and self._frames and picture.shape != self._frames[0].shape:
            picture = f"its pictures are first {list(self._frames[0].shape)} and then {list(picture.shape)}"
        if isinstance(picture, str):
            warnings.warn(f"no video: {picture}", stacklevel=2)
            self._frames = None
        else:
            self._frames.append(picture)

    def _recover(self, died: Died) -> None:
        """Restarts the worker; closes an open episode as cut short, or asks for the reset again."""
        if self._asked == "reset" and not self._steps:
            raise NotStarted(self._task, died)
        self._count += 1
        self._restarts.append(self._steps)
        if len(self._restarts) > MOST_RESTARTS and self._steps - self._restarts[0] <= RESTART_WINDOW:
            raise RestartedTooOften(
                f"environment {self._index} had to be restarted {len(self._restarts)} times within "
                f"{RESTART_WINDOW} steps; the last time: {died.reason}"
            )
        self._worker.restart()
        self._on_restart(Restart(self._index, self._count, died.reason, died.trace))
        if self._asked == "step":
            flags = {"reward": np.float32(0), "is_first": False, "is_last": True, "is_terminal": False}
            self._actions = None
            self._take({**self._obs, **flags}, None, crashed=True)
        else:
            self.begin(self._frames is not None, self._given)
