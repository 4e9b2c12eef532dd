"""CMA-ES: it climbs, it goes on where it was, and it leaves NumPy's global generator alone."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from fastdream.evolution import Evolution, require

# Large enough for NumPy to share its matrix products among threads, and long enough for the covariance to be used.
CLIMB = """
import hashlib, numpy as np
from fastdream.evolution import Evolution
evolution = Evolution(400, 16, 0.1, seed=0)
for _ in range(30):
    evolution.tell(-np.square(evolution.ask() - 1).sum(1))
print(hashlib.sha256(evolution.mean.tobytes()).hexdigest())
"""

# A generation that was asked for by one process and is told in another, by many evolutions: how far each comes.
TELL = """
import pickle, sys
import numpy as np
from fastdream.evolution import Evolution
states, means = pickle.load(sys.stdin.buffer), []
for state in states:
    evolution = Evolution(6, 4, 0.1, seed=99)
    evolution.load_state_dict(state)
    for _ in range(2):
        evolution.tell(-np.square(evolution.ask() - 1).sum(1))
    means.append(evolution.mean)
sys.stdout.buffer.write(pickle.dumps(means))
"""

pytest.importorskip("cma", reason="what evolution is done by")


def climb(evolution: Evolution, generations: int) -> np.ndarray:
    for _ in range(generations):
        asked = evolution.ask()
        evolution.tell(-np.square(asked - 1).sum(1))
    return asked


def test_it_climbs() -> None:
    evolution = Evolution(6, 12, 0.1, seed=0)
    assert evolution.sigma == 0.1 and not evolution.mean.any()
    asked = climb(evolution, 80)
    assert asked.shape == (12, 6) and abs(evolution.mean - 1).max() < 0.01


def test_it_goes_on_exactly_where_it_was_whatever_the_global_generator_is() -> None:
    whole, part = (Evolution(6, 12, 0.1, seed=3) for _ in range(2))
    expected = climb(whole, 30)
    climb(part, 10)
    asked = part.ask()
    assert np.array_equal(part.ask(), asked)  # until it is told how fit they are
    resumed = Evolution(6, 12, 0.1, seed=99)
    resumed.load_state_dict(part.state_dict())
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    assert np.array_equal(climb(resumed, 20), expected)
    assert np.array_equal(np.random.get_state()[1], before)


def test_another_process_goes_on_exactly_from_what_was_asked_and_not_yet_told() -> None:
    states, expected = [], []
    for seed in range(20):  # of which some ask for steps that would be shortened if they were not known
        evolution = Evolution(6, 4, 0.1, seed)
        climb(evolution, 3)
        evolution.ask()
        states.append(evolution.state_dict())
        climb(evolution, 2)
        expected.append(evolution.mean)
    # Bytes have other hashes there.
    env = {**os.environ, "PYTHONHASHSEED": "1"}  # bytes have other hashes there
    found = subprocess.run(
        [sys.executable, "-c", TELL], env=env, input=pickle.dumps(states), capture_output=True, check=True
    )
    assert np.array_equal(pickle.loads(found.stdout), expected)


def test_seeds_differ() -> None:
    assert not np.array_equal(Evolution(6, 12, 0.1, seed=0).ask(), Evolution(6, 12, 0.1, seed=1).ask())


def test_threads_of_numpy_change_nothing() -> None:
    def found(threads: int) -> str:
        env = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        return subprocess.check_output([sys.executable, "-c", CLIMB], env=env, text=True)

    assert found(1) == found(2)


@pytest.mark.parametrize("package", ["cma", "threadpoolctl"])
def test_without_the_package_it_says_what_installs_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"'{package}', .*: pip install 'fastdream\[evolution\]'"):
        require()
