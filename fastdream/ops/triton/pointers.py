"""Lists of tensors as kernels take them: tables of addresses on the device, made again only when an address changed."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

KEPT = 64  # tables of each device that stay ready

_tables: OrderedDict[tuple[torch.device, tuple[int, ...]], Tensor] = OrderedDict()
_captured: list[tuple[Tensor, ...]] = []  # what graphs read and write, for as long as they may be replayed
_spare: dict[
    int, Tensor
] = {}  # page-locked memory by length, since none can be had while a graph is captured


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """Where each tensor begins, int64 on the tensors' device; copied in the current stream without waiting for it.

    A captured graph copies the table at each replay. So that it finds page-locked memory for that, a list of as many
    tensors must have been used once since the capture before.
    """
    device, numbers = tensors[0].device, tuple(x.data_ptr() for x in tensors)
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int64, device=device)
    key, capturing = (device, numbers), torch.cuda.is_current_stream_capturing()
    if (
        not capturing and len(numbers) not in _spare
    ):  # also where the table is known: the capture's will be another
        _spare[len(numbers)] = _page_locked(len(numbers))
    if key in _tables:
        _tables.move_to_end(key)
        if capturing:
            _captured.append((_tables[key],))
        return _tables[key]
    locked = _spare.pop(len(numbers), None) if capturing else _page_locked(len(numbers))
    if locked is None:
        raise RuntimeError("call the op once with as many tensors before its graph is captured")
    locked.copy_(torch.tensor(numbers, dtype=torch.int64))
    table = torch.empty(len(numbers), dtype=torch.int64, device=device)
    table.copy_(locked, non_blocking=True)
    if capturing:
        _captured.append((locked, table))
    else:
        _tables[key] = table
        if len(_tables) > KEPT:
            _tables.popitem(last=False)
    return table


def _page_locked(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64, pin_memory=True)


class Pieces(NamedTuple):
    """Tensors cut into pieces of one size."""

    owner: Tensor  # [pieces] int32, the tensor that each is of
    begin: Tensor  # [pieces] int64, where in it
    sizes: Tensor  # [tensors] int64, elements of each
    first: Tensor  # [tensors + 1] int32, the first piece of each, and the number of all


@cache
def pieces(counts: tuple[int, ...], size: int, device: torch.device) -> Pieces:
    """Tensors of these lengths in pieces of `size`. Made once, before any graph is captured."""
    starts = [range(0, count, size) for count in counts]
    owner = [i for i, each in enumerate(starts) for _ in each]
    first = list(accumulate(map(len, starts), initial=0))
    return Pieces(
        torch.tensor(owner, dtype=torch.int32, device=device),
        torch.tensor([begin for each in starts for begin in each], dtype=torch.int64, device=device),
        torch.tensor(counts, dtype=torch.int64, device=device),
        torch.tensor(first, dtype=torch.int32, device=device),
    )


@cache
def flags(values: tuple[bool, ...], device: torch.device) -> Tensor:
    """One int32 for each. Made once, before any graph is captured."""
    return torch.tensor(values, dtype=torch.int32, device=device)
