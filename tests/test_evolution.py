"""CMA-ES: it climbs, it goes on where it was, and it leaves NumPy's global generator alone."""

import sys

import numpy as np
import pytest

from fastdream.evolution import Evolution, require


@pytest.fixture(autouse=True)
def _package() -> None:
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


def test_seeds_differ() -> None:
    assert not np.array_equal(Evolution(6, 12, 0.1, seed=0).ask(), Evolution(6, 12, 0.1, seed=1).ask())


def test_without_the_package_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ValueError, match=r"pip install 'fastdream\[evolution\]'"):
        require()
