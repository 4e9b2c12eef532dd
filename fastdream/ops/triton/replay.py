"""Reading sequences out of ring storage: rows are copied as words, whatever they hold."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.native.registry import LIBRARY
from fastdream.ops.native.replay import check_gather, gather_gradient, save_gather
from fastdream.ops.triton.library import launch, register

WORDS = 1024  # that a program copies
DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["N", "L"])
def gather_sequences_kernel(
    storage,  # [N, W]
    start,  # [B]
    out,  # [B, L, W]
    N,
    L,
    W: tl.constexpr,
    BW: tl.constexpr,
):
    i_r = tl.program_id(0).to(tl.int64)  # row of out
    o_w = tl.program_id(1) * BW + tl.arange(0, BW)
    i_n = (tl.load(start + i_r // L) + i_r % L) % N  # of the dividend's sign
    i_n = tl.where(i_n < 0, i_n + N, i_n)
    tl.store(out + i_r * W + o_w, tl.load(storage + i_n * W + o_w, mask=o_w < W), mask=o_w < W)


def gather_sequences(storage: Tensor, start: Tensor, length: int) -> Tensor:
    """As `fastdream.ops.reference.gather_sequences`, for storage of any dtype."""
    return torch.ops.fastdream.triton_gather_sequences(storage, start, length)


def _kernel(storage: Tensor, start: Tensor, length: int) -> Tensor:
    out = check_gather(storage, start, length)
    if not out.numel():
        return out
    word = DTYPES[_word(storage[0].numel() * storage.element_size())]
    rows = storage.contiguous().view(len(storage), -1).view(word)
    width = rows.shape[1]
    tile = min(WORDS, triton.next_power_of_2(width))
    grid = start.numel() * length, triton.cdiv(width, tile)
    flat = out.view(grid[0], -1).view(word)
    launch(
        gather_sequences_kernel,
        grid,
        rows,
        start.contiguous(),
        flat,
        len(storage),
        length,
        W=width,
        BW=tile,
        num_warps=4 if tile >= 256 else 1,
    )
    return out


def _word(size: int) -> int:
    """Bytes of the longest word that rows of this size consist of."""
    return next(word for word in (8, 4, 2, 1) if size % word == 0)


torch.library.register_autograd(
    register("gather_sequences(Tensor storage, Tensor start, int length) -> Tensor", _kernel, check_gather),
    gather_gradient,
    setup_context=save_gather,
    lib=LIBRARY,
)
