"""The watch over memory finds what small kernels do wrong on purpose, and nothing in those that do right."""

import pytest
import torch
import triton
import triton.language as tl

from fastdream.ops.triton import interpreted, library
from fastdream.ops.triton.overlap import begin

from .interpreter_tools import backwards, ordered, shuffled
from .watch_tools import Watch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are not interpreted")
N = 24  # numbers, of which a program has a tile of 8


@triton.jit
def copy_kernel(x, y, N: tl.constexpr, MASKED: tl.constexpr, SHARED: tl.constexpr):
    """Right if masked. SHARED: two programs have one tile."""
    o_n = tl.program_id(0) // SHARED * 8 + tl.arange(0, 8)
    if MASKED:
        tl.store(y + o_n, tl.load(x + o_n, mask=o_n < N, other=0.0), mask=o_n < N)
    else:
        tl.store(y + o_n, tl.load(x + o_n))


@triton.jit
def turn_kernel(x, y, BARRIER: tl.constexpr):
    """A tile [4, 8] through memory, of which other threads read what some wrote."""
    o_i, o_j = tl.arange(0, 4)[:, None], tl.arange(0, 8)[None, :]
    tl.store(y + o_i * 8 + o_j, tl.load(x + o_i * 8 + o_j))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + o_j * 4 + o_i, tl.load(y + o_j * 4 + o_i))


@triton.jit
def double_kernel(x, N: tl.constexpr):
    o_n = tl.arange(0, N)
    tl.store(x + o_n, 2 * tl.load(x + o_n))


@triton.jit
def scatter_kernel(x, y):
    """All lanes write to one place."""
    o_n = tl.arange(0, 8)
    tl.store(y + 0 * o_n, tl.load(x + o_n))


@triton.jit
def last_kernel(x, parts, arrived, y, BARRIER: tl.constexpr):
    """The program that comes last adds up what all have written, and zeroes the counter."""
    i = tl.program_id(0)
    o_n = tl.arange(0, 8)
    tl.store(parts + i * 8 + o_n, tl.load(x + i * 8 + o_n))
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived, 0)
        b_sum = tl.zeros([8], tl.float32)
        for i_p in range(tl.num_programs(0)):
            b_sum += tl.load(parts + i_p * 8 + o_n)
        tl.store(y + o_n, b_sum)


@triton.jit
def chained_kernel(x, y, EARLY: tl.constexpr, WAITS: tl.constexpr, PDL: tl.constexpr):
    """One of a chain: reads before it waits, or after."""
    o_n = tl.arange(0, 8)
    b_x = tl.zeros([8], tl.float32)
    if EARLY:
        b_x = tl.load(x + o_n)
    if WAITS:
        begin(PDL)
    if not EARLY:
        b_x = tl.load(x + o_n)
    tl.store(y + o_n, b_x + 1)


def run(kernel: object, programs: int, *args: object, **constants: object) -> set[str]:
    """The kinds of findings of a launch."""
    with Watch() as watch:
        library.launch(kernel, (programs,), *args, **constants)
    assert sum(watch.launches.values()) == 1
    return {finding.kind for finding in watch.findings}


def numbers(count: int = N) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)


def test_right_kernels_pass():
    assert interpreted()
    x, y, arrived = numbers(), torch.zeros(N), torch.zeros(1, dtype=torch.int32)
    ragged = {"N": 21, "MASKED": True, "SHARED": 1}
    assert not run(copy_kernel, 3, x, y, **ragged) and torch.equal(y[:21], x[:21]) and not y[21:].any()
    assert not run(turn_kernel, 1, numbers(32), torch.zeros(32), BARRIER=True, num_warps=1)
    assert not run(double_kernel, 1, numbers(128), N=128, num_warps=4)
    assert not run(last_kernel, 3, x, torch.empty(N), arrived, y, BARRIER=True)
    assert torch.equal(y[:8], x.view(3, 8).sum(0)) and not arrived.any()


