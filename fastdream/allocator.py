"""The C library's memory, set for programs that allocate the same large tensors at every step."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters in malloc.h
_LARGEST = 2**30


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, so that the next update gets it without page faults.

    glibc returns every large block to the system when it is freed, and the system hands out zeroed pages anew: at
    B16 x T64 and size 1m, 35 to 70 thousand of them for each update, 60 to 130 ms. Other C libraries have no such
    setting and are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        if libc.mallopt(parameter, _LARGEST) != 1:
            raise OSError(f"mallopt({parameter}, {_LARGEST}) was refused by the C library")
