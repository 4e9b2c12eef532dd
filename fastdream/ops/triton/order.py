"""Percentiles in one launch: nothing is sorted, the bits of an order statistic are found one by one, by counting.

Floats are compared as integers of the same order. A program for each percentile has all of them in registers, and 31
times it counts what lies below the number that has the next bit set. More numbers than a program can hold are sorted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.reference.order import place
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import check_floats, launch, register

MOST = 16384  # numbers that a program has in registers
PER_WARP = 1024

Pair = tuple[Tensor, Tensor]


@triton.jit
def key_of(b_x):
    """Integers in the order of floats, NaN above all."""
    b_i = b_x.to(tl.int32, bitcast=True)
    return tl.where(b_x != b_x, 0x7FFFFFFF, tl.where(b_i < 0, b_i ^ 0x7FFFFFFF, b_i))


@triton.jit
def float_of(key):
    """What `key_of` made a key of."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["N", "low", "low_next", "high", "high_next"])
def percentiles_kernel(
    x,  # [N]
    lower,
    upper,
    N,
    low,  # rank of the number before the lower percentile, and of the one behind it
    low_next,
    low_rest,  # weights of the two
    low_weight,
    high,
    high_next,
    high_rest,
    high_weight,
    BN: tl.constexpr,
):
    first = tl.program_id(0) == 0
    rank, rank_next = tl.where(first, low, high), tl.where(first, low_next, high_next)
    o_n = tl.arange(0, BN)
    # What is not there lies above all, as NaN does.
    b_key = key_of(tl.load(x + o_n, mask=o_n < N, other=float("nan")).to(tl.float32))

    key = tl.where(tl.sum((b_key < 0).to(tl.int32)) <= rank, 0, -2147483648)
    bit = 0x40000000
    for _ in range(31):
        key = tl.where(tl.sum((b_key < (key | bit)).to(tl.int32)) <= rank, key | bit, key)
        bit = bit // 2

    above = tl.min(tl.where(b_key > key, b_key, 0x7FFFFFFF))
    above = tl.where(tl.sum((b_key <= key).to(tl.int32)) > rank_next, key, above)
    rest, weight = tl.where(first, low_rest, high_rest), tl.where(first, low_weight, high_weight)
    result = float_of(key) * rest + float_of(above) * weight
    tl.store(lower, result, mask=first)
    tl.store(upper, result, mask=first == 0)


def percentiles(x: Tensor, low: float, high: float) -> Pair:
    """As `fastdream.ops.reference.percentiles`, float32 or half precision."""
    return torch.ops.fastdream.triton_percentiles(x.detach(), low, high)


def _fake(x: Tensor, low: float, high: float) -> Pair:
    check_floats("percentiles", x=x)
    return x.new_empty((), dtype=torch.float32), x.new_empty((), dtype=torch.float32)


def _percentiles(x: Tensor, low: float, high: float) -> Pair:
    lower, upper = _fake(x, low, high)
    count = x.numel()
    if not 0 < count <= MOST or not 0 <= low <= high <= 100:
        return reference.percentiles(x, low, high)
    ranks = []
    for percent in (low, high):
        below, above, weight = place(count, percent)
        ranks += [below, above, 1 - weight, weight]
    width = power_of_two(count)
    launch(
        percentiles_kernel,
        (2,),
        x.contiguous(),
        lower,
        upper,
        count,
        *ranks,
        BN=width,
        num_warps=min(32, max(1, width // PER_WARP)),
        enable_fp_fusion=False,  # fused, a weight of 0 or 1 could give another number than torch's
    )
    return lower, upper


register("percentiles(Tensor x, float low, float high) -> (Tensor, Tensor)", _percentiles, _fake)
