"""The gates of a block core: norm and activation of its hidden layer, the gates' block product, the new deter.

p^(k) = act(norm(hidden))^(k) W^(k) + bias^(k) = [reset | cand | update]        for each of g blocks k
out = u * tanh(sigmoid(reset) * cand) + (1 - u) * deter,  u = sigmoid(update - 1)

hidden  [M, D]          pre-activations, with the sums that `block_product` stored of them in tiles of `tile`
scale, shift  [D]       of the norm over all of D, or None
weight  [g, P, 3P]      W, any strides; P = D / g
bias    [3D]            or None
deter   [M, D]          rows where reset [M] bool is True count as zero; reset may be None
out     [M, D]          written; gates [M, 3D] gets p, or is None
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.block_product import Tiles, piece, split_warps
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import (
    load_planes,
    moments,
    moments_of,
    normalize_tile,
    row_tiles,
)
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    normalize_inputs,
    split_inputs,
    sum_parts,
    vector_inputs,
)


def gates_tiles(rows: int, width: int, block: int, itemsize: int) -> Tiles:
    """Tiles for the gates of `rows` rows of a deter of `width` columns in blocks of `block`; columns are deter's."""
    depth = 128 // itemsize
    if rows <= 16:
        n = 32 if width // 32 >= 96 and block % 32 == 0 else 16
        warps = split_warps(block)
        k = piece(4 * depth, block, 3 * n, itemsize, warps)  # latency counts: few long pieces
        return Tiles(16, n, k, warps, 3, split=warps)
    shapes = ((128, 64),) * (itemsize == 2) + ((64, 64), (64, 32), (32, 32))
    fitting = [(m, n) for m, n in shapes if n <= block]
    enough = [
        (m, n) for m, n in fitting if triton.cdiv(rows, m) * (width // block) * triton.cdiv(block, n) >= 120
    ]
    m, n = (*enough, *fitting[-1:], (32, 32))[0]
    return Tiles(m, n, depth, 8 if m * n >= 4096 else 4, 3)


@triton.jit
def gated(b_reset, b_cand, b_update, b_deter):
    """The new deter of three gates and the old one, all float32."""
    b_u = tl.sigmoid(b_update - 1)
    return b_deter + b_u * (tanh(tl.sigmoid(b_reset) * b_cand) - b_deter)


@triton.jit
def write_gates(
    b_r, b_c, b_u, b_deter, out, gates, s_out, s_gates, o_row, m_m, o_n, m_n, i_g, P: tl.constexpr
):
    """The gates of a tile, if wanted, and the new deter."""
    m_out = m_m[:, None] & m_n[None, :]
    if gates is not None:
        # What the gradient will see is what the new deter is made of.
        b_r = b_r.to(gates.dtype.element_ty)
        b_c = b_c.to(gates.dtype.element_ty)
        b_u = b_u.to(gates.dtype.element_ty)
        p_gates = gates + o_row[:, None] * s_gates + (i_g * 3 * P + o_n)[None, :]
        tl.store(p_gates, b_r, mask=m_out)
        tl.store(p_gates + P, b_c, mask=m_out)
        tl.store(p_gates + 2 * P, b_u, mask=m_out)
    b_out = gated(b_r.to(tl.float32), b_c.to(tl.float32), b_u.to(tl.float32), b_deter)
    p_out = out + o_row[:, None] * s_out + (i_g * P + o_n)[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def gates_of(
    hidden, sums, scale, shift, weight, bias, deter, reset, M, eps, s_hidden, s_deter, s_reset, s_g, s_k, s_n,
    i_g, o_m, o_n, G: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, TILE: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """The three gates of a tile, and the old deter, all float32."""
    o_row = o_m.to(tl.int64)
    m_m, m_n = o_m < M, o_n < P
    b_mean, b_rstd = moments(sums, o_m, M, eps, G * P, P, TILE, BT, NORM)
    b_r = tl.zeros([o_m.shape[0], o_n.shape[0]], tl.float32)
    b_c, b_u = b_r, b_r
    for i_k in range(0, P, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < P
        o_h = i_g * P + o_k
        p_w = weight + i_g * s_g + o_k[:, None] * s_k + o_n[None, :] * s_n
        m_w = m_k[:, None] & m_n[None, :]
        b_h = tl.load(
            hidden + o_row[:, None] * s_hidden + o_h[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0
        )
        b_y = activate(normalize_tile(b_h, b_mean, b_rstd, scale, shift, o_h, m_k), ACT)
        b_y = b_y.to(weight.dtype.element_ty)
        b_r = tl.dot(b_y, tl.load(p_w, mask=m_w, other=0.0), b_r, input_precision="ieee")
        b_c = tl.dot(b_y, tl.load(p_w + P * s_n, mask=m_w, other=0.0), b_c, input_precision="ieee")
        b_u = tl.dot(b_y, tl.load(p_w + 2 * P * s_n, mask=m_w, other=0.0), b_u, input_precision="ieee")

    if bias is not None:
        b_br, b_bc, b_bu = gate_biases(bias, i_g, o_n, m_n, P)
        b_r, b_c, b_u = b_r + b_br[None, :], b_c + b_bc[None, :], b_u + b_bu[None, :]
    m_old = m_m[:, None] & m_n[None, :]
    if reset is not None:
        m_old = m_old & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)[:, None]
    p_deter = deter + o_row[:, None] * s_deter + (i_g * P + o_n)[None, :]
    return b_r, b_c, b_u, tl.load(p_deter, mask=m_old, other=0.0).to(tl.float32)


@triton.jit
def split_gates_of(
    hidden, sums, scale, shift, weight, bias, deter, reset, M, eps, s_hidden, s_deter, s_reset, s_g, s_k, s_n,
    i_g, o_m, o_n, G: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, TILE: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr, KS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """As `gates_of`, for few rows: inputs are split among warps, and what is old is read before the wait."""
    o_row = o_m.to(tl.int64)
    m_m, m_n = o_m < M, o_n < P
    o_k = split_inputs(0, BK, KS)
    p_w = weight + i_g * s_g
    b_wr = load_weights(p_w, o_k, o_k < P, o_n, m_n, s_k, s_n)
    b_wc = load_weights(p_w + P * s_n, o_k, o_k < P, o_n, m_n, s_k, s_n)
    b_wu = load_weights(p_w + 2 * P * s_n, o_k, o_k < P, o_n, m_n, s_k, s_n)
    m_x = m_m[:, None] & m_n[None, :]
    p_deter = deter + o_row[:, None] * s_deter + (i_g * P + o_n)[None, :]
    b_deter = tl.load(p_deter, mask=m_x, other=0.0, cache_modifier=".cg")
    b_deter = b_deter.to(tl.float32)
    if reset is not None:
        b_reset = tl.load(reset + o_row * s_reset, mask=m_m, other=1)
        b_deter = tl.where(b_reset[:, None] == 0, b_deter, 0.0)
    b_br, b_bc, b_bu = gate_biases(bias, i_g, o_n, m_n, P)
    b_scale = vector_inputs(scale, i_g * P + o_k, o_k < P, 1.0)
    b_shift = vector_inputs(shift, i_g * P + o_k, o_k < P, 0.0)

    begin(PDL)
    b_sums, b_squares = load_planes(sums, o_m, M, G * ((P + TILE - 1) // TILE), BT, NORM, False)
    b_h = load_inputs(hidden + i_g * P, o_row, m_m, o_k, o_k < P, s_hidden)
    b_mean, b_rstd = moments_of(b_sums, b_squares, o_m, M, eps, G * P, P, TILE, BT, NORM)
    b_y = activate(normalize_inputs(b_h, b_mean, b_rstd, b_scale, b_shift), ACT)
    b_r = add_product(None, b_y, b_wr)
    b_c = add_product(None, b_y, b_wc)
    b_u = add_product(None, b_y, b_wu)
    for i_k in range(BK, P, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < P
        b_h = load_inputs(hidden + i_g * P, o_row, m_m, o_k, m_k, s_hidden)
        b_scale = vector_inputs(scale, i_g * P + o_k, m_k, 1.0)
        b_shift = vector_inputs(shift, i_g * P + o_k, m_k, 0.0)
        b_y = activate(normalize_inputs(b_h, b_mean, b_rstd, b_scale, b_shift), ACT)
        b_w = load_weights(p_w, o_k, m_k, o_n, m_n, s_k, s_n)
        b_r = add_product(b_r, b_y, b_w)
        b_w = load_weights(p_w + P * s_n, o_k, m_k, o_n, m_n, s_k, s_n)
        b_c = add_product(b_c, b_y, b_w)
        b_w = load_weights(p_w + 2 * P * s_n, o_k, m_k, o_n, m_n, s_k, s_n)
        b_u = add_product(b_u, b_y, b_w)
    b_r, b_c, b_u = sum_parts(b_r), sum_parts(b_c), sum_parts(b_u)
    return b_r + b_br[None, :], b_c + b_bc[None, :], b_u + b_bu[None, :], b_deter


@triton.jit
def gate_biases(bias, i_g, o_n, m_n, P: tl.constexpr):
    """Of columns [BN], zeros if there are none."""
    if bias is None:
        b_r = tl.zeros(o_n.shape, tl.float32)
        return b_r, b_r, b_r
    else:
        p_bias = bias + i_g * 3 * P + o_n
        b_r = tl.load(p_bias, mask=m_n, other=0.0).to(tl.float32)
        b_c = tl.load(p_bias + P, mask=m_n, other=0.0).to(tl.float32)
        return b_r, b_c, tl.load(p_bias + 2 * P, mask=m_n, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["M"])
def block_gates_kernel(
    hidden,  # [M, G*P]
    sums,  # [tiles, planes, M] or None
    scale,  # [G*P] or None
    shift,  # [G*P] or None
    weight,  # [G, P, 3*P]
    bias,  # [G*3*P] or None
    deter,  # [M, G*P]
    reset,  # [M] or None
    out,  # [M, G*P]
    gates,  # [M, G*3*P] or None
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
    BK: tl.constexpr,
    KS: tl.constexpr,  # among how many warps inputs are split, or 1
    PDL: tl.constexpr,
):
    i_n, i_g, i_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    if KS > 1:
        b_r, b_c, b_u, b_deter = split_gates_of(
            hidden, sums, scale, shift, weight, bias, deter, reset, M, eps, s_hidden, s_deter, s_reset, s_g, s_k,
            s_n, i_g, o_m, o_n, G, P, NORM, ACT, TILE, BT, BK, KS, PDL
        )  # fmt: skip
    else:
        begin(PDL)
        b_r, b_c, b_u, b_deter = gates_of(
            hidden, sums, scale, shift, weight, bias, deter, reset, M, eps, s_hidden, s_deter, s_reset, s_g, s_k,
            s_n, i_g, o_m, o_n, G, P, NORM, ACT, TILE, BT, BK
        )  # fmt: skip
    o_row = o_m.to(tl.int64)
    write_gates(b_r, b_c, b_u, b_deter, out, gates, s_out, s_gates, o_row, o_m < M, o_n, o_n < P, i_g, P)


def block_gates(
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
    tiles: Tiles,
) -> None:
    """Compute `out` and `gates` as above. norm, act, eps: of the hidden layer."""
    blocks, block, _ = weight.shape
    rows, width = deter.shape
    launch(
        block_gates_kernel,
        (triton.cdiv(block, tiles.n), blocks, triton.cdiv(rows, tiles.m)),
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
        BM=tiles.m,
        BN=tiles.n,
        BK=tiles.k,
        KS=tiles.split,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
