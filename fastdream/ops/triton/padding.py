"""Rows of any width as GPUs like them: the next one begins at a multiple of eight numbers.

Products of which a width or a distance of rows is none take kernels of an old kind, several times as slow, and no
vector of numbers can be loaded where each row begins at another place within one.
"""

from torch import Tensor

VECTOR = 8


def padded(width: int) -> int:
    """How far rows of that width lie apart."""
    return -(-width // VECTOR) * VECTOR


def empty_rows(like: Tensor, *shape: int) -> Tensor:
    """Fresh [..., width], of the dtype of `like`, whose rows are padded."""
    *lead, width = shape
    return like.new_empty(*lead, padded(width))[..., :width]


def as_rows(x: Tensor) -> Tensor:
    """x [..., N] as [M, N] with its rows evenly apart and in one piece each: itself, or a copy where it is not so."""
    x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return x if x.shape[1] < 2 or x.stride(1) == 1 else x.contiguous()


def readable(x: Tensor) -> int:
    """How many columns of x [M, N], rows in one piece each, may be read: all that its padding has, if it has any."""
    width, rows = x.shape[1], x.shape[0]
    wide = padded(width)
    end = x.storage_offset() + (rows - 1) * x.stride(0) + wide
    fits = rows > 0 and x.stride(0) >= wide and end * x.element_size() <= x.untyped_storage().nbytes()
    return wide if fits else width


def padded_rows(x: Tensor) -> Tensor | None:
    """x [n, ...] with rows behind it that pad their number, finite ones; None if it has none.

    Memory of its own that is as long as that has them: `Casts` and whoever cuts a tensor off put numbers there.
    """
    rows = padded(len(x))
    if rows == len(x):
        return x
    whole = rows * x[:1].numel() * x.element_size() == x.untyped_storage().nbytes()
    own = whole and x.storage_offset() == 0 and x.is_contiguous()
    return x.as_strided((rows, *x.shape[1:]), x.stride()) if own else None
