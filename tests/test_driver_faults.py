"""Environments that crash, hang, raise or lie; processes that must not stay behind."""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from fastdream.died import died_of
from fastdream.driver import Driver, Voice, random_actions
from fastdream.envs import make
from fastdream.envs.base import EnvError
from fastdream.lane import NotStarted, Restart, RestartedTooOften
from fastdream.spaces import Space
from fastdream.workers import ProcessWorker

from .driver_tools import alive, driver, pids, roll


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def watched(task, restarts, **options):
    return driver(task, on_restart=restarts.append, **options)


@pytest.mark.parametrize(
    ("task", "parallel", "reason"),
    [
        ("dummy_crash", True, "ended with code 3"),
        ("dummy_raise", True, "RuntimeError: dummy_raise broke at step 7"),
        ("dummy_raise", False, "RuntimeError: dummy_raise broke at step 7"),
    ],
)
def test_a_dead_environment_is_restarted_and_its_episode_cut_short(task, parallel, reason, rng):
    restarts = []
    with watched(task, restarts, parallel=parallel, at=7) as drv:
        obs = [drv.recv(), *roll(drv, 8, rng)]
        episodes = drv.episodes()
    assert not any(o["is_last"].any() for o in obs[:7])
    assert obs[7]["is_last"].all() and not obs[7]["is_terminal"].any() and not obs[7]["reward"].any()
    assert np.array_equal(obs[7]["vector"], obs[6]["vector"])
    assert obs[8]["is_first"].all()
    assert [(r.worker, r.count) for r in restarts] == [(0, 1), (1, 1)]
    assert all(reason in r.reason for r in restarts)
    assert [(e.length, e.crashed) for e in episodes] == [(7, True)] * 2
    assert episodes[0].score == pytest.approx(sum(float(o["reward"][0]) for o in obs[:8]))


def test_only_the_dead_one_is_restarted(rng):
    restarts = []
    with watched("dummy_vector", restarts, parallel=True, n=3) as drv:
        drv.recv()
        roll(drv, 3, rng)
        os.kill(pids(drv)[1], signal.SIGKILL)
        obs = roll(drv, 2, rng)
    assert obs[0]["is_last"].tolist() == [False, True, False]
    assert obs[1]["is_first"].tolist() == [False, True, False]
    assert len(restarts) == 1 and "killed by SIGKILL" in restarts[0].reason


def test_a_process_that_dies_between_episodes_costs_no_step(rng):
    restarts = []
    with watched("dummy_vector", restarts, parallel=True, n=1, length=3) as drv:
        drv.recv()
        roll(drv, 3, rng)
        os.kill(pids(drv)[0], signal.SIGKILL)
        (obs,) = roll(drv, 1, rng)
        assert obs["is_first"].all() and len(restarts) == 1
        assert [e.crashed for e in drv.episodes()] == [False]


def test_a_process_that_hangs_is_ended(rng):
    restarts = []
    with watched("dummy_hang", restarts, parallel=True, n=1, at=2, timeout=2) as drv:
        drv.recv()
        (hung,) = pids(drv)
        obs = roll(drv, 3, rng)
    assert obs[1]["is_last"].all() and obs[2]["is_first"].all()
    assert "no answer within" in restarts[0].reason and not alive(hung)


def test_an_environment_that_always_dies_stops_the_run_with_its_own_words(rng):
    with (
        watched("dummy_raise", [], n=1, at=1) as drv,
        pytest.raises(
            RestartedTooOften, match="restarted 11 times within 1000 steps.*dummy_raise broke at step 1"
        ),
    ):
        drv.recv()
        roll(drv, 100, rng)


def test_restarts_are_warned_about_unless_someone_listens(rng):
    with (
        driver("dummy_raise", n=1, at=1) as drv,
        pytest.warns(UserWarning, match=r"(?s)environment 0 was restarted \(number 1\).*broke"),
    ):
        drv.recv()
        assert roll(drv, 1, rng)[0]["is_last"].all()


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("task", "text"), [("dummy_nan", "reward is nan"), ("dummy_badobs", "'vector' is float64")]
)
def test_a_broken_promise_stops_the_run_and_is_no_crash(task, text, parallel, rng):
    restarts = []
    with (
        watched(task, restarts, parallel=parallel, at=3, n=1) as drv,
        pytest.raises(EnvError, match=f"{task}.*{text}.*step 3"),
    ):
        drv.recv()
        roll(drv, 5, rng)
    assert restarts == []


