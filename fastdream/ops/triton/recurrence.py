"""World Models' LSTM over sequences, with gradients: a launch a step there, a launch a step back.

The gates of a step are entered + keep * hidden W^T, as in `lstm`; keep is 0 where an episode begins there, else 1.
Back from the last step, d hidden of t is its own gradient + keep' * d gates' W, ' being those of step t + 1.

entered     [M, 4D]     of one step, like all below; what enters beside the state, with the bias
restart     [M]         bool
before, cell_before  [M, D]     the states of the step before
weight      [4D, D]     without gaps
hidden, cell  [M, D]    written
gates       [M, 4D]     float32: in | cand | forget | out after their activations, written there and read back
later       [M, 4D]     d gates of the step after, or None; later_restart: where that one began anew
d_cell      [M, D]      float32: of the cell of this step, without what comes through hidden; that of the step before
                        stands there afterwards
"""

import triton
import triton.language as tl

from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.overlap import begin


@triton.jit(do_not_specialize=["M"])
def lstm_scan_fwd_kernel(
    entered,
    restart,
    before,
    cell_before,
    weight,
    hidden,
    cell,
    gates,
    M,
    s_entered,
    s_restart,
    s_before,
    s_cell_before,
    s_hidden,
    s_gates,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    o_m = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    o_u = tl.program_id(0) * BU + tl.arange(0, BU)
    m_m, m_u = o_m < M, o_u < D
    # The gates of a unit side by side, as in `lstm_kernel`.
    o_n = tl.arange(0, 4 * BU)
    o_unit = tl.program_id(0) * BU + o_n // 4
    m_n = o_unit < D
    o_gate = (o_n % 4) * D + o_unit
    m_old = m_m & (tl.load(restart + o_m * s_restart, mask=m_m, other=1) == 0)

    b_gates = tl.zeros([BM, 4 * BU], tl.float32)
    for i_k in range(0, D, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < D
        b_h = tl.load(
            before + o_m[:, None] * s_before + o_k[None, :], mask=m_old[:, None] & m_k[None, :], other=0.0
        )
        b_w = tl.load(
            weight + o_gate[None, :] * D + o_k[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0
        )
        b_gates = tl.dot(b_h, b_w, b_gates, input_precision=PRECISION)
    p_in = entered + o_m[:, None] * s_entered + o_gate[None, :]
    b_gates += tl.load(p_in, mask=m_m[:, None] & m_n[None, :], other=0.0).to(tl.float32)

    b_even, b_odd = tl.split(tl.reshape(b_gates, [BM, BU, 2, 2]))
    b_in, b_forget = tl.split(b_even)
    b_cand, b_out = tl.split(b_odd)
    b_in, b_cand = tl.sigmoid(b_in), tanh(b_cand)
    b_forget, b_out = tl.sigmoid(b_forget + 1), tl.sigmoid(b_out)
    m_x = m_m[:, None] & m_u[None, :]
    p_cell = cell_before + o_m[:, None] * s_cell_before + o_u[None, :]
    b_cell = tl.load(p_cell, mask=m_old[:, None] & m_u[None, :], other=0.0).to(tl.float32)
    b_cell = (b_forget * b_cell + b_in * b_cand).to(cell.dtype.element_ty)
    o_x = o_m[:, None] * s_hidden + o_u[None, :]
    tl.store(cell + o_x, b_cell, mask=m_x)
    b_hidden = b_out * tanh(b_cell.to(tl.float32))
    tl.store(hidden + o_x, b_hidden.to(hidden.dtype.element_ty), mask=m_x)
    p_gates = gates + o_m[:, None] * s_gates + o_u[None, :]
    tl.store(p_gates, b_in, mask=m_x)
    tl.store(p_gates + D, b_cand, mask=m_x)
    tl.store(p_gates + 2 * D, b_forget, mask=m_x)
    tl.store(p_gates + 3 * D, b_out, mask=m_x)


@triton.jit(do_not_specialize=["M"])
def lstm_scan_bwd_kernel(
    grad,  # [M, D] of hidden, or None
    later,
    later_restart,
    weight,
    gates,
    cell,
    cell_before,
    restart,
    d_cell,
    d_gates,  # [M, 4D] written
    M,
    s_grad,
    s_later,
    s_restart,
    s_gates,
    s_cell,
    s_cell_before,
    s_d_gates,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    o_m = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    o_u = tl.program_id(0) * BU + tl.arange(0, BU)
    m_m, m_u = o_m < M, o_u < D
    m_x = m_m[:, None] & m_u[None, :]

    b_h = tl.zeros([BM, BU], tl.float32)
    if later is not None:
        m_on = m_m & (tl.load(later_restart + o_m * s_restart, mask=m_m, other=1) == 0)
        for i_k in range(0, 4 * D, BK):
            o_k = i_k + tl.arange(0, BK)
            m_k = o_k < 4 * D
            b_g = tl.load(
                later + o_m[:, None] * s_later + o_k[None, :], mask=m_on[:, None] & m_k[None, :], other=0.0
            )
            b_w = tl.load(
                weight + o_k[:, None] * D + o_u[None, :], mask=m_k[:, None] & m_u[None, :], other=0.0
            )
            b_h = tl.dot(b_g, b_w, b_h, input_precision=PRECISION)
    if grad is not None:
        b_h += tl.load(grad + o_m[:, None] * s_grad + o_u[None, :], mask=m_x, other=0.0).to(tl.float32)

    p_gates = gates + o_m[:, None] * s_gates + o_u[None, :]
    b_in = tl.load(p_gates, mask=m_x, other=0.0)
    b_cand = tl.load(p_gates + D, mask=m_x, other=0.0)
    b_forget = tl.load(p_gates + 2 * D, mask=m_x, other=0.0)
    b_out = tl.load(p_gates + 3 * D, mask=m_x, other=0.0)
    b_tanh = tanh(tl.load(cell + o_m[:, None] * s_cell + o_u[None, :], mask=m_x, other=0.0).to(tl.float32))
    m_old = m_x & (tl.load(restart + o_m * s_restart, mask=m_m, other=1) == 0)[:, None]
    p_cell = cell_before + o_m[:, None] * s_cell_before + o_u[None, :]
    b_old = tl.load(p_cell, mask=m_old, other=0.0).to(tl.float32)
    p_c = d_cell + o_m[:, None] * D + o_u[None, :]
    b_c = tl.load(p_c, mask=m_x, other=0.0) + b_h * b_out * (1 - b_tanh * b_tanh)
    tl.store(p_c, tl.where(m_old, b_c * b_forget, 0.0), mask=m_x)
    p_d = d_gates + o_m[:, None] * s_d_gates + o_u[None, :]
    to = d_gates.dtype.element_ty
    tl.store(p_d, (b_c * b_cand * b_in * (1 - b_in)).to(to), mask=m_x)
    tl.store(p_d + D, (b_c * b_in * (1 - b_cand * b_cand)).to(to), mask=m_x)
    tl.store(p_d + 2 * D, (b_c * b_old * b_forget * (1 - b_forget)).to(to), mask=m_x)
    tl.store(p_d + 3 * D, (b_h * b_tanh * b_out * (1 - b_out)).to(to), mask=m_x)
