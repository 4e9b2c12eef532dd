"""What all tests share: fixed seeds, one thread, poisoned memory on request, and skips that say why."""

import os
import random
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.ops import native as native_ops

from .interpreter_speed import hasten
from .r2dreamer_tools import peer  # noqa: F401  # a fixture

# Triton reads this when it is imported, once for the process: kernels are interpreted where there is no GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    hasten()


def pytest_configure(config: pytest.Config) -> None:
    # The tensors of tests are tiny: a second thread only costs, and makes sums depend on the machine.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    # Nor may a convolution's error or its last bits depend on what cuDNN prefers on some GPU.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True


LONGEST = "test_triton_compile.py", "test_gpu_bench.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    repeated = [item for item in items if repeats(item)]
    if repeated:
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if not repeats(item)]
    # The longest first, so that of several processes none is left alone with one at the end.
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


def repeats(item: pytest.Item) -> bool:
    """Whether a test does what the same one does of another instruction set: double is compiled for one alone."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("isa", "portable") != "portable" and any(x is torch.float64 for x in params.values())


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same global random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def native() -> ModuleType:
    """The compiled ops; the test is skipped where the installation compiled none."""
    if native_ops.build_record().get("built") == "nothing":
        pytest.skip(f"nothing is compiled: {native_ops.build_record()['why']}")
    assert native_ops.available(torch.device("cpu")) is None, native_ops.available(torch.device("cpu"))
    return native_ops


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """New uninitialised float tensors are full of NaN, so that what a kernel does not write shows.

    Yields the list of the calls that were poisoned, for the test to see that it met any.
    """
    calls: list[str] = []

    def poisoned(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: object, **kwargs: object) -> Tensor:
            out = original(*args, **kwargs)
            calls.append(name)
            return out.fill_(torch.nan) if out.is_floating_point() else out

        return allocate

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(name, getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(Tensor, name, poisoned(name, getattr(Tensor, name)))
    yield calls


@pytest.fixture(params=("portable", "avx2", "avx512"))
def isa(request: pytest.FixtureRequest, native: ModuleType) -> Iterator[str]:
    """Each instruction set that this processor has."""
    module, name = native.library.C, request.param
    if name not in module.isas():
        pytest.skip(f"this processor or build does not have {name}")
    before = module.isa()
    module.use_isa(name)
    yield name
    module.use_isa(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
