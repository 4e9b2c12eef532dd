"""Kernels of a scan overlap with the one before: programs of the next are placed while those of this one still run.

That is CUDA's programmatic dependent launch, from compute capability 9.0. A kernel that has the argument PDL calls
`begin(PDL)` before it reads what the kernel before writes, and before it writes anything: it waits there until all that
the kernel before has written is visible, and only then lets the next be placed. So what is older than the kernel before
(weights, inputs, noise, what was written two kernels ago or earlier) is there from the start: read it, and compute with
it, before the wait. Memory that is written anew at every step is then read past the cache of the multiprocessor, and so
is a step's row that may not begin at a multiple of 32 bytes: the cache may have its first numbers since the last step.
Kernels without PDL wait as always.
"""

import triton
import triton.language as tl


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before, and let the one after be placed."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
