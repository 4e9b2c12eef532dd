"""Rolling a driver with random actions, and looking after its processes."""

import os
from functools import partial

import numpy as np

from fastdream.driver import Driver, random_actions
from fastdream.envs import make


def driver(task, n=2, **options):
    """A driver of a task; options that are not the driver's are the environment's."""
    own = {
        k: options.pop(k)
        for k in ("parallel", "seed", "timeout", "exact_resume", "on_restart")
        if k in options
    }
    return Driver(partial(make, task, **options), n, **own)


def roll(drv, steps, rng):
    """Observations of so many steps."""
    return [drv.step(random_actions(drv.act_space, drv.n, rng)) for _ in range(steps)]


def alike(one, other):
    """Whether two lists of observations are equal to the bit."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(one, other, strict=True)
    )


def pids(drv):
    """Processes of a parallel driver."""
    return [worker._process.pid for worker in drv._workers]


def alive(pid):
    """Whether a process is there, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
