"""A step of DreamerV1's core, whose reset gate comes after its product: products, gates and new deter in one kernel.

    cand = x W1 + bias + r * h,  h = deter V + bias,  r = sigmoid(reset),  u = sigmoid(update)
    out = u * deter + (1 - u) * tanh(cand)            reset and update of products with x and deter alike

deter   [M, D]      rows where reset [M] bool is True count as zero; reset may be None
x       [M, H]      the features of stoch and action
of_x    [3D, H]     rows cand | reset | update, and of_deter [3D, D] reset | update | h, as gates lie
biases  [3D]        of both products, in PyTorch's order reset | update | cand
out     [M, D]      written; gates [M, 4D] gets cand | reset | update | h, or is None

Nothing is normed, so that a program has all that some columns of deter need: the launch of a step less than where
gates wait for a row's sums.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.block_product import Tiles, piece, split_warps
from fastdream.ops.triton.grids import place_of
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.split import add_product, load_inputs, load_weights, split_inputs, sum_parts
from fastdream.ops.triton.split_product import kept

COLUMNS = 16  # of deter, of a program: there are few of them, and each reads three times as many weights


def gru_tiles(units: int, width: int, itemsize: int, gates: int = 3) -> Tiles:
    """Tiles for so many gates of a deter of `width` columns, and features of `units`; columns are deter's."""
    inputs = max(units, width)
    warps = split_warps(inputs, COLUMNS, itemsize)
    most = 256 if itemsize == 2 else 64  # of float32 a program's registers hold fewer
    return Tiles(16, COLUMNS, piece(most, inputs, gates * COLUMNS, itemsize, warps), warps, 3, split=warps)


@triton.jit
def load_bias(bias, o_n, m_n, at: tl.constexpr):
    """[1, BN] float32, of the gate that begins there."""
    return tl.load(bias + at + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["M"])
