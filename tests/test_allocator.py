"""Freed memory stays with the process once it is asked to."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from fastdream.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(24):  # until the heap has its final size
    torch.empty(2**24).fill_(1)
before = faults()
for _ in range(4):
    torch.empty(2**24).fill_(1)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_large_blocks_are_not_fetched_again():
    kept, returned = (
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("keep", "return")
    )
    pages = 4 * 2**24 * 4 // 4096
    assert kept < pages / 50
    assert returned > pages / 2
