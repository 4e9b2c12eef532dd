"""A step of PlaNet's core, a GRU whose reset gate comes before its product: the gates, then the new deter.

    h = sigmoid(reset) * deter,  cand = x W1 + h V + bias,  u = sigmoid(update)
    out = u * deter + (1 - u) * tanh(cand)            reset and update of products with x and deter alike

deter   [M, D]      rows where reset [M] bool is True count as zero; reset may be None
x       [M, H]      the features of stoch and action
of_x    [3D, H]     rows cand | reset | update, and of_deter [3D, D] reset | update | cand
biases  [3D]        of both products, in PyTorch's order reset | update | cand
passed  [M, 2D]     update | h, which the first kernel writes and the second reads
kept    [M, 2D]     written: cand | reset; or None
out     [M, D]      written

Every column of cand needs all of h, so there are two kernels. The second waits for h and the update gate alone: deter
and x are older than the first, and while that one runs it multiplies x.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.grids import place_of
from fastdream.ops.triton.gru_step import gru_tiles, load_bias
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.split import add_product, load_inputs, load_weights, split_inputs, sum_parts
from fastdream.ops.triton.split_product import kept as zeroed


@triton.jit
def load_old(deter, b_reset, o_row, o_n, m_m, m_n, s_deter):
    """A tile of the old deter in float32, zero where reset [BM], read past the cache."""
    p_deter = deter + o_row[:, None] * s_deter + o_n[None, :]
    b_old = tl.load(p_deter, mask=m_m[:, None] & m_n[None, :], other=0.0, cache_modifier=".cg")
    return tl.where(b_reset[:, None], 0.0, b_old.to(tl.float32))


@triton.jit(do_not_specialize=["M"])
def planet_gates_kernel(
    deter,  # [M, D]
    reset,  # [M] or None
    x,  # [M, H]
    of_x,  # [3*D, H]
    of_deter,  # [3*D, D]
    bias_x,  # [3*D]
    bias_h,  # [3*D]
    passed,  # [M, 2*D]
    kept,  # [M, 2*D] or None
    M,
    s_deter,
    s_reset,
    s_x,
    s_passed,
    s_kept,
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
    b_old = load_old(deter, b_reset, o_row, o_n, m_m, m_n, s_deter)
    b_br = load_bias(bias_x, o_n, m_n, 0) + load_bias(bias_h, o_n, m_n, 0)
    b_bu = load_bias(bias_x, o_n, m_n, D) + load_bias(bias_h, o_n, m_n, D)

    # Of deter, which was written before the kernel before began; x alone is new.
    b_r, b_u = tl.zeros([KS, BM, BN], tl.float32), tl.zeros([KS, BM, BN], tl.float32)
    for i_k in range(0, D, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < D
        b_a = zeroed(load_inputs(deter, o_row, m_m, o_k, m_k, s_deter, True), reset, b_reset)
        b_r = add_product(b_r, b_a, load_weights(of_deter, o_k, m_k, o_n, m_n, 1, D))
        b_u = add_product(b_u, b_a, load_weights(of_deter + D * D, o_k, m_k, o_n, m_n, 1, D))
    o_k = split_inputs(0, BK, KS)
    b_wr = load_weights(of_x + D * H, o_k, o_k < H, o_n, m_n, 1, H)
    b_wu = load_weights(of_x + 2 * D * H, o_k, o_k < H, o_n, m_n, 1, H)

    begin(PDL)
    b_a = load_inputs(x, o_row, m_m, o_k, o_k < H, s_x)
    b_r = add_product(b_r, b_a, b_wr)
    b_u = add_product(b_u, b_a, b_wu)
    for i_k in range(BK, H, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < H
        b_a = load_inputs(x, o_row, m_m, o_k, m_k, s_x)
        b_r = add_product(b_r, b_a, load_weights(of_x + D * H, o_k, m_k, o_n, m_n, 1, H))
        b_u = add_product(b_u, b_a, load_weights(of_x + 2 * D * H, o_k, m_k, o_n, m_n, 1, H))

    DTYPE: tl.constexpr = passed.dtype.element_ty
    # Rounded: what the gradient will see is what the new deter is made of.
    b_r = (sum_parts(b_r) + b_br).to(DTYPE)
    b_u = (sum_parts(b_u) + b_bu).to(DTYPE)
    m_out = m_m[:, None] & m_n[None, :]
    p_passed = passed + o_row[:, None] * s_passed + o_n[None, :]
    tl.store(p_passed, b_u, mask=m_out)
    tl.store(p_passed + D, (tl.sigmoid(b_r.to(tl.float32)) * b_old).to(DTYPE), mask=m_out)
    if kept is not None:
        tl.store(kept + o_row[:, None] * s_kept + (D + o_n)[None, :], b_r, mask=m_out)


@triton.jit(do_not_specialize=["M"])
def planet_deter_kernel(
    deter,  # [M, D]
    reset,  # [M] or None
    x,  # [M, H]
    of_x,  # [3*D, H]
    of_deter,  # [3*D, D]
    bias_x,  # [3*D]
    bias_h,  # [3*D]
    passed,  # [M, 2*D]
    kept,  # [M, 2*D] or None
    out,  # [M, D]
    M,
    s_deter,
    s_reset,
    s_x,
    s_passed,
    s_kept,
    s_out,
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
    b_old = load_old(deter, b_reset, o_row, o_n, m_m, m_n, s_deter)
    b_bias = load_bias(bias_x, o_n, m_n, 2 * D) + load_bias(bias_h, o_n, m_n, 2 * D)

    # x was written before the kernel before began.
    b_c = tl.zeros([KS, BM, BN], tl.float32)
    for i_k in range(0, H, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < H
        b_a = load_inputs(x, o_row, m_m, o_k, m_k, s_x, True)
        b_c = add_product(b_c, b_a, load_weights(of_x, o_k, m_k, o_n, m_n, 1, H))
    p_w = of_deter + 2 * D * D
    o_k = split_inputs(0, BK, KS)
    b_w = load_weights(p_w, o_k, o_k < D, o_n, m_n, 1, D)

    begin(PDL)
    m_out = m_m[:, None] & m_n[None, :]
    b_u = tl.load(passed + o_row[:, None] * s_passed + o_n[None, :], mask=m_out, other=0.0).to(tl.float32)
    b_c = add_product(b_c, load_inputs(passed + D, o_row, m_m, o_k, o_k < D, s_passed), b_w)
    for i_k in range(BK, D, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < D
        b_a = load_inputs(passed + D, o_row, m_m, o_k, m_k, s_passed)
        b_c = add_product(b_c, b_a, load_weights(p_w, o_k, m_k, o_n, m_n, 1, D))

    DTYPE: tl.constexpr = out.dtype.element_ty
    b_c = (sum_parts(b_c) + b_bias).to(DTYPE)
    if kept is not None:
        tl.store(kept + o_row[:, None] * s_kept + o_n[None, :], b_c, mask=m_out)
    b_c = tanh(b_c.to(tl.float32))
    b_out = b_c + tl.sigmoid(b_u) * (b_old - b_c)
    tl.store(out + o_row[:, None] * s_out + o_n[None, :], b_out.to(DTYPE), mask=m_out)


def planet(
    deter: Tensor,
    reset: Tensor | None,
    x: Tensor,
    of_x: Tensor,
    of_deter: Tensor,
    bias_x: Tensor,
    bias_h: Tensor,
    passed: Tensor,
    kept: Tensor | None,
    out: Tensor,
) -> None:
    """Compute `passed`, `kept` and `out` as above."""
    (rows, width), units = deter.shape, x.shape[1]
    assert of_x.is_contiguous() and of_deter.is_contiguous()
    tensors = deter, reset, x, of_x, of_deter, bias_x, bias_h, passed, kept
    strides = [0 if y is None else y.stride(0) for y in (deter, reset, x, passed, kept)]
    for kernel, gates, written in ((planet_gates_kernel, 2, ()), (planet_deter_kernel, 1, (out,))):
        tiles = gru_tiles(units, width, of_x.element_size(), gates)
        launch(
            kernel,
            (triton.cdiv(width, tiles.n) * triton.cdiv(rows, tiles.m),),
            *tensors,
            *written,
            rows,
            *strides,
            *(y.stride(0) for y in written),
            D=width,
            H=units,
            BM=tiles.m,
            BN=tiles.n,
            BK=tiles.k,
            KS=tiles.split,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
