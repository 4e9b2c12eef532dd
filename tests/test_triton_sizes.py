"""Addresses fit in their integers, and grids in what a GPU starts, where tensors are as large as they get."""

import json
from unittest import mock

import pytest
import torch

from fastdream.ops.triton import dream, library

from . import parity_cases
from .interpreter_tools import BUILDER
from .test_triton_compile import run
from .test_triton_dream import caught
from .test_triton_watch import copy_kernel
from .triton_cases import Blank
from .triton_sizes import MOST_PROGRAMS, Dry

DREAMS = 16384  # as many as a batch of 16 sequences of 64 steps has, sixteen times
MANY_DREAMS = 2_000_000  # of which no step may have too many programs
PIXELS = 240 * 1024  # rows of images, a 64th of them each
LARGE = [
    ("observe", "block", 1024),
    ("observe", "layernorm", 1024),
    ("policy_step", "block", 16),
    ("imagine", "block-classes-mixed", DREAMS),
    ("imagine", "layernorm-classes-mixed", DREAMS),
    ("critic_loss", "plain", DREAMS),
    ("reinforce", "classes", DREAMS),
    ("mlps", "True", 15 * DREAMS),
    ("categorical_kl", "step-1.0-0.01", DREAMS),
    ("categorical_sample", "0.01-False", 16 * DREAMS),
    ("conv_pool", "first", PIXELS),
    ("conv_pool", "second", PIXELS),
    ("conv_spread", "inner", PIXELS),
    ("image_loss", "plain", 4 * PIXELS),
    ("gather_sequences", "plain", 10**6),
    ("lstm_mdn_dream", "car_racing", DREAMS),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are not interpreted")
@pytest.mark.parametrize(
    ("count", "tiles", "found"),
    [
        (2**20, 2**17, set()),
        (2**20, 2**17 + 1, {"copy_kernel"}),
        (2**32, 2**29 - 1, {"copy_kernel"}),  # whose numbers 32 bits do not count
    ],
)
def test_addresses_that_are_wrong_are_found(count: int, tiles: int, found: set[str]):
    dry, (x, y) = Dry(), (torch.empty(count, device="meta") for _ in "xy")
    hooks = {"create_masked_load": dry.load, "create_masked_store": dry.store}
    with mock.patch.multiple(BUILDER, **hooks):
        dry.run(copy_kernel, (tiles,), (x, y), {"N": count, "MASKED": False, "SHARED": 1})
    assert dry.outside == found
    dry.run(copy_kernel, (1, 65536), (x, y), {"N": 0, "MASKED": True, "SHARED": 1})
    assert dry.outside - found == {"copy_kernel: a grid of (1, 65536)"}


@pytest.mark.parametrize("core", parity_cases.CORES + parity_cases.GRUS)
def test_grids_of_many_dreams_are_such_as_a_gpu_starts(core: str, monkeypatch: pytest.MonkeyPatch):
    """Of every kernel of a dream, on tensors without memory, none of which runs."""
    grids: dict[str, tuple[int, ...]] = {}
    monkeypatch.setattr(library, "run", lambda kernel, grid, *_: grids.update({kernel.fn.__name__: grid}))
    args = parity_cases.imagine(core, "classes", "given", Blank(0, torch.float32), MANY_DREAMS)
    args = caught(monkeypatch, "imagine", lambda: dream.imagine(*args))
    dream._kernel(*args)
    assert len(grids) >= 3 and all(max(grid) >= MANY_DREAMS // 128 for grid in grids.values())
    for kernel, grid in grids.items():
        whole = (*grid, 1, 1)[:3]
        assert all(n <= most for n, most in zip(whole, MOST_PROGRAMS, strict=True)), (kernel, grid)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case", "rows"), LARGE)
def test_the_largest_tensors_are_addressed_right(op: str, case: str, rows: int):
    assert run("triton_sizes", given=json.dumps([[op, case, rows]]), interpreted=True) == []
