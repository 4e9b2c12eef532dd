"""Evolution of a vector of parameters by CMA-ES, as the `cma` package does it."""

import pickle
from types import ModuleType
from typing import Any

import numpy as np

from fastdream.envs.base import need

Array = np.ndarray[Any, Any]


class Normal:
    """Standard normal numbers in the form that `cma` asks for them, from a generator that is kept with the rest."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)


def require() -> tuple[ModuleType, ModuleType]:
    """The packages that do it; EnvError, a ValueError, with what installs them, where one is missing."""
    return need("cma", "evolution"), need("threadpoolctl", "evolution")


class Evolution:
    """Maximises: `ask` for a generation, `tell` how fit each of it is; `mean` is the centre of what comes next.

    NumPy computes on one thread: on more it rounds otherwise, and the last generations would depend on how many there
    are. Raises as `require` does.
    """

    def __init__(self, size: int, population: int, sigma: float, seed: int) -> None:
        # Without a seed of its own, which would be one of NumPy's global generator.
        options = {"popsize": population, "randn": Normal(seed), "seed": np.nan, "verbose": -9}
        cma, threadpoolctl = require()
        self._es: Any = cma.CMAEvolutionStrategy(np.zeros(size), sigma, options)
        self._threads: Any = threadpoolctl.ThreadpoolController()
        self._asked: list[Array] = []
        self._before = b""  # what they were asked of, as `state_dict` keeps it

    def ask(self) -> Array:
        """Parameters [population, size]; the same ones until `tell`."""
        if not self._asked:
            # cma finds what it gave out by hashes of bytes, which are others in every process, and may shorten what
            # it does not find. So a run that goes on from here asks anew, and is given the same.
            self._before = self._pickled()
            with self._threads.limit(limits=1, user_api="blas"):
                self._asked = self._es.ask()
        return np.stack(self._asked)

    def tell(self, fitness: Array) -> None:
        """How fit each of those that were asked for is [population]; more is better."""
        with self._threads.limit(limits=1, user_api="blas"):
            self._es.tell(self._asked, list(-np.asarray(fitness, np.float64)))
        self._asked = []

    @property
    def mean(self) -> Array:
        """Centre of the distribution [size]."""
        return np.array(self._es.mean)

    @property
    def sigma(self) -> float:
        """Its step size."""
        return float(self._es.sigma)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as it was before it was asked for what is not yet told."""
        return {"pickle": self._before if self._asked else self._pickled()}

    def _pickled(self) -> bytes:
        return pickle.dumps((self._es, self._asked))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. What was saved is unpickled, which can run code: load only what you saved yourself."""
        self._before = state["pickle"]
        # Older versions kept what they had asked for, too.
        self._es, self._asked = pickle.loads(self._before)