@pytest.mark.parametrize("parallel", [False, True])
def test_an_environment_that_cannot_be_made_is_an_error_at_once(parallel):
    with pytest.raises(EnvError, match="did you mean 'dummy_vector'"):
        driver("dummy_vectr", parallel=parallel)
    with pytest.raises(NotStarted, match="environment 'mine' did not start: ZeroDivisionError: .* by zero"):
        Driver(lambda seed: 1 // 0, 1, parallel=parallel, task="mine")


def test_more_processes_than_the_system_has_room_for(monkeypatch):
    started = []

    def start(self):
        if len(started) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        started.append(start_worker(self))

    start_worker = ProcessWorker._start
    monkeypatch.setattr(ProcessWorker, "_start", start)
    with pytest.raises(EnvError, match="no process for environment 2 of 3: Too many open files; use fewer"):
        driver("dummy_vector", n=3, parallel=True)


@pytest.mark.parametrize("parallel", [False, True])
def test_an_environment_that_never_gave_an_observation_is_not_tried_again(parallel):
    space = Space("discrete", (), 2)

    class NeverBegins:
        """Can be made, and fails at its first reset."""

        obs_space = act_space = {"x": space}

        def reset(self, seed=None):
            raise OSError("no display")

        def close(self):
            pass

    restarts = []
    with (
        Driver(lambda seed: NeverBegins(), 1, parallel=parallel, on_restart=restarts.append) as drv,
        pytest.raises(NotStarted, match="an environment did not start: OSError: no display") as error,
    ):
        drv.recv()
    assert restarts == []
    # The traceback begins in the environment, not in the machinery that called it.
    trace = [line for line in str(error.value).splitlines() if line.startswith("  File")]
    assert len(trace) == 1 and trace[0].endswith("in reset")


def test_the_same_exception_is_shown_in_full_only_once():
    said = []
    voice = Voice(said.append)
    trace = "Traceback (most recent call last):\n  File {}\n{}\n"
    for place, reason in [("a", "E: 1"), ("a", "E: 2"), ("b", "E: 2"), ("", "killed"), ("", "killed")]:
        voice(Restart(0, 1, reason, trace.format(place, reason) if place else ""))
    assert [text.count("Traceback") for text in said] == [1, 0, 1, 0, 0]
    assert said[1] == "environment 0 was restarted (number 1): E: 2"
    assert all(text.startswith("environment 0 was restarted (number 1): ") for text in said)


def test_functions_that_no_module_holds_travel_to_processes(rng):
    length = 3
    with Driver(lambda seed: make("dummy_vector", seed, length=length), 1, parallel=True) as drv:
        drv.recv()
        assert roll(drv, 3, rng)[-1]["is_last"].all()


def test_stepping_goes_on_while_the_caller_computes(rng):
    with driver("dummy_slow", parallel=True, n=2, delay=0.05) as drv:
        drv.recv()
        drv.send(random_actions(drv.act_space, 2, rng))
        pipes = [worker._pipe for worker in drv._workers]
        assert not any(pipe.poll(0) for pipe in pipes)
        assert all(pipe.poll(5) for pipe in pipes)
        assert not drv.recv()["is_first"].any()


def test_closing_ends_processes_files_and_threads(rng):
    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()
    drv = driver("dummy_vector", parallel=True)
    drv.recv()
    drv.send(random_actions(drv.act_space, 2, rng))
    children = pids(drv)
    drv.close()
    drv.close()
    assert not any(alive(pid) for pid in children)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_a_hung_process_is_ended_by_closing(rng):
    drv = driver("dummy_hang", parallel=True, n=1, at=1)
    drv.recv()
    drv.send(random_actions(drv.act_space, 1, rng))
    (child,) = pids(drv)
    drv.close()
    assert not alive(child)


SCRIPT = """
import numpy, sys, time
from functools import partial
from fastdream.driver import Driver
from fastdream.envs import make
driver = Driver(partial(make, "dummy_hang", at=1), 2, parallel=True)
driver.recv()
driver.send({"action": numpy.zeros(2, numpy.int32)})
print(*(worker._process.pid for worker in driver._workers), flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["wait", "exit"])
def test_no_process_outlives_the_program_however_it_ends(how):
    shown = {
        "stdout": subprocess.PIPE,
        "text": True,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    }
    with subprocess.Popen([sys.executable, "-c", SCRIPT, how], **shown) as program:
        children = [int(pid) for pid in program.stdout.readline().split()]
        assert len(children) == 2
        if how == "wait":
            program.kill()
        assert program.wait(20) == (-signal.SIGKILL if how == "wait" else 0)
    end = time.monotonic() + 20
    while any(alive(pid) for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)


def test_ctrl_c_reaches_the_program_and_not_its_environments(rng):
    with driver("dummy_vector", parallel=True, n=1) as drv:
        drv.recv()
        (child,) = pids(drv)
        assert os.getpgid(child) == child != os.getpgid(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            roll(drv, 2, rng)


def test_workers_import_no_torch():
    with driver("dummy_vector", parallel=True, n=1) as drv:
        drv.recv()
        (child,) = pids(drv)
        maps = f"/proc/{child}/maps"
        if not os.path.exists(maps):
            pytest.skip("this system does not list what a process has loaded")
        with open(maps) as file:
            assert "libtorch" not in file.read()


def test_code_that_is_no_python_is_named_by_what_is_wrong_with_it():
    died = died_of(SyntaxError("invalid syntax", ("mine.py", 3, 1, "def def")))
    assert died.reason == "SyntaxError: invalid syntax" and 'File "mine.py", line 3' in died.trace
