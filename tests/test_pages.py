"""Tensors come into large pages, and stay what they are."""

import ctypes
import errno
import mmap
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastdream.pages import use_large_pages

LARGE = 2**21


class Madvise:
    """The system's madvise, and for every page that it was called for what it said: 0, or the number of an error."""

    argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

    def __init__(self) -> None:
        self.said: dict[int, int] = {}
        self._call = ctypes.CDLL(None, use_errno=True).madvise
        self._call.argtypes = self.argtypes

    def __call__(self, start: int, size: int, advice: int) -> int:
        assert start % LARGE == 0 and size == LARGE and start not in self.said
        failed = self._call(start, size, advice)
        self.said[start] = ctypes.get_errno() if failed else 0
        return failed


@pytest.fixture
def madvise(monkeypatch: pytest.MonkeyPatch) -> Madvise:
    spy = Madvise()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(madvise=spy))
    return spy


def large_pages(start: int, end: int) -> int:
    """How many there are in the mappings of this process that lie between two addresses, whole or in part."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            first, last = (int(x, 16) for x in name.split("-"))
            inside = first < end and start < last
        elif inside and name == "AnonHugePages:":
            found += 1024 * int(rest[0]) // LARGE
    return found


def collapses() -> bool:
    """Whether this Linux moves memory into large pages when it is asked to (6.1 and later do)."""
    if platform.system() != "Linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists():
        return False
    return tuple(map(int, platform.release().split("-")[0].split(".")[:2])) >= (6, 1)


@pytest.mark.skipif(not collapses(), reason="this system does not move memory into large pages on demand")
def test_tensors_come_into_large_pages(madvise: Madvise):
    """Each page that they fill for the most part is asked for once, and is large then.

    Unless the system has none to give, which other programs decide, and it says.
    """
    mapping = mmap.mmap(-1, 9 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(mapping, dtype=torch.float32).copy_(torch.arange(9 * LARGE // 4))
    memory = memory[-memory.data_ptr() % LARGE // 4 :][: 8 * LARGE // 4]
    copy, start = memory.clone(), memory.data_ptr()

    def filled(first: float, last: float) -> torch.Tensor:
        return memory[int(first * LARGE / 4) : int(last * LARGE / 4)]

    use_large_pages([filled(2.2, 2.4), filled(5.8, 6.3), torch.ones(8)])
    assert not madvise.said
    use_large_pages([filled(0, 3.6), filled(4.9, 6.4), filled(7.1, 7.4), filled(7.6, 7.9)])
    assert sorted(madvise.said) == [start + LARGE * page for page in (0, 1, 2, 3, 5, 7)]
    assert set(madvise.said.values()) <= {0, errno.EAGAIN, errno.EBUSY, errno.ENOMEM}
    granted = sum(not error for error in madvise.said.values())
    assert large_pages(start, start + 8 * LARGE) >= granted
    assert torch.equal(memory, copy)


def test_what_is_empty_elsewhere_or_strided_is_left_alone():
    strided = torch.arange(2**22).view(2**11, 2**11).t()
    copy = strided.clone()
    use_large_pages([torch.empty(0), torch.empty(2**22, device="meta"), strided])
    assert torch.equal(strided, copy)
