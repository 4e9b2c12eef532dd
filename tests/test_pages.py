"""Tensors come into large pages, and stay what they are."""

import platform
from pathlib import Path

import pytest
import torch

from fastdream.pages import use_large_pages


def large_pages() -> int:
    """Bytes of this process that lie in large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))


def collapses() -> bool:
    """Whether this Linux moves memory into large pages when it is asked to (6.1 and later do)."""
    if platform.system() != "Linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists():
        return False
    return tuple(map(int, platform.release().split("-")[0].split(".")[:2])) >= (6, 1)


@pytest.mark.skipif(not collapses(), reason="this system does not move memory into large pages on demand")
def test_tensors_come_into_large_pages():
    tensors = [torch.arange(2**21, dtype=torch.float32) + i for i in range(4)]  # 32 MiB
    small = torch.ones(8)
    copies, addresses, before = [x.clone() for x in tensors], [x.data_ptr() for x in tensors], large_pages()
    use_large_pages([small])
    assert large_pages() == before
    use_large_pages([small, *tensors])
    assert large_pages() >= before + 3 * 2**23
    assert [x.data_ptr() for x in tensors] == addresses
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))


def test_what_is_empty_elsewhere_or_strided_is_left_alone():
    strided = torch.arange(2**22).view(2**11, 2**11).t()
    copy = strided.clone()
    use_large_pages([torch.empty(0), torch.empty(2**22, device="meta"), strided])
    assert torch.equal(strided, copy)
