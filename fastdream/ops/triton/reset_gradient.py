"""Back through the product that PlaNet's reset gate comes before: to that gate, and to the old deter.

d_h = d_cand V        d_reset = d_h * deter * r * (1 - r)        carry += r * d_h, nothing where reset

    gates    [M, 4D]  that `planet` kept, cand | reset | update | h
    d_gates  [M, 3D]  cand | reset | update: `gru_gradient` has written the first and the last, reset is written here
    carry    [M, D]   float32
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.gates_gradient import through_layer
from fastdream.ops.triton.library import launch


@triton.jit(do_not_specialize=["M"])
def reset_gradient_kernel(
    carry,  # [M, D]
    weight,  # [D, D], the candidate's rows of what is multiplied by deter
    reset,  # [M]
    gates,  # [M, 4*D]
    deter,  # [M, D], the old one
    d_gates,  # [M, 3*D]
    M,
    s_reset,
    s_gates,
    s_deter,
    s_d,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < D
    m_x = m_m[:, None] & m_n[None, :]
    m_old = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
    m_old = m_old[:, None] & m_n[None, :]
    b_old = tl.load(deter + o_row[:, None] * s_deter + o_n[None, :], mask=m_old, other=0.0).to(tl.float32)
    b_r = tl.load(gates + o_row[:, None] * s_gates + (D + o_n)[None, :], mask=m_x, other=0.0)
    b_r = tl.sigmoid(b_r.to(tl.float32))
    b_dh = through_layer(
        weight,
        d_gates,
        None,
        None,
        None,
        None,
        0.0,
        o_m,
        m_m,
        o_n,
        m_n,
        s_d,
        0,
        M,
        D,
        D,
        "none",
        1,
        1,
        0,
        1,
        BK,
        KS,
        PDL,
    )
    p_d = d_gates + o_row[:, None] * s_d + (D + o_n)[None, :]
    tl.store(p_d, (b_dh * b_old * b_r * (1 - b_r)).to(d_gates.dtype.element_ty), mask=m_x)
    # The kernel before wrote it: only now is it there.
    p_carry = carry + o_row[:, None] * D + o_n[None, :]
    b_carry = tl.load(p_carry, mask=m_old, other=0.0)
    tl.store(p_carry, b_carry + b_dh * b_r, mask=m_old)


def reset_gradient(
    carry: Tensor,
    weight: Tensor,
    reset: Tensor,
    gates: Tensor,
    deter: Tensor,
    d_gates: Tensor,
    tiles: Tiles,
) -> None:
    """Write the reset gate's part of d_gates, and carry, as above. weight: V [D, D] without gaps."""
    rows, width = carry.shape
    assert weight.is_contiguous()
    launch(
        reset_gradient_kernel,
        (triton.cdiv(width, tiles.n), triton.cdiv(rows, tiles.m)),
        carry,
        weight,
        reset,
        gates,
        deter,
        d_gates,
        rows,
        reset.stride(0),
        gates.stride(0),
        deter.stride(0),
        d_gates.stride(0),
        D=width,
        BM=tiles.m,
        BN=tiles.n,
        BK=min(tiles.k, power_of_two(max(16 * tiles.warps, width))),
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
