"""Where environments run: in this process, or each in one of its own.

Both kinds have the same members and raise the same two errors, so the driver does not know which it has:
`Died` when the environment must be made anew, EnvError when the user has something to mend.
"""

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from fastdream.died import Died, died_of
from fastdream.envs.base import Env, EnvError, Obs
from fastdream.envs.images import drawn
from fastdream.spaces import RESERVED, Spaces

MakeEnv = Callable[[int], Env]
# An observation, and a picture if one was asked for (or the reason why there is none).
Answer = tuple[Obs, "np.ndarray | str | None"]


# What a connection raises whose other end is gone.
LOST = (EOFError, BrokenPipeError, ConnectionResetError)


def carry_out(env: Env, command: str, args: tuple[Any, ...]) -> Answer:
    """Does what a worker is asked: ("reset", seed, picture), ("step", action, picture), ("replay", seed, actions)."""
    if command == "replay":
        seed, actions = args
        obs = env.reset(seed)
        for action in actions:
            obs = env.step(action)
        return obs, None
    what, picture = args
    obs = env.reset(what) if command == "reset" else env.step(what)
    return obs, drawn(env) if picture else None


def promises(env: Env) -> tuple[Spaces, Spaces, bool]:
    """Observation space, action space, and whether the environment says that it is deterministic."""
    return env.obs_space, env.act_space, bool(getattr(env, "deterministic", False))


class LocalWorker:
    """An environment in this process: `ask` does the work, `answer` hands it out."""

    def __init__(self, make_env: MakeEnv, seed: int) -> None:
        self._make = lambda: make_env(seed)
        self._answer: Answer | Exception | None = None
        self._env: Env | None = None

    def ready(self, timeout: float) -> tuple[Spaces, Spaces, bool]:
        """Makes the environment; its observation space, action space, and whether it is deterministic."""
        try:
            self._env = self._env or self._make()
        except EnvError:
            raise
        except Exception as error:
            raise died_of(error) from None
        return promises(self._env)

    def ask(self, command: str, *args: Any) -> None:
        """Carries out a command of `carry_out`."""
        try:
            if self._env is None:
                self._env = self._make()
            self._answer = carry_out(self._env, command, args)
        except EnvError as error:
            self._answer = error
        except Exception as error:
            self._answer = died_of(error)

    def answer(self, timeout: float) -> Answer:
        """What the last command came to."""
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None, "nothing was asked"
        return self._answer

    def restart(self) -> None:
        """Makes the environment anew, at the next command; the broken one is not asked to close."""
        self._env = None

    def dismiss(self) -> None:
        """Nothing: `close` does all."""

    def close(self) -> None:
        """Closes the environment."""
        if self._env is not None:
            self._env.close()


