"""The LSTM of World Models: both products of its gates, and the states that they make, in one launch.

[in | cand | forget | out] = [latent, action, flag] W_ih + hidden W_hh + bias
cell' = sigmoid(forget + 1) * cell + sigmoid(in) * tanh(cand),  hidden' = sigmoid(out) * tanh(cell')

latent      [M, Z]      any float
action      [M, A]      any float; or None, where controllers choose it (see `Acting`)
restart     [M]         bool: hidden and cell count as zero where it is True, whatever they hold; or None
hidden, cell  [M, D]
weight_ih   [4D, Z + A + FLAG]  FLAG: 1 if `restart` is the last input
weight_hh   [4D, D]
bias        [4D]
new_hidden, new_cell  [M, D]    written

All have unit stride in their rows; states and weights have one dtype. A program has some units of some rows, and of
each unit its four gates side by side, so that one product makes them and no other program must be waited for.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.overlap import begin

# Products of float32 on tensor cores, in three parts of which each is exact to the bits that it has: as precise as
# without them, where arithmetic would take several times as long. Half precision takes no notice.
PRECISION = "tf32x3"


class Acting(NamedTuple):
    """Controllers of rows: action = tanh([latent, hidden] W + bias), or of [latent, cell, hidden].

    Whoever makes some of the features adds them up; the next step sums the parts, so that no launch is for the action.
    """

    before: Tensor  # [P, A, M] float32, parts of the sums for the action of this step
    after: (
        Tensor  # [P', A, M] float32, of the next step: first those of the states' tiles, then of the latents'
    )
    weight: Tensor  # [M, F, A], of rows without gaps
    bias: Tensor | None  # [M, A]


def lstm_tiles(rows: int, units: int, itemsize: int) -> Tiles:
    """Tiles for so many rows and units, of which a program multiplies by four columns each."""
    depth = 128 // itemsize
    if rows <= 16:
        return Tiles(16, 8, 2 * depth, 4, 3)  # latency counts
    shapes = (64, 32), (64, 16), (32, 16)
    enough = [(m, n) for m, n in shapes if triton.cdiv(rows, m) * triton.cdiv(units, n) >= 120]
    m, n = (*enough, shapes[-1])[0]
    return Tiles(m, n, depth, 8 if m * n >= 2048 else 4, 3)


@triton.jit(do_not_specialize=["M", "P"])
def lstm_kernel(
    latent,  # [M, Z]
    action,  # [M, A] or None
    before,  # [P, A, M] or None, like the next two
    after,  # [P', A, M]
    control,  # [M, F, A]
    control_bias,  # [M, A] or None
    restart,  # [M] or None
    hidden,  # [M, D]
    cell,  # [M, D]
    weight_ih,  # [4D, Z + A + FLAG]
    weight_hh,  # [4D, D]
    bias,  # [4D]
    new_hidden,  # [M, D]
    new_cell,  # [M, D]
    M,
    P,
    s_latent,
    s_action,
    s_control,
    s_control_bias,
    D: tl.constexpr,
    Z: tl.constexpr,
    A: tl.constexpr,
    FLAG: tl.constexpr,
    SEEN: tl.constexpr,  # 1 if the controller sees the cell
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    BP: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    INPUTS: tl.constexpr = Z + A + FLAG
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_u = tl.program_id(0) * BU + tl.arange(0, BU)
    o_row = o_m.to(tl.int64)
    m_m, m_u = o_m < M, o_u < D
    # Columns of the product: gates g of a unit side by side. Their rows of the weights lie D apart.
    o_n = tl.arange(0, 4 * BU)
    o_unit = tl.program_id(0) * BU + o_n // 4
    m_n = o_unit < D
    o_gate = (o_n % 4) * D + o_unit
    m_old = m_m
    if restart is not None:
        b_restart = tl.load(restart + o_row, mask=m_m, other=1) != 0
        m_old = m_m & (b_restart == 0)

    b_gates = tl.zeros([BM, 4 * BU], tl.float32)
    for i_k in range(0, D, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < D
        p_h = hidden + o_row[:, None] * D + o_k[None, :]
        p_w = weight_hh + o_gate[None, :] * D + o_k[:, None]
        b_h = tl.load(p_h, mask=m_old[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_gates = tl.dot(b_h, b_w, b_gates, input_precision=PRECISION)
    for i_k in range(0, Z, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < Z
        p_z = latent + o_row[:, None] * s_latent + o_k[None, :]
        p_w = weight_ih + o_gate[None, :] * INPUTS + o_k[:, None]
        b_z = tl.load(p_z, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_gates = tl.dot(b_z.to(b_w.dtype), b_w, b_gates, input_precision=PRECISION)

    b_gates += tl.load(bias + o_gate, mask=m_n, other=0.0).to(tl.float32)[None, :]
    for i_a in tl.static_range(A):
        if before is not None:
            o_p = tl.arange(0, BP)
            m_p = (o_p < P)[:, None] & m_m[None, :]
            p_p = before + (o_p[:, None] * A + i_a) * M + o_m[None, :]
            b_a = tl.sum(tl.load(p_p, mask=m_p, other=0.0), 0)
            if control_bias is not None:
                b_a += tl.load(control_bias + o_row * s_control_bias + i_a, mask=m_m, other=0.0)
            b_a = tanh(b_a)
        else:
            b_a = tl.load(action + o_row * s_action + i_a, mask=m_m, other=0.0)
        b_w = tl.load(weight_ih + o_gate * INPUTS + Z + i_a, mask=m_n, other=0.0)
        b_gates += b_a.to(b_w.dtype).to(tl.float32)[:, None] * b_w.to(tl.float32)[None, :]
    if FLAG and restart is not None:
        b_w = tl.load(weight_ih + o_gate * INPUTS + Z + A, mask=m_n, other=0.0).to(tl.float32)
        b_gates += tl.where(b_restart[:, None], b_w[None, :], 0.0)

    b_even, b_odd = tl.split(tl.reshape(b_gates, [BM, BU, 2, 2]))
    b_in, b_forget = tl.split(b_even)
    b_cand, b_out = tl.split(b_odd)
    m_x = m_m[:, None] & m_u[None, :]
    o_x = o_row[:, None] * D + o_u[None, :]
    b_cell = tl.load(cell + o_x, mask=m_old[:, None] & m_u[None, :], other=0.0).to(tl.float32)
    b_cell = tl.sigmoid(b_forget + 1) * b_cell + tl.sigmoid(b_in) * tanh(b_cand)
    b_hidden = (tl.sigmoid(b_out) * tanh(b_cell)).to(new_hidden.dtype.element_ty)
    b_cell = b_cell.to(new_cell.dtype.element_ty)
    tl.store(new_cell + o_x, b_cell, mask=m_x)
    tl.store(new_hidden + o_x, b_hidden, mask=m_x)
    if before is not None:
        for i_a in tl.static_range(A):
            p_w = control + o_row[:, None] * s_control + (Z + o_u)[None, :] * A + i_a
            b_part = b_hidden.to(tl.float32) * tl.load(p_w + SEEN * D * A, mask=m_x, other=0.0)
            if SEEN:
                b_part += b_cell.to(tl.float32) * tl.load(p_w, mask=m_x, other=0.0)
            tl.store(after + (tl.program_id(0) * A + i_a) * M + o_m, tl.sum(b_part, 1), mask=m_m)


def lstm(
    latent: Tensor,
    action: Tensor | Acting,
    restart: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    new_hidden: Tensor,
    new_cell: Tensor,
    flag: int,
    tiles: Tiles,
) -> None:
    """Compute the new states, and perhaps parts of the next action, as above."""
    (rows, units), latents = hidden.shape, latent.shape[1]
    acting = action if isinstance(action, Acting) else None
    given = None if isinstance(action, Acting) else action
    before, after, weight, control_bias = acting or (None,) * 4
    parts = 0 if before is None else len(before)
    features = 0 if weight is None else weight.shape[1]
    launch(
        lstm_kernel,
        (triton.cdiv(units, tiles.n), triton.cdiv(rows, tiles.m)),
        latent,
        given,
        before,
        after,
        weight,
        control_bias,
        restart,
        hidden,
        cell,
        weight_ih,
        weight_hh,
        bias,
        new_hidden,
        new_cell,
        rows,
        parts,
        latent.stride(0),
        *(0 if x is None else x.stride(0) for x in (given, weight, control_bias)),
        D=units,
        Z=latents,
        A=weight_ih.shape[1] - latents - flag,
        FLAG=flag,
        SEEN=int(features > latents + units),
        PRECISION=PRECISION,
        BM=tiles.m,
        BU=tiles.n,
        BK=tiles.k,
        BP=power_of_two(parts),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