def test_accesses_outside_are_found_and_not_made():
    x, y = numbers(22), torch.zeros(22)
    unmasked = {"N": 22, "MASKED": False, "SHARED": 1}
    assert run(copy_kernel, 3, x, y, **unmasked) == {"outside of all tensors"} and torch.equal(x, y)
    wide, gaps = numbers(), numbers(2 * N).view(N, 2)[:, 0]
    assert run(copy_kernel, 3, wide[:22], torch.zeros(N), **unmasked) == {"outside of its view"}
    assert run(copy_kernel, 3, gaps, torch.zeros(N), **unmasked) == {"outside of its view"}


def test_races_between_programs_are_found():
    shared = {"N": N, "MASKED": True, "SHARED": 2}
    assert run(copy_kernel, 4, numbers(), torch.zeros(N), **shared) == {
        "race: written twice, by another program"
    }
    x = numbers()
    assert run(copy_kernel, 2, x, x[8:], N=16, MASKED=True, SHARED=1) == {
        "race: read and written by another program"
    }
    before = {"race: written and read by another program"}
    assert run(copy_kernel, 2, x[8:], x, N=16, MASKED=True, SHARED=1) == before


def test_missing_barriers_are_found():
    found = run(turn_kernel, 1, numbers(32), torch.zeros(32), BARRIER=False, num_warps=1)
    assert found == {"no barrier: written, then read", "no barrier: read, then written"}
    # Threads that hold a copy of what another one has may read what that one has written already.
    assert run(double_kernel, 1, numbers(64), N=64, num_warps=4) == {"no barrier: read, then written"}
    args = numbers(), torch.empty(N), torch.zeros(1, dtype=torch.int32), torch.zeros(N)
    assert run(last_kernel, 3, *args, BARRIER=False) == {"race: read and written by another program"} | (
        {"no barrier: written, then read"}
    )


def test_lanes_that_disagree_are_found():
    clash = "lanes write different numbers to one place"
    assert run(scatter_kernel, 1, numbers(), torch.zeros(1)) == {clash}
    assert not run(scatter_kernel, 1, torch.ones(8), torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.int32])
def test_what_nobody_wrote_is_found(dtype: torch.dtype):
    constants = {"N": N, "MASKED": True, "SHARED": 1}
    with Watch() as watch:
        for x in (torch.empty(N, dtype=dtype), torch.zeros(N).new_empty(N, dtype=dtype).fill_(1)):
            library.launch(copy_kernel, (3,), x, torch.zeros(N, dtype=dtype), **constants)
    assert {x.kind: times for x, times in watch.findings.items()} == {"nobody wrote what is read": 3}


def test_reads_before_the_wait_are_found():
    def chain(*early: bool, between: bool = False, waits: bool = True) -> set[str]:
        x = [torch.zeros(8) for _ in range(len(early) + 1)]
        with Watch() as watch:
            for i, reads in enumerate(early):
                library.launch(chained_kernel, (1,), x[i], x[i + 1], EARLY=reads, WAITS=waits)
                if between:
                    torch.zeros(1).add_(1)
        return {finding.kind for finding in watch.findings}

    assert not chain(True, False, False)
    assert chain(False, True) == {"reads what the kernel before writes, before it waits"}
    assert not chain(False, True, between=True)
    assert chain(False, waits=False) == {"waits 0 times", "writes before it waits"}


def test_memory_that_is_written_again_is_read_past_the_cache():
    x, y, z = (torch.zeros(8) for _ in range(3))
    with Watch() as watch:
        for source, target in ((x, y), (z, x), (y, z)):
            library.launch(chained_kernel, (1,), source, target, EARLY=False, WAITS=True)
        library.launch(chained_kernel, (1,), x, y, EARLY=True, WAITS=True)
    assert "through the cache" in next(iter(watch.findings)).kind and len(watch.findings) == 1


def test_programs_run_in_the_order_that_is_wanted():
    constants = {"N": N, "MASKED": True, "SHARED": 2}
    results = []
    for order in (range, backwards, shuffled):
        y, started = torch.zeros(N), []
        with ordered(order, started.append):
            library.launch(copy_kernel, (6,), numbers(), y, **constants)
        assert started == list(order(6)) and sorted(started) == list(range(6))
        results.append(y)
    assert all(torch.equal(y, numbers()) for y in results) and list(backwards(3)) == [2, 1, 0]