class Memory:
    """The arrays of one observation in memory that two processes share."""

    def __init__(self, fd: int, spaces: Spaces) -> None:
        kinds = {key: (space.shape, space.dtype) for key, space in spaces.items()}
        kinds |= {key: ((), np.dtype(np.float32 if key == "reward" else bool)) for key in RESERVED}
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in kinds.values()]
        # Each array begins on a cache line of its own.
        ends = np.cumsum([(size + 63) // 64 * 64 for size in sizes])
        if os.fstat(fd).st_size < ends[-1]:
            os.ftruncate(fd, int(ends[-1]))
        buffer = mmap.mmap(fd, int(ends[-1]))
        self.arrays = {
            key: np.ndarray(shape, dtype, buffer, offset)
            for (key, (shape, dtype)), offset in zip(kinds.items(), (0, *ends[:-1].tolist()), strict=True)
        }

    def write(self, obs: Obs) -> None:
        """Stores an observation."""
        for key, array in self.arrays.items():
            array[...] = obs[key]

    def read(self) -> Obs:
        """A copy of the observation."""
        return {key: array.copy() for key, array in self.arrays.items()}


class ProcessWorker:
    """An environment in a process of its own; observations come back through shared memory.

    Why neither gymnasium.vector nor multiprocessing.Process: AsyncVectorEnv cannot go on after one of its workers
    has died, and spawning re-imports the main module, and with it torch, in every worker. The child here is a
    fresh interpreter that imports what the environment needs. The memory has no name, so nothing is left behind
    however the processes end; a child ends itself when its parent is gone, and is in a process group of its own,
    where Ctrl-C does not reach it.
    """

    def __init__(self, make_env: MakeEnv, seed: int) -> None:
        if os.name != "posix":
            raise EnvError(
                "environments in processes need Linux or macOS; run them in one process (parallel=False)"
            )
        import cloudpickle

        self._payload = cloudpickle.dumps((make_env, seed))
        self._spaces: tuple[Spaces, Spaces, bool] | None = None
        self._start()

    def ready(self, timeout: float) -> tuple[Spaces, Spaces, bool]:
        """Waits for the environment, then its observation space, action space and whether it is deterministic."""
        if self._spaces is None:
            spaces, notes = self._receive("ready", timeout)
            # Said here, where all environments' words are one's and said once.
            for note in notes:
                warnings.warn(note, stacklevel=2)
            self._memory, self._spaces = Memory(self._file.fileno(), spaces[0]), spaces
        return self._spaces

    def ask(self, command: str, *args: Any) -> None:
        """Sends a command of `carry_out` and returns at once."""
        with contextlib.suppress(*LOST):  # `answer` finds out why
            self._pipe.send((command, args))

    def answer(self, timeout: float) -> Answer:
        """Waits for what the command came to."""
        self.ready(timeout)
        logs, picture = self._receive("obs", timeout)
        return {**self._memory.read(), **logs}, picture

    def restart(self) -> None:
        """Ends the process and starts another; returns at once."""
        self._end()
        self._start()

    def dismiss(self) -> None:
        """Asks the process to end; returns at once."""
        self.ask("close")

    def close(self) -> None:
        """Waits for the process to end after `dismiss`, and ends it if it has not within two seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._end()

    def _start(self) -> None:
        self._spaces = None
        self._file = _nameless_file()
        self._pipe, theirs = Pipe()
        code = f"import sys; sys.path[:] = {sys.path!r}; from fastdream.workers import serve; "
        fds = (theirs.fileno(), self._file.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{code}serve({fds[0]}, {fds[1]}, {os.getpid()})"],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what it prints is no result of the command, and goes where warnings go
            process_group=0,
            # One thread is enough for an environment, and all workers together share the machine.
            env={"OMP_NUM_THREADS": "1", **os.environ, "FASTDREAM_WORKER": "1"},
        )
        theirs.close()
        # Runs at the latest when the interpreter exits.
        self._kill = weakref.finalize(self, _kill_group, self._process)
        with contextlib.suppress(*LOST):
            self._pipe.send_bytes(self._payload)

    def _end(self) -> None:
        self._kill()
        self._pipe.close()
        self._file.close()

    def _receive(self, expected: str, timeout: float) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise Died(f"it gave no answer within {timeout:.0f} seconds")
            kind, content = self._pipe.recv()
        except LOST:
            raise Died(self._how_it_ended()) from None
        if kind == "invalid":
            raise EnvError(content)
        if kind == "died":
            raise Died(*content)
        assert kind == expected, f"a worker sent {kind}, not {expected}"
        return content

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("fastdream"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and what it has started, and collects its exit code, so that no zombie stays."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(pipe_fd: int, memory_fd: int, parent: int) -> None:
    """The life of a worker's process: makes the environment, then answers until it is told to close."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe = Connection(pipe_fd)
    env: Env | None = None
    try:
        make_env, seed = pickle.loads(pipe.recv_bytes())
        with warnings.catch_warnings(record=True) as caught:
            env = make_env(seed)
        memory = Memory(memory_fd, env.obs_space)
        pipe.send(("ready", (promises(env), [str(warning.message) for warning in caught])))
        while (request := pipe.recv())[0] != "close":
            obs, picture = carry_out(env, *request)
            memory.write(obs)
            logs = {key: value for key, value in obs.items() if key not in memory.arrays}
            pipe.send(("obs", (logs, picture)))
    except LOST:
        return
    except EnvError as error:
        pipe.send(("invalid", str(error)))
    except Exception as error:
        pipe.send(("died", died_of(error).args))
    finally:
        if env is not None:
            env.close()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
