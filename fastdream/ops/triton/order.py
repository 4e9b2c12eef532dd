"""Percentiles in one launch: nothing is sorted, a bit of both order statistics is found at a time by counting.

Floats are compared as integers of the same order. One program has all of them in registers, and counts 31 times what
lies below the number that has the next bit set: 16 comparisons a thread and a sum over the program each. More numbers
than that program can hold are sorted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.reference.order import place
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import check_floats, launch, register

MOST = 16384  # numbers, so that two counts fit into one integer
PER_WARP = 512

Pair = tuple[Tensor, Tensor]


@triton.jit
def counts(b_low, b_high):
    """How many are true, in the lower and in the upper half of an integer."""
    return tl.sum(b_low.to(tl.int32) + b_high.to(tl.int32) * 65536)


@triton.jit
def key_of(b_x):
    """Integers in the order of floats, NaN above all."""
    b_i = b_x.to(tl.int32, bitcast=True)
    return tl.where(b_x != b_x, 0x7FFFFFFF, tl.where(b_i < 0, b_i ^ 0x7FFFFFFF, b_i))


@triton.jit
def float_of(key):
    """What `key_of` made a key of."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def next_key(b_key, key, count, rank):
    """That of the given rank, where `count` keys are not above the one before it."""
    return tl.where(count > rank, key, tl.min(tl.where(b_key > key, b_key, 0x7FFFFFFF)))


@triton.jit(do_not_specialize=["N", "low", "low_next", "high", "high_next"])
def percentiles_kernel(
    x,  # [N]
    lower,
    upper,
    N,
    low,  # ranks: the first of the two between which the lower percentile lies
    low_next,
    low_rest,  # weights of the first and of the second
    low_weight,
    high,
    high_next,
    high_rest,
    high_weight,
    BN: tl.constexpr,
):
    o_n = tl.arange(0, BN)
    # What is not there lies above all, as NaN does.
    b_key = key_of(tl.load(x + o_n, mask=o_n < N, other=float("nan")).to(tl.float32))

    count = counts(b_key < 0, b_key < 0)
    b_low = tl.where((count & 0xFFFF) <= low, 0, -2147483648)
    b_high = tl.where((count >> 16) <= high, 0, -2147483648)
    bit = 0x40000000
    for _ in range(31):
        count = counts(b_key < (b_low | bit), b_key < (b_high | bit))
        b_low = tl.where((count & 0xFFFF) <= low, b_low | bit, b_low)
        b_high = tl.where((count >> 16) <= high, b_high | bit, b_high)
        bit = bit // 2

    count = counts(b_key <= b_low, b_key <= b_high)
    b_above = float_of(next_key(b_key, b_low, count & 0xFFFF, low_next))
    tl.store(lower, float_of(b_low) * low_rest + b_above * low_weight)
    b_above = float_of(next_key(b_key, b_high, count >> 16, high_next))
    tl.store(upper, float_of(b_high) * high_rest + b_above * high_weight)


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
        (1,),
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
