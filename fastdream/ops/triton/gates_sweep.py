"""The gates of a block core for many rows: as `gates`, whose names these are, but each program norms and activates its
rows of a block of the hidden layer once, in place, and then goes through the block's columns.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.gates import write_gates
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.rowwise import moments, normalize_tile, row_tiles


class Sweep(NamedTuple):
    """What a program computes: rows, columns at a time; with how many warps and stages."""

    m: int
    n: int
    warps: int
    stages: int


SHARED = (
    2**17
)  # bytes for weights: on Hopper a program may have 227 KiB, and rows of the widest block take a half of it


def gates_sweep(rows: int, width: int, block: int, itemsize: int, capability: int) -> Sweep | None:
    """How to go through the gates of `rows` rows of `width` columns in blocks of `block`; None to better not do so.

    A program takes all columns of 64 rows: enough programs for as many multiprocessors.
    """
    deep = power_of_two(block)
    if capability != 90 or itemsize != 2 or not 128 <= block <= 512 or rows * width < 64 * 96 * block:
        return None
    n = 32 if deep <= 256 else 16
    return Sweep(64, n, 8, SHARED // (3 * deep * n * itemsize))


@triton.jit(do_not_specialize=["M"])
def gates_sweep_kernel(
    hidden,  # as in `block_gates_kernel`, all the others too; out: activated
    sums,
    scale,
    shift,
    weight,
    bias,
    deter,
    reset,
    out,
    gates,
    M,
    eps,
    s_hidden,
    s_deter,
    s_reset,
    s_out,
    s_gates,
    s_g,
    s_k,
    s_n,
    G: tl.constexpr,
    P: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,  # not below P
):
    i_g, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    o_row = o_m.to(tl.int64)
    m_m, m_k = o_m < M, o_k < P
    m_old = m_m
    if reset is not None:
        m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)

    o_h = i_g * P + o_k
    p_h = hidden + o_row[:, None] * s_hidden + o_h[None, :]
    m_h = m_m[:, None] & m_k[None, :]
    b_h = tl.load(p_h, mask=m_h, other=0.0)
    b_mean, b_rstd = moments(sums, o_m, M, eps, G * P, P, TILE, BT, NORM)
    b_y = activate(normalize_tile(b_h, b_mean, b_rstd, scale, shift, o_h, m_k), ACT)
    # Of what comes from memory products read shared memory; of what was computed each of them would load registers.
    tl.store(p_h, b_y.to(hidden.dtype.element_ty), mask=m_h)
    tl.debug_barrier()
    b_y = tl.load(p_h, mask=m_h, other=0.0)

    for i_n in tl.range(0, P, BN):
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < P
        # All that is added to products is read before them: meanwhile it arrives.
        b_r_bias = tl.zeros([1, BN], tl.float32)
        b_c_bias = tl.zeros([1, BN], tl.float32)
        b_u_bias = tl.zeros([1, BN], tl.float32)
        if bias is not None:
            p_bias = bias + i_g * 3 * P + o_n[None, :]
            b_r_bias = tl.load(p_bias, mask=m_n[None, :], other=0.0).to(tl.float32)
            b_c_bias = tl.load(p_bias + P, mask=m_n[None, :], other=0.0).to(tl.float32)
            b_u_bias = tl.load(p_bias + 2 * P, mask=m_n[None, :], other=0.0).to(tl.float32)
        o_d = i_g * P + o_n
        p_deter = deter + o_row[:, None] * s_deter + o_d[None, :]
        b_deter = tl.load(p_deter, mask=m_old[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        p_w = weight + i_g * s_g + o_k[:, None] * s_k + o_n[None, :] * s_n
        m_w = m_k[:, None] & m_n[None, :]
        b_r = tl.dot(b_y, tl.load(p_w, mask=m_w, other=0.0), input_precision="ieee")
        b_c = tl.dot(b_y, tl.load(p_w + P * s_n, mask=m_w, other=0.0), input_precision="ieee")
        b_u = tl.dot(b_y, tl.load(p_w + 2 * P * s_n, mask=m_w, other=0.0), input_precision="ieee")
        b_r, b_c, b_u = b_r + b_r_bias, b_c + b_c_bias, b_u + b_u_bias
        write_gates(b_r, b_c, b_u, b_deter, out, gates, s_out, s_gates, o_row, m_m, o_n, m_n, i_g, P)


def sweep_gates(
    hidden: Tensor,
    sums: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    deter: Tensor,
    reset: Tensor | None,
    out: Tensor,
    gates: Tensor | None,
    norm: str,
    act: str,
    eps: float,
    tile: int,
    sweep: Sweep,
) -> None:
    """As `block_gates`; hidden becomes activated."""
    blocks, block, _ = weight.shape
    rows, width = deter.shape
    launch(
        gates_sweep_kernel,
        (blocks, triton.cdiv(rows, sweep.m)),
        hidden,
        sums,
        scale,
        shift,
        weight,
        bias,
        deter,
        reset,
        out,
        gates,
        rows,
        eps,
        hidden.stride(0),
        deter.stride(0),
        0 if reset is None else reset.stride(0),
        out.stride(0),
        0 if gates is None else gates.stride(0),
        *weight.stride(),
        G=blocks,
        P=block,
        NORM=norm,
        ACT=act,
        TILE=tile,
        BT=power_of_two(row_tiles(width, block, tile)),
        BM=sweep.m,
        BN=sweep.n,
        BK=max(16, power_of_two(block)),
        num_warps=sweep.warps,
        num_stages=sweep.stages,
    )
