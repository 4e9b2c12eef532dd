"""Kernels of a scan overlap with the one before: programs of the next are placed while those of this one still run.

That is CUDA's programmatic dependent launch, from compute capability 9.0. A kernel that has the argument PDL calls
`begin(PDL)` before it reads or writes anything: it waits there until all that the kernel before has written is visible.
As every kernel of a chain waits so, none is ahead of anything but the one before; kernels without PDL wait as always.
"""

import triton
import triton.language as tl


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before, and let the one after be placed."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