def gru_kernel(
    deter,  # [M, D]
    reset,  # [M] or None
    x,  # [M, H]
    of_x,  # [3*D, H]
    of_deter,  # [3*D, D]
    bias_x,  # [3*D]
    bias_h,  # [3*D]
    out,  # [M, D]
    gates,  # [M, 4*D] or None
    M,
    s_deter,
    s_reset,
    s_x,
    s_out,
    s_gates,
    D: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_m, i_n = place_of(D, BN)
    o_m, o_n = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN)
    o_row = o_m.to(tl.int64)
    m_m, m_n = o_m < M, o_n < D
    b_reset = tl.zeros([BM], tl.int1)
    if reset is not None:
        b_reset = tl.load(reset + o_row * s_reset, mask=m_m, other=1) != 0
    p_deter = deter + o_row[:, None] * s_deter + o_n[None, :]
    b_old = tl.load(p_deter, mask=m_m[:, None] & m_n[None, :], other=0.0, cache_modifier=".cg").to(tl.float32)
    b_old = tl.where(b_reset[:, None], 0.0, b_old)
    b_bc, b_bh = load_bias(bias_x, o_n, m_n, 2 * D), load_bias(bias_h, o_n, m_n, 2 * D)
    b_br = load_bias(bias_x, o_n, m_n, 0) + load_bias(bias_h, o_n, m_n, 0)
    b_bu = load_bias(bias_x, o_n, m_n, D) + load_bias(bias_h, o_n, m_n, D)

    # Of deter, which was written before the kernel before began; x alone is new.
    b_r, b_u = tl.zeros([KS, BM, BN], tl.float32), tl.zeros([KS, BM, BN], tl.float32)
    b_h = tl.zeros([KS, BM, BN], tl.float32)
    for i_k in range(0, D, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < D
        b_a = kept(load_inputs(deter, o_row, m_m, o_k, m_k, s_deter, True), reset, b_reset)
        b_r = add_product(b_r, b_a, load_weights(of_deter, o_k, m_k, o_n, m_n, 1, D))
        b_u = add_product(b_u, b_a, load_weights(of_deter + D * D, o_k, m_k, o_n, m_n, 1, D))
        b_h = add_product(b_h, b_a, load_weights(of_deter + 2 * D * D, o_k, m_k, o_n, m_n, 1, D))
    o_k = split_inputs(0, BK, KS)
    b_wc = load_weights(of_x, o_k, o_k < H, o_n, m_n, 1, H)
    b_wr = load_weights(of_x + D * H, o_k, o_k < H, o_n, m_n, 1, H)
    b_wu = load_weights(of_x + 2 * D * H, o_k, o_k < H, o_n, m_n, 1, H)

    begin(PDL)
    b_a = load_inputs(x, o_row, m_m, o_k, o_k < H, s_x)
    b_c = add_product(None, b_a, b_wc)
    b_r = add_product(b_r, b_a, b_wr)
    b_u = add_product(b_u, b_a, b_wu)
    for i_k in range(BK, H, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < H
        b_a = load_inputs(x, o_row, m_m, o_k, m_k, s_x)
        b_c = add_product(b_c, b_a, load_weights(of_x, o_k, m_k, o_n, m_n, 1, H))
        b_r = add_product(b_r, b_a, load_weights(of_x + D * H, o_k, m_k, o_n, m_n, 1, H))
        b_u = add_product(b_u, b_a, load_weights(of_x + 2 * D * H, o_k, m_k, o_n, m_n, 1, H))

    DTYPE: tl.constexpr = out.dtype.element_ty
    # Rounded: what the gradient will see is what the new deter is made of.
    b_h = (sum_parts(b_h) + b_bh).to(DTYPE).to(tl.float32)
    b_r = (sum_parts(b_r) + b_br).to(DTYPE).to(tl.float32)
    b_u = (sum_parts(b_u) + b_bu).to(DTYPE).to(tl.float32)
    b_c = (sum_parts(b_c) + b_bc + tl.sigmoid(b_r) * b_h).to(DTYPE).to(tl.float32)
    m_out = m_m[:, None] & m_n[None, :]
    if gates is not None:
        p_gates = gates + o_row[:, None] * s_gates + o_n[None, :]
        tl.store(p_gates, b_c.to(DTYPE), mask=m_out)
        tl.store(p_gates + D, b_r.to(DTYPE), mask=m_out)
        tl.store(p_gates + 2 * D, b_u.to(DTYPE), mask=m_out)
        tl.store(p_gates + 3 * D, b_h.to(DTYPE), mask=m_out)
    b_c = tanh(b_c)
    b_out = b_c + tl.sigmoid(b_u) * (b_old - b_c)
    tl.store(out + o_row[:, None] * s_out + o_n[None, :], b_out.to(DTYPE), mask=m_out)


def gru(
    deter: Tensor,
    reset: Tensor | None,
    x: Tensor,
    of_x: Tensor,
    of_deter: Tensor,
    bias_x: Tensor,
    bias_h: Tensor,
    out: Tensor,
    gates: Tensor | None,
) -> None:
    """Compute `out` and `gates` as above."""
    (rows, width), units = deter.shape, x.shape[1]
    tiles = gru_tiles(units, width, of_x.element_size())
    assert of_x.is_contiguous() and of_deter.is_contiguous()
    launch(
        gru_kernel,
        (triton.cdiv(width, tiles.n) * triton.cdiv(rows, tiles.m),),
        deter,
        reset,
        x,
        of_x,
        of_deter,
        bias_x,
        bias_h,
        out,
        gates,
        rows,
        deter.stride(0),
        0 if reset is None else reset.stride(0),
        x.stride(0),
        out.stride(0),
        0 if gates is None else gates.stride(0),
        D=width,
        H=units,
        BM=tiles.m,
        BN=tiles.n,
        BK=tiles.k,
        KS=tiles.split,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
