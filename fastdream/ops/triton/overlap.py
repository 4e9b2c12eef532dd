"""Kernels of a scan overlap with those before: programs of the next are placed while those of this one still run.

That is CUDA's programmatic dependent launch, from compute capability 9.0. A kernel that has the argument PDL waits,
before it reads what the kernel before writes and before it writes anything, until all of that kernel is visible; as
every kernel does so, all that was launched earlier is visible then, too. What it may read before it waits depends on
when the kernel before lets it be placed:

    begin       waits, then lets the next be placed. So the next may read, and compute with, what is older than this
                kernel before it waits: weights, inputs, noise, what was written two kernels ago or earlier. Memory that
                every step writes anew is then read past the cache of the multiprocessor
    place_next  with PDL = 2, at the start of a kernel that calls `wait` later: the next is placed as early as this one.
                Only where the next reads nothing before it waits that was not there when this one was placed. With
                PDL = 1, `wait` is `begin`

Kernels without PDL wait as always.
"""

import triton
import triton.language as tl


@triton.jit
def place_next(PDL: tl.constexpr):
    """Let the kernel after be placed, if that is to be early."""
    if PDL == 2:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait for the kernel before, in a kernel that has called `place_next`."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        if PDL == 1:
            tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before, and let the one after be placed."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
